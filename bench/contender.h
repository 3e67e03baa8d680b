// One side of the comparison of attention operators: its cache, filled with the same rows as everyone's, and the operation on it.
#pragma once
#include <memory>
#include <string>

#include "attention_check.h"
#include "codec/format.h"
#include "thread_team.h"

namespace tightkv::bench {

class Contender {
public:
    virtual ~Contender()                         = default;
    virtual void         attend(int layer)       = 0; // the whole operation, all heads and query tokens
    virtual const float* output() const          = 0; // of the last attend(): [token][head][head_dim]
    virtual HeadRows     rows(int kv_head) const = 0; // of every layer: they hold the same rows
    virtual double       huge() const            = 0; // share of the cache in huge pages

    // Seconds per operation, over the layers in turn, for at least this long.
    virtual double  time(double least_seconds);
    virtual Verdict check(const AttentionData& data); // does one operation

    std::string name;            // turbo4, llama:q8_0, own:f16
    int         layers      = 1; // so many that the operations, one after the other, find nothing in the processor's caches
    double      layer_bytes = 0; // of the rows that one operation reads, K and V
    bool        ours        = false;

protected:
    int    next_         = 0; // layer
    double last_seconds_ = 0; // per operation
};

// How many layers of this size exceed `total` bytes together.
int layers_for(double layer_bytes, double total);

double kv_bytes(const AttentionShape& s, double row_bytes); // of one layer, K and V

// tightkv's own: AttentionJob over TileStores, with the kernels that are chosen.
std::unique_ptr<Contender> make_tightkv(const Format& f, const AttentionData& data, double total_bytes, ThreadTeam& team);

// Kernels as good as f16 rows allow, to compare with: own_kernels.h. which: f16 or f32.
std::unique_ptr<Contender> make_own(const std::string& which, const AttentionData& data, double total_bytes, ThreadTeam& team);

} // namespace tightkv::bench
