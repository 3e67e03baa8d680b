// Libraries that ggml loads as a backend and that are not our adapter: one with another name, and (FOREIGN_NAME "tightkv") one with our name
// that lacks our functions. The layout is that of ggml_backend_reg, whose first word is the version of the backend API.
#include <stddef.h>

#ifndef FOREIGN_NAME
#define FOREIGN_NAME "elsewhere"
#endif

void* ggml_backend_dev_by_type(int type);
void* ggml_backend_dev_backend_reg(void* device);

static const char* name(void* reg) { (void)reg; return FOREIGN_NAME; }
static size_t      count(void* reg) { (void)reg; return 0; }
static void*       device(void* reg, size_t i) { (void)reg, (void)i; return NULL; }
static void*       function(void* reg, const char* f) { (void)reg, (void)f; return NULL; }

static struct {
    int api_version;
    const char* (*name)(void*);
    size_t (*count)(void*);
    void* (*device)(void*, size_t);
    void* (*function)(void*, const char*);
    void* context;
} registry = {0, name, count, device, function, NULL};

void* ggml_backend_init(void) {
    const int* host      = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(0)); // of its CPU backend
    registry.api_version = *host;
    return &registry;
}
