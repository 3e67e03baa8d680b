// A libllama.so with the functions of ik_llama.cpp that `bench model --rival` calls, and their structs in its order. It says that it has a
// cache of type f16 whatever was asked for, and computes nothing.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    char bytes[176];
} model_params;

typedef struct {
    uint32_t seed, n_ctx, n_batch, n_ubatch, n_seq_max, n_threads, n_threads_batch;
    int32_t  max_extra_alloc, worst_case_tokens, rope_scaling_type, pooling_type, attention_type;
    float    rope[6];
    uint32_t yarn_orig_ctx;
    float    defrag_thold;
    void *   cb_eval, *cb_eval_user_data;
    int32_t  type_k, type_v;
    char     bytes[100];
} context_params;

typedef struct {
    int32_t   n_tokens;
    int32_t*  token;
    float*    embd;
    int32_t*  pos;
    int32_t*  n_seq_id;
    int32_t** seq_id;
    int8_t*   logits;
    int32_t   all[3];
} batch;

static void (*say)(int, const char*, void*);
static void* say_to;
static float values[] = {1, 2, 3};

void           llama_log_set(void (*f)(int, const char*, void*), void* data) { say = f, say_to = data; }
void           llama_backend_init(void) {}
model_params   llama_model_default_params(void) { return (model_params){{0}}; }
context_params llama_context_default_params(void) {
    return (context_params){
        .seed = 0xffffffff, .n_ctx = 512, .n_batch = 2048, .n_ubatch = 512, .n_seq_max = 1, .n_threads = 4, .type_k = 1, .type_v = 1};
}
void* llama_model_load_from_file(const char* path, model_params p) { return (void)path, (void)p, values; }
void* llama_init_from_model(void* model, context_params p) {
    if (p.n_batch != 512 || p.n_ubatch != 512 || p.n_seq_max != 1 || p.n_threads != 1) return NULL;
    say(1, "flash_attn    = 1\nKV self size  =    1.00 MiB, ", say_to);
    say(1, "K (f16):    0.50 MiB, V (f16):    0.50 MiB\n", say_to);
    return model;
}
void    llama_free_model(void* model) { (void)model; }
void    llama_free(void* context) { (void)context; }
int32_t llama_n_vocab(const void* model) { return (void)model, 3; }
batch   llama_batch_init(int32_t n, int32_t embd, int32_t n_seq) {
      batch b = {.token    = calloc((size_t)n, 4),
                 .pos      = calloc((size_t)n, 4),
                 .n_seq_id = calloc((size_t)n, 4),
                 .seq_id   = calloc((size_t)n, sizeof(int32_t*)),
                 .logits   = calloc((size_t)n, 1)};
      for (int32_t i = 0; i < n; i++) b.seq_id[i] = calloc((size_t)n_seq, 4);
    (void)embd;
      return b;
}
void llama_batch_free(batch b) {
    for (int32_t i = 0; i < b.n_tokens; i++) free(b.seq_id[i]);
    free(b.token), free(b.pos), free(b.n_seq_id), free(b.seq_id), free(b.logits);
}
int32_t llama_decode(void* context, batch b) { return (void)context, b.n_tokens == 64 && b.pos[63] == 63 && b.logits[63] ? 0 : -1; }
void    llama_synchronize(void* context) { (void)context; }
float*  llama_get_logits_ith(void* context, int32_t i) { return (void)context, i == 63 ? values : NULL; }
bool    llama_kv_cache_seq_rm(void* c, int32_t s, int32_t a, int32_t b) { return (void)c, (void)s, (void)a, (void)b, true; }
void    llama_kv_cache_seq_cp(void* c, int32_t s, int32_t t, int32_t a, int32_t b) { (void)c, (void)s, (void)t, (void)a, (void)b; }
int32_t llama_kv_cache_seq_pos_max(void* c, int32_t s) { return (void)c, (void)s, -1; }
size_t  llama_state_seq_get_size(void* c, int32_t s, uint32_t f) { return (void)c, (void)s, (void)f, 1; }
size_t  llama_state_seq_get_data(void* c, uint8_t* d, size_t n, int32_t s, uint32_t f) { return (void)c, (void)d, (void)s, (void)f, n; }
size_t  llama_state_seq_set_data(void* c, const uint8_t* d, size_t n, int32_t s, uint32_t f) {
     return (void)c, (void)d, (void)s, (void)f, n;
}
