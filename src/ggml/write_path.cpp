// SET_ROWS: new keys and values of a batch into the compressed cache.
#include <stdexcept>

#include "ggml/cache_ops.h"
#include "ggml/exact_cache.h"
#include "ggml/self_profile.h"

namespace tightkv {

bool can_write_rows(const ggml_tensor* node) {
    const CacheTensor* c    = tiles_of(node);
    const ggml_tensor *rows = node->src[0], *cells = node->src[1];
    return c && rows && cells && rows->type == GGML_TYPE_F32 && (cells->type == GGML_TYPE_I64 || cells->type == GGML_TYPE_I32) &&
           node->ne[0] == c->n_embd() && node->ne[2] == 1 && node->ne[3] == 1 && rows->ne[2] == 1 && rows->ne[3] == 1 &&
           rows->nb[0] == sizeof(float) && node->nb[1] == static_cast<size_t>(c->n_embd()) * 2;
}

// The keys' mean may be due, a profile is measured, or exact rows need a table of the batch: seldom once a text is under way, and then no
// thread has to wait for one of them.
bool needs_preparation(const CacheTensor& c) { return c.calibrating() || c.collector() || (c.exact() && c.exact_cache()->batch_table()); }

void prepare_rows(const ggml_tensor* node) {
    CacheTensor* c = cache_of(node);
    if (c->calibrating()) c->calibrate(node);
    if (SelfProfile* p = c->collector()) p->add_rows(*c, node);
    if (c->exact()) c->exact_cache()->prepare_write(*c, node->src[0]);
}

// A byte of V mixes tokens of one tile, so all rows of a (head, tile) go to the same thread.
void write_rows(const ggml_tensor* node, int thread, int n_threads) {
    CacheTensor*       c    = cache_of(node);
    const ggml_tensor *rows = node->src[0], *cells = node->src[1];
    const int          d = c->head_dim(), heads = c->store()->shape().n_kv_heads;
    const int64_t      first = c->first_cell(node);
    StoreRow           some[kEncodeRows];
    float              kept[kEncodeRows][kMaxHeadDim];
    size_t             n     = 0;
    const auto         write = [&] { c->write_rows({some, n}), n = 0; };
    for (int64_t i = 0; i < rows->ne[1]; i++) {
        const int64_t cell = first + row_index(cells, i);
        if (cell < first || cell >= first + node->ne[1]) {
            write();
            throw std::out_of_range("a row index outside the cache view");
        }
        const float* x    = row_of(rows, i);
        const auto   tile = cell % c->n_cells() / kTileTokens;
        for (int h = 0; h < heads; h++) {
            if ((tile * heads + h) % n_threads != thread) continue;
            const float* row = x + static_cast<ptrdiff_t>(h) * d;
            if (c->exact()) {
                c->as_kept(row, kept[n], d);
                row = kept[n];
                c->exact_cache()->write_row(*c, static_cast<size_t>(i), h, row);
            }
            some[n++] = {static_cast<int>(cell / c->n_cells()), h, cell % c->n_cells(), row};
            if (n == kEncodeRows) write();
        }
    }
    write();
}

} // namespace tightkv
