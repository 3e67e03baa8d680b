// A host of a version that does not exist: just enough of ggml's public functions for the adapter's handshake, and any version number.
// usage: fake_host ADAPTER API_VERSION plain|nodevice. Built twice: FAKE_API3 also exports what only backend API 3 has.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct { int api_version; void* functions[16]; } registry;
static void* device[16];
static int   has_device;

const char* ggml_version(void) { return "9.9.9"; }
void*       ggml_backend_dev_by_type(int type) { (void)type; return has_device ? device : NULL; }
void*       ggml_backend_dev_backend_reg(void* dev) { (void)dev; return &registry; }
#ifdef FAKE_API3
void* ggml_backend_buft_alloc_buffer_n(void) { abort(); }
#endif

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    registry.api_version = atoi(argv[2]);
    has_device           = strcmp(argv[3], "nodevice") != 0;
    void* adapter        = dlopen(argv[1], RTLD_LAZY | RTLD_LOCAL);
    if (!adapter) return fprintf(stderr, "%s\n", dlerror()), 3;
    void* (*init)(void) = (void* (*)(void))dlsym(adapter, "ggml_backend_init");
    if (!init) return 4;
    printf("init returned %s\n", init() ? "a registry" : "null");
    return init() ? 5 : 0; // twice: the answer stays, and nothing more is said
}
