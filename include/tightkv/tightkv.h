/* tightkv: KV-cache compression for large language models. The C API, and its manual.
 *
 * A cache holds the keys and values of the layers of one model for one or more streams (independent token sequences). Rows
 * are compressed when they are written and never decompressed one by one again: attention runs on the packed codes.
 *
 *     tkv_cache_params params = tkv_cache_params_default();
 *     params.n_layers = 30, params.n_kv_heads = 3, params.head_dim_k = params.head_dim_v = 64, params.n_cells = 4096;
 *     tkv_cache *cache = NULL;
 *     if (tkv_cache_create("k=turbo4:v=turbo3", &params, &cache) != TKV_OK) fail(tkv_last_error());
 *     tkv_write(cache, layer, TKV_V, 0, cell, n_tokens, v, NULL);      // v: [n_tokens][n_kv_heads][head_dim_v]
 *     tkv_write(cache, layer, TKV_K, 0, cell, n_tokens, k, NULL);      // k: after RoPE
 *     tkv_attention a = tkv_attention_default();
 *     a.n_tokens = 1, a.n_heads = 9, a.n_kv = cell + 1, a.scale = 0.125f, a.q = q, a.out = out;
 *     tkv_attend(cache, layer, &a);
 *     tkv_cache_destroy(cache);
 *
 * With sink=, window= or mean= in the specification (docs/formats.md) a cache must be told which tokens are written, in their order, so
 * that it knows a sequence's first ones and the newest. Rows then come in batches, layer by layer, instead of with tkv_write:
 *
 *     tkv_token token = {stream, cell, position};
 *     tkv_batch_begin(cache, 1, &token);
 *     for each layer: tkv_append(cache, layer, TKV_K, k), tkv_append(cache, layer, TKV_V, v), then tkv_attend(cache, layer, &a);
 *
 * Terms. cell: the place of one token in a stream; cells may be written in any order and rewritten, as an inference engine
 * frees and reuses them. head: a KV head; query heads are n_heads, a multiple of n_kv_heads (grouped-query attention).
 *
 * Numbers. Every input is finite f32. A row that holds NaN or Inf is refused: stored as zeros and counted; the call
 * still succeeds. head_dim is any multiple of 32 from 32 to 1024; K and V may differ.
 *
 * Errors. Functions return TKV_OK or a code; tkv_last_error() then says in one sentence what was wrong and what is accepted.
 * Nothing aborts, throws into the caller or writes to a stream.
 *
 * Threads. Different caches are independent. On one cache, reads (tkv_attend, tkv_read, tkv_state_save) may run at the same time
 * as each other, not as writes; tkv_write to different layers or operands, and tkv_append of K and of V of one layer, may run at the same
 * time. Everything else that changes a cache runs alone. tkv_last_error() is per thread.
 * The first tkv_attend with n_threads > 1 starts the threads that help it; they belong to the cache, sleep between calls and end with
 * it. After fork() a child must not use the caches of its parent.
 */
#ifndef TIGHTKV_H
#define TIGHTKV_H

#include <stddef.h>
#include <stdint.h>

#if defined(TIGHTKV_SHARED) && defined(__GNUC__)
#define TKV_API __attribute__((visibility("default")))
#else
#define TKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- versions ------------------------------------------------------------------------------------------------------ */

TKV_API const char* tkv_version(void);        /* of the library, "0.1.0" */
TKV_API int         tkv_format_version(void); /* of the row bytes; rows of another version are refused */
TKV_API const char* tkv_isa(void);            /* kernel level in use: "scalar", "avx2", "avxvnni", "avx512vnni", "avx512", "neon" */
/* Forces a level by name, as the variable TIGHTKV_ISA does. Not while other threads are inside the library. */
TKV_API int tkv_set_isa(const char* name);

/* ---- errors -------------------------------------------------------------------------------------------------------- */

enum { TKV_OK = 0, TKV_INVALID_ARGUMENT = 1, TKV_UNSUPPORTED = 2, TKV_OUT_OF_MEMORY = 3, TKV_CORRUPT_DATA = 4, TKV_INTERNAL = 5 };

TKV_API const char* tkv_last_error(void); /* of this thread's last failed call; "" if none. Valid until the next call. */

/* ---- formats ------------------------------------------------------------------------------------------------------- */

/* Formats by index, 0 <= i < tkv_format_count(): "turbo2", "turbo3", "turbo4", "turbo8", "f16", "turbo2t", "turbo3t",
 * "turbo4t". NULL beyond. */
