// A libggml.so that has every function the rival's process asks for, and aborts as ggml does when the first is called.
#include <stdio.h>
#include <stdlib.h>

#define STUB(name)                                                                                                                         \
    void ggml_##name(void) { abort(); }
STUB(init)
STUB(free)
STUB(new_tensor_2d)
STUB(new_tensor_3d)
STUB(permute)
STUB(flash_attn_ext)
STUB(new_graph_custom)
STUB(build_forward_expand)
STUB(backend_graph_compute)
STUB(backend_free)
STUB(backend_cpu_buffer_from_ptr)
STUB(backend_tensor_alloc)
STUB(backend_buffer_free)
STUB(backend_cpu_set_n_threads)

void* ggml_backend_cpu_init(void) {
    puts("a line on stdout, which is no answer");
    fflush(stdout);
    abort();
}
