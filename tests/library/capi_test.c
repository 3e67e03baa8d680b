/* The C API from C11: the example of the manual, every function once. Exits with the number of failures. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tightkv/tightkv.h"

static int failures = 0;

static void check(int good, const char* what, int line) {
    if (good) return;
    failures++;
    fprintf(stderr, "capi_test.c:%d: %s (last error: %s)\n", line, what, tkv_last_error());
}
#define CHECK(x) check(!!(x), #x, __LINE__)

static float value(int i) { return (float)((int)((uint32_t)(i + 1) * 2654435761u >> 20) - 2048) / 2048.0f; }

int main(void) {
    CHECK(strlen(tkv_version()) >= 5);
    CHECK(tkv_format_version() == 1);
    const char* isa = tkv_isa();
    CHECK(tkv_set_isa("scalar") == TKV_OK && strcmp(tkv_isa(), "scalar") == 0);
    CHECK(tkv_set_isa("mmx") == TKV_UNSUPPORTED && strstr(tkv_last_error(), "mmx") != NULL && strcmp(tkv_isa(), "scalar") == 0);
    CHECK(tkv_set_isa(isa) == TKV_OK);

    CHECK(tkv_format_count() == 8 && strcmp(tkv_format_name(0), "turbo2") == 0 && strcmp(tkv_format_name(4), "f16") == 0);
    CHECK(tkv_format_name(-1) == NULL && tkv_format_name(8) == NULL);
    CHECK(tkv_row_bytes("turbo3", 128) == 50 && tkv_row_bytes("f16", 64) == 128);
    CHECK(tkv_row_bytes("turbo9", 128) == 0 && tkv_row_bytes("turbo3", 100) == 0 && tkv_row_bytes(NULL, 64) == 0);

    { /* rows */
        float   x[64], y[64];
        uint8_t bytes[66], again[66];
        int     refused = -1;
        for (int i = 0; i < 64; i++) x[i] = value(i);
        CHECK(tkv_encode_row("turbo8", 64, x, bytes, &refused) == TKV_OK && refused == 0);
        CHECK(tkv_decode_row("turbo8", 64, bytes, y) == TKV_OK);
        for (int i = 0; i < 64; i++) CHECK(fabsf(x[i] - y[i]) < 0.05f);
        CHECK(tkv_encode_row("turbo8", 64, y, again, NULL) == TKV_OK);
        CHECK(memcmp(bytes, again, 66) == 0);
        x[5] = NAN;
        CHECK(tkv_encode_row("turbo8", 64, x, bytes, &refused) == TKV_OK && refused == 1);
        for (int i = 0; i < 66; i++) CHECK(bytes[i] == 0);
        CHECK(tkv_encode_row("f16", 64, y, bytes, NULL) == TKV_INVALID_ARGUMENT);
        CHECK(tkv_encode_row("turbo4", 63, y, bytes, NULL) == TKV_INVALID_ARGUMENT && strstr(tkv_last_error(), "63") != NULL);
        CHECK(tkv_decode_row("turbo4", 64, NULL, y) == TKV_INVALID_ARGUMENT);
    }

    /* the example of the manual */
    enum { kTokens = 70, kHeads = 3, kDim = 64 };
    static float k[kTokens * kHeads * kDim], v[kTokens * kHeads * kDim], back[kTokens * kHeads * kDim];
    for (int i = 0; i < kTokens * kHeads * kDim; i++) k[i] = value(3 * i), v[i] = value(5 * i + 1);
    tkv_cache_params params = tkv_cache_params_default();
    CHECK(params.n_streams == 1);
    params.n_layers = 2, params.n_kv_heads = kHeads, params.head_dim_k = params.head_dim_v = kDim, params.n_cells = 256,
    params.n_streams = 2;
    tkv_cache* cache = NULL;
    CHECK(tkv_cache_create("k=turbo4:v=turbo8:first=f16x1", &params, &cache) == TKV_OK);
    if (!cache) return 1;
    CHECK(strcmp(tkv_cache_spec(cache), "k=turbo4:v=turbo8:first=f16x1") == 0);
    CHECK(tkv_cache_bytes(cache) == 2u * 3u * 256u * (128u + 128u + 34u + 66u));
    CHECK(fabs(tkv_cache_bits_per_value(cache) - 8.0 * (128 + 128 + 34 + 66) / 256) < 1e-12);
    for (int layer = 0; layer < 2; layer++) {
        CHECK(tkv_write(cache, layer, TKV_K, 0, 0, kTokens, k, NULL) == TKV_OK);
        CHECK(tkv_write(cache, layer, TKV_V, 0, 0, kTokens, v, NULL) == TKV_OK);
    }
    /* C lets a caller pass any int as an enum: refused, and the check itself is defined (UBSan, optimiser) */
    CHECK(tkv_write(cache, 0, (tkv_operand)7, 0, 0, 1, v, NULL) == TKV_INVALID_ARGUMENT && strstr(tkv_last_error(), "TKV_K") != NULL);
    CHECK(tkv_read(cache, 0, (tkv_operand)-1, 0, 0, 1, back) == TKV_INVALID_ARGUMENT);
    CHECK(tkv_cache_refused_rows(cache) == 0);
    CHECK(tkv_read(cache, 1, TKV_V, 0, 0, kTokens, back) == TKV_OK);
    for (int i = 0; i < kTokens * kHeads * kDim; i++) CHECK(fabsf(back[i] - v[i]) < 0.05f);

    static float  q[9 * kDim], out[9 * kDim];
    tkv_attention a = tkv_attention_default();
    CHECK(a.n_streams == 1 && a.n_threads == 1);
    a.n_tokens = 1, a.n_heads = 9, a.n_kv = kTokens, a.scale = 0.125f, a.q = q, a.out = out, a.n_threads = 2;
    CHECK(tkv_attend(cache, 1, &a) == TKV_OK); /* a zero query weighs all alike: the mean of the values */
    for (int h = 0; h < 9; h++)
        for (int i = 0; i < kDim; i++) {
            double mean = 0;
            for (int t = 0; t < kTokens; t++) mean += back[(t * kHeads + h / 3) * kDim + i] / (double)kTokens;
            CHECK(fabs(out[h * kDim + i] - mean) < 1e-4);
        }
    { /* the same with the caller's threads, here one after the other */
        static float again[9 * kDim];
        tkv_job*     job = NULL;
        a.out            = again;
        CHECK(tkv_attend_begin(cache, 1, &a, &job) == TKV_OK);
        tkv_attend_run(job), tkv_attend_run(job);
        CHECK(tkv_attend_end(job) == TKV_OK && memcmp(again, out, sizeof again) == 0);
    }

    { /* state to the other stream */
        const size_t size  = tkv_state_bytes(cache, kTokens);
        uint8_t*     state = malloc(size);
        int64_t      n     = 0;
        CHECK(state && tkv_state_save(cache, 0, kTokens, state, size) == TKV_OK);
        CHECK(tkv_state_load(cache, 1, state, size, &n) == TKV_OK && n == kTokens);
        static float other[kTokens * kHeads * kDim];
        CHECK(tkv_read(cache, 1, TKV_V, 1, 0, kTokens, other) == TKV_OK && memcmp(other, back, sizeof other) == 0);
        CHECK(tkv_state_load(cache, 1, state, size - 1, &n) == TKV_CORRUPT_DATA);
        free(state);
    }
    CHECK(tkv_cache_clear(cache) == TKV_OK);
    CHECK(tkv_read(cache, 1, TKV_V, 0, 3, 1, back) == TKV_OK && back[0] == 0.0f);
    CHECK(tkv_copy(cache, 0, 1, 0, kTokens) == TKV_OK);
    CHECK(tkv_read(cache, 1, TKV_V, 1, 3, 1, back) == TKV_OK && back[0] == 0.0f);
    tkv_cache_destroy(cache);
    tkv_cache_destroy(NULL);

    { /* rows in batches: the newest and the first ones exactly */
        tkv_cache* exact = NULL;
        tkv_token  tokens[kTokens];
        CHECK(tkv_cache_create("turbo2:sink=2:window=8:mean=16", &params, &exact) == TKV_OK);
        if (!exact) return 1;
        CHECK(strcmp(tkv_cache_spec(exact), "turbo2:sink=2:window=8:mean=16") == 0);
        CHECK(tkv_append(exact, 0, TKV_K, k) == TKV_INVALID_ARGUMENT && strstr(tkv_last_error(), "tkv_batch_begin") != NULL);
        for (int t = 0; t < kTokens; t++) tokens[t] = (tkv_token){1, t, t};
        CHECK(tkv_batch_begin(exact, kTokens, tokens) == TKV_OK);
        a.stream = 1;
        for (int layer = 0; layer < 2; layer++) {
            CHECK(tkv_append(exact, layer, TKV_K, k) == TKV_OK && tkv_append(exact, layer, TKV_V, v) == TKV_OK);
            CHECK(tkv_attend(exact, layer, &a) == TKV_OK);
        }
        CHECK(tkv_read(exact, 1, TKV_V, 1, 0, kTokens, back) == TKV_OK);
        for (int i = 0; i < kHeads * kDim; i++) CHECK(fabsf(back[i] - v[i]) < 1e-3f);
        for (int h = 0; h < 9; h++) /* the zero query's mean again */
            for (int i = 0; i < kDim; i++) {
                double mean = 0;
                for (int t = 0; t < kTokens; t++) mean += back[(t * kHeads + h / 3) * kDim + i] / (double)kTokens;
                CHECK(fabs(a.out[h * kDim + i] - mean) < 0.05);
            }
        CHECK(tkv_remove(exact, 1, 0, kTokens) == TKV_OK);
        CHECK(tkv_read(exact, 1, TKV_V, 1, 0, 1, back) == TKV_OK && back[0] == 0.0f);
        tkv_cache_destroy(exact);
    }
    if (failures) fprintf(stderr, "%d checks failed\n", failures);
    return failures != 0;
}