TKV_API int         tkv_format_count(void);
TKV_API const char* tkv_format_name(int i);
/* Bytes of one canonical row (docs/formats.md). 0 for an unknown name or an unsupported head_dim. */
TKV_API size_t tkv_row_bytes(const char* format, int head_dim);
/* One row of head_dim values to its canonical bytes and back. Formats with a transform only (not f16). *refused (may be NULL): 1 if x held
 * NaN or Inf. */
TKV_API int tkv_encode_row(const char* format, int head_dim, const float* x, uint8_t* bytes, int* refused);
TKV_API int tkv_decode_row(const char* format, int head_dim, const uint8_t* bytes, float* x);

/* ---- cache --------------------------------------------------------------------------------------------------------- */

typedef struct tkv_cache tkv_cache;

typedef struct {
    int     n_layers, n_kv_heads, head_dim_k, head_dim_v;
    int     n_streams; /* default 1 */
    int64_t n_cells;   /* per stream, up to 2147483584; memory is committed as cells are first written */
} tkv_cache_params;

typedef int tkv_operand; /* an int, so that any value a caller passes can be looked at, and refused */
enum { TKV_K = 0, TKV_V = 1 };

TKV_API tkv_cache_params tkv_cache_params_default(void);
/* spec: docs/formats.md, for example "turbo3", "k=turbo4:v=turbo3:first=f16x2" or "auto". *cache is set on success only. profile=auto is
 * refused (TKV_UNSUPPORTED): it is made of the queries of all layers, which a caller need not bring here. sink= and window= need 4 bytes of
 * memory for every cell, and take up to 2^28 cells in all streams. */
TKV_API int  tkv_cache_create(const char* spec, const tkv_cache_params* params, tkv_cache** cache);
TKV_API void tkv_cache_destroy(tkv_cache* cache); /* NULL is fine */

TKV_API const char* tkv_cache_spec(const tkv_cache* cache);           /* canonical text; lives as long as the cache */
TKV_API size_t      tkv_cache_bytes(const tkv_cache* cache);          /* packed size of all cells, with the tables of exact rows */
TKV_API double      tkv_cache_bits_per_value(const tkv_cache* cache); /* scales and exact rows included */
TKV_API int64_t     tkv_cache_refused_rows(const tkv_cache* cache);
TKV_API int         tkv_cache_clear(tkv_cache* cache); /* all rows; a mean that was measured stays */

/* ---- rows by cell -------------------------------------------------------------------------------------------------- */

/* Rows of n tokens into cells first, first+1, … or, where cells is not NULL, into cells[0 … n-1]. x: [n][n_kv_heads][head_dim].
 * In a cache with sink= or window= a row is kept as exactly as its cell is: rows that are changed in place (a context shift) stay exact, a
 * cell that never came in a batch has codes only. With mean= these rows are not measured. */
TKV_API int tkv_write(tkv_cache* cache, int layer, tkv_operand op, int stream, int64_t first, int64_t n, const float* x,
                      const int64_t* cells);
/* Back again, decoded, or exact (f16) where the cell has an exact row: x: [n][n_kv_heads][head_dim]. */
TKV_API int tkv_read(const tkv_cache* cache, int layer, tkv_operand op, int stream, int64_t first, int64_t n, float* x);
/* Packed rows from one stream to another, all layers and both operands; no rounding. Exact rows go along, and count as the newest there. */
TKV_API int tkv_copy(tkv_cache* cache, int stream_from, int stream_to, int64_t first, int64_t n);
/* Cells become as if they had never been written, all layers and both operands, and their exact rows make room for others. Nobody has to
 * remove a cell before it is written again, but a sequence that ended holds the places of its sinks until then. */
TKV_API int tkv_remove(tkv_cache* cache, int stream, int64_t first, int64_t n);

/* ---- rows in batches ----------------------------------------------------------------------------------------------- */

/* stream stands for the sequence; where several share one, the caller's masks tell them apart, and each may have sinks of its own. */
typedef struct {
    int     stream;
    int64_t cell;
    int32_t position; /* in the sequence, from 0: below sink= the row is a sink. -1: not known, and no sink */
} tkv_token;

/* A batch begins: the tokens whose rows come next, in the order of their sequence, no cell twice. For every layer, K and V then follow with
 * tkv_append, once each and layer after layer, x: [n][n_kv_heads][head_dim], row i of token i; and attention over a layer after both. The
 * batch ends with the next one, or with tkv_remove, tkv_copy, tkv_state_load or tkv_cache_clear; n = 0 only ends the one before. Every
 * specification takes batches. These need them:
 *
 * sink=N, window=N: the rows of positions 0 … N-1 of every sequence, and the N + 3 newest rows of every stream, are kept as f16 beside
 * their codes, and attention uses those, of the latter the newest N. Every row is rounded to f16 first; values beyond its range are held at
 * the largest.
 *
 * Newest is what each query sees: rows that its mask hides do not count. Where it attends with as many query tokens per stream as the batch
 * has tokens of that stream, token i's window ends with itself, otherwise with the last one. Up to three rows that were taken back and
 * are hidden, as of draft tokens, cost the window of a single token nothing. A batch of more than 4 tokens of a stream has all of its rows
 * in a table of their own until the next layer is appended; attention that comes later finds no more of a window than the last N + 3 rows.
 *
 * Sinks have N places per stream and 1024 cells, at most 64 N; beyond that the oldest make room.
 *
 * mean=N: the mean of the keys is measured on the first N tokens of a stream (positions 0 … 3 left out; from 64 on, and again at twice as
 * many), and taken off all keys from then on; the rows before are coded again. It takes the place of a profile's mean. It is that of the
 * positions that were seen: how keys turn with later ones, which the llama.cpp adapter reads from the model's graph, is not known here. */
TKV_API int tkv_batch_begin(tkv_cache* cache, int64_t n, const tkv_token* tokens);
TKV_API int tkv_append(tkv_cache* cache, int layer, tkv_operand op, const float* x);

/* ---- attention ----------------------------------------------------------------------------------------------------- */

typedef struct {
    int          n_tokens, n_heads; /* query tokens per stream, query heads */
    int          stream, n_streams; /* streams stream … stream + n_streams - 1 take part; defaults 0, 1 */
    int64_t      n_kv;              /* cells 0 … n_kv - 1 are attended to */
    const float* q;                 /* [n_streams][n_tokens][n_heads][head_dim_k], after RoPE */
    float*       out;               /* [n_streams][n_tokens][n_heads][head_dim_v] */
    float        scale;             /* of the scores, usually 1/sqrt(head_dim) */
    float        softcap;           /* 0: none; else scores become softcap * tanh(score / softcap) */
    float        alibi_max_bias;    /* 0: none; else the mask is multiplied with the head's ALiBi slope */
    /* Added to the scores; -inf hides a key. One of the two, or none. [n_streams][n_tokens][mask_stride]; mask_stride >= n_kv. Layers with
     * exact rows round mask_f32 to f16. */
    const float*    mask_f32;
    const uint16_t* mask_f16;
    int64_t         mask_stride;
    const float*    sinks;     /* [n_heads] logits of attention sinks, or NULL */
    int             n_threads; /* threads the call may use, itself included; default 1 */
} tkv_attention;

TKV_API tkv_attention tkv_attention_default(void);
/* Rows whose keys are all hidden give zeros. A query with NaN or Inf gives NaN in its own row only. */
TKV_API int tkv_attend(const tkv_cache* cache, int layer, const tkv_attention* a);

/* The same for engines with threads of their own: begin once, run once on each of n_threads threads (any order, at the same time), end once
 * after all of them have returned. *a and what it points to must stay valid until then. */
typedef struct tkv_job tkv_job;
TKV_API int            tkv_attend_begin(const tkv_cache* cache, int layer, const tkv_attention* a, tkv_job** job);
TKV_API void           tkv_attend_run(tkv_job* job);
TKV_API int            tkv_attend_end(tkv_job* job); /* TKV_OK, or what went wrong in any of the threads */

/* ---- state --------------------------------------------------------------------------------------------------------- */

/* Cells 0 … n-1 of a stream as bytes: header (magic, versions, shapes, specification), canonical rows, the keys' mean, exact rows,
 * checksum. Loading gives the codes back, and the exact rows as the newest of the stream in the order in which they were written. Keys are
 * coded minus the mean: a cache in which nothing was written since its creation or tkv_cache_clear takes the mean of the state, if that has
 * one, and gets the same bits; any other one codes the keys again with its own mean, which costs a little. */
TKV_API size_t tkv_state_bytes(const tkv_cache* cache, int64_t n);
TKV_API int    tkv_state_save(const tkv_cache* cache, int stream, int64_t n, void* bytes, size_t size);
/* Reads untrusted bytes. Anything that does not fit this cache exactly is refused and changes nothing. *n: number of cells. */
TKV_API int tkv_state_load(tkv_cache* cache, int stream, const void* bytes, size_t size, int64_t* n);

#ifdef __cplusplus
}
#endif

#endif
