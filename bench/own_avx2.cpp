#include "own_avx2.h"

#include <immintrin.h>

#include <initializer_list>

namespace tightkv::bench {

namespace {

constexpr float kNegInf = -__builtin_inff();

// 2^x for x <= 0; Taylor in the fraction, relative error 2e-7. Below -126: 2^-126, as good as zero beside the largest weight of 1.
inline __m256 exp2_ps(__m256 x) {
    x              = _mm256_max_ps(x, _mm256_set1_ps(-126.0f));
    const __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(x, n);
    __m256       y = _mm256_set1_ps(1.540353e-4f);
    for (const float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(c));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
inline float  exp2_one(float x) { return _mm256_cvtss_f32(exp2_ps(_mm256_set1_ps(x))); }
inline __m256 load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

// Lane i: the sum of a[i].
inline __m256 sums(const __m256* a) {
    const __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    const __m256 y = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
}

// ---- few rows

template <_mm_hint Hint> inline void prefetch(const uint16_t* row, int d) {
    for (int i = 0; i < d; i += 32) _mm_prefetch(reinterpret_cast<const char*>(row + i), Hint);
}

// s: [64][G]. Eight accumulators: 8/G keys times G rows. Meanwhile the same rows of V are fetched, which their own loop reads in columns,
// and those of the next tile: a quarter less time at 32K keys on Zen 5.
template <int G> void scores(const F16Run& r, int64_t j0, int n, float* s) {
    constexpr int kKeys = 8 / G;
    for (int t = 0; t < n; t += kKeys) {
        const uint16_t* key[kKeys];
        for (int k = 0; k < kKeys; k++) {
            const int64_t j = j0 + (t + k < n ? t + k : n - 1);
            key[k]          = r.k + j * r.d;
            prefetch<_MM_HINT_T0>(r.v + j * r.d, r.d);
            if (j + kOwnTile < r.end)
                prefetch<_MM_HINT_T1>(r.k + (j + kOwnTile) * r.d, r.d), prefetch<_MM_HINT_T1>(r.v + (j + kOwnTile) * r.d, r.d);
        }
        __m256 acc[8];
        for (__m256& a : acc) a = _mm256_setzero_ps();
        for (int i = 0; i < r.d; i += 8) {
            __m256 x[kKeys];
            for (int k = 0; k < kKeys; k++) x[k] = load_half(key[k] + i);
            for (int g = 0; g < G; g++) {
                const __m256 q = _mm256_loadu_ps(r.q + g * r.d + i);
                for (int k = 0; k < kKeys; k++) acc[k * G + g] = _mm256_fmadd_ps(x[k], q, acc[k * G + g]);
            }
        }
        _mm256_store_ps(s + t * G, sums(acc));
    }
    for (int i = n * G; i < kOwnTile * G; i++) s[i] = kNegInf;
}

template <int G> void softmax(const F16Run& r, float* s) { // s becomes the weights
    __m256 top = _mm256_set1_ps(kNegInf);
    for (int i = 0; i < kOwnTile * G; i += 8) top = _mm256_max_ps(top, _mm256_load_ps(s + i));
    alignas(32) float most[8], sum[8];
    _mm256_store_ps(most, top);
    for (int i = G; i < 8; i++) most[i % G] = most[i] > most[i % G] ? most[i] : most[i % G];
    for (int g = 0; g < G; g++) {
        if (most[g] <= r.m[g]) {
            most[g] = r.m[g];
            continue;
        }
        const float  alpha = exp2_one(r.m[g] - most[g]);
        const __m256 a     = _mm256_set1_ps(alpha);
        for (int i = 0; i < r.d; i += 8) _mm256_storeu_ps(r.o + g * r.d + i, _mm256_mul_ps(_mm256_loadu_ps(r.o + g * r.d + i), a));
        r.l[g] *= alpha, r.m[g] = most[g];
    }
    for (int i = G; i < 8; i++) most[i] = most[i % G];
    const __m256 m     = _mm256_load_ps(most);
    __m256       total = _mm256_setzero_ps();
    for (int i = 0; i < kOwnTile * G; i += 8) {
        const __m256 p = exp2_ps(_mm256_sub_ps(_mm256_load_ps(s + i), m));
        _mm256_store_ps(s + i, p);
        total = _mm256_add_ps(total, p);
    }
    _mm256_store_ps(sum, total);
    for (int i = 0; i < 8; i++) r.l[i % G] += sum[i];
}

template <int G> void weigh(const F16Run& r, int64_t j0, int n, const float* p) {
    constexpr int kVectors = G == 1 ? 4 : 8 / G; // head_dim is a multiple of 32
    for (int i = 0; i < r.d; i += 8 * kVectors) {
        __m256 acc[G][kVectors];
        for (auto& row : acc)
            for (__m256& a : row) a = _mm256_setzero_ps();
        const uint16_t* v = r.v + j0 * r.d + i;
        for (int t = 0; t < n; t++, v += r.d) {
            __m256 x[kVectors];
            for (int c = 0; c < kVectors; c++) x[c] = load_half(v + 8 * c);
            for (int g = 0; g < G; g++) {
                const __m256 w = _mm256_broadcast_ss(p + t * G + g);
                for (int c = 0; c < kVectors; c++) acc[g][c] = _mm256_fmadd_ps(x[c], w, acc[g][c]);
            }
        }
        for (int g = 0; g < G; g++)
            for (int c = 0; c < kVectors; c++) {
                float* const o = r.o + g * r.d + i + 8 * c;
                _mm256_storeu_ps(o, _mm256_add_ps(_mm256_loadu_ps(o), acc[g][c]));
            }
    }
}

template <int G> void run_rows(const F16Run& r) {
    alignas(32) float s[kOwnTile * G];
    for (int64_t j = r.begin; j < r.end; j += kOwnTile) {
        const int n = static_cast<int>(r.end - j < kOwnTile ? r.end - j : kOwnTile);
        scores<G>(r, j, n, s), softmax<G>(r, s), weigh<G>(r, j, n, s);
    }
}

// ---- many rows

void expand(const uint16_t* rows, int n, float* out) {
    for (int i = 0; i < n; i += 8) _mm256_store_ps(out + i, load_half(rows + i));
}

// c[m][16] (+)= sum over k of a[m * a_row + k * a_col] * b[k][16], 4 rows at a time: 8 accumulators, 2 vectors of b, 4 broadcasts.
template <class Finish> inline void product(const float* a, int a_row, int a_col, int rows, int depth, const float* b, Finish finish) {
    for (int m = 0; m < rows; m += 4) {
        __m256       acc[4][2];
        const float* x = a + m * a_row;
        for (auto& row : acc) row[0] = row[1] = _mm256_setzero_ps();
        for (int k = 0; k < depth; k++, x += a_col) {
            const __m256 b0 = _mm256_load_ps(b + k * kOwnPanel), b1 = _mm256_load_ps(b + k * kOwnPanel + 8);
            for (int i = 0; i < 4; i++) {
                const __m256 w = _mm256_broadcast_ss(x + i * a_row);
                acc[i][0]      = _mm256_fmadd_ps(w, b0, acc[i][0]);
                acc[i][1]      = _mm256_fmadd_ps(w, b1, acc[i][1]);
            }
        }
        for (int i = 0; i < 4; i++) finish(m + i, acc[i][0], acc[i][1]);
    }
}

void panel_tile(const F32Block& b, int panel, int64_t j0, int64_t least_visible) {
    const int    d = b.d, row0 = panel * kOwnPanel;
    float* const s = b.scores;
    product(b.k_tile, d, 1, kOwnTile, d, b.q + static_cast<int64_t>(panel) * d * kOwnPanel,
            [&](int t, __m256 x, __m256 y) { _mm256_store_ps(s + t * kOwnPanel, x), _mm256_store_ps(s + t * kOwnPanel + 8, y); });
    if (least_visible < j0 + kOwnTile)
        for (int r = 0; r < kOwnPanel; r++)
            for (int64_t t = b.visible[row0 + r] > j0 ? b.visible[row0 + r] - j0 : 0; t < kOwnTile; t++) s[t * kOwnPanel + r] = kNegInf;

    __m256 alpha[2];
    for (int h = 0; h < 2; h++) {
        float *      m = b.m + row0 + 8 * h, *l = b.l + row0 + 8 * h;
        const __m256 before = _mm256_loadu_ps(m);
        __m256       top    = before;
        for (int t = 0; t < kOwnTile; t++) top = _mm256_max_ps(top, _mm256_load_ps(s + t * kOwnPanel + 8 * h));
        // A row that has seen nothing yet: -inf - -inf would be NaN; its weights are 2^-126 then, and vanish with the first key.
        const __m256 at = _mm256_max_ps(top, _mm256_set1_ps(-1e30f));
        alpha[h]        = exp2_ps(_mm256_sub_ps(before, at));
        __m256 total    = _mm256_mul_ps(_mm256_loadu_ps(l), alpha[h]);
        for (int t = 0; t < kOwnTile; t++) {
            const __m256 p = exp2_ps(_mm256_sub_ps(_mm256_load_ps(s + t * kOwnPanel + 8 * h), at));
            _mm256_store_ps(s + t * kOwnPanel + 8 * h, p);
            total = _mm256_add_ps(total, p);
        }
        _mm256_storeu_ps(m, top), _mm256_storeu_ps(l, total);
    }
    float* const o = b.o + static_cast<int64_t>(panel) * d * kOwnPanel;
    product(b.v_tile, 1, d, d, kOwnTile, s, [&](int i, __m256 x, __m256 y) {
        float* const at = o + i * kOwnPanel;
        _mm256_store_ps(at, _mm256_fmadd_ps(_mm256_load_ps(at), alpha[0], x));
        _mm256_store_ps(at + 8, _mm256_fmadd_ps(_mm256_load_ps(at + 8), alpha[1], y));
    });
}

} // namespace

void own_f16_run(const F16Run& r) {
    switch (r.rows) {
    case 1: return run_rows<1>(r);
    case 2: return run_rows<2>(r);
    case 4: return run_rows<4>(r);
    default: return run_rows<8>(r);
    }
}

void own_f32_block(const F32Block& b) {
    const int rows = b.panels * kOwnPanel;
    int64_t   end  = 0;
    for (int r = 0; r < rows; r++) end = b.visible[r] > end ? b.visible[r] : end;
    for (int64_t j = 0; j < end; j += kOwnTile) {
        const int n = static_cast<int>(end - j < kOwnTile ? end - j : kOwnTile);
        expand(b.k + j * b.d, n * b.d, b.k_tile);
        expand(b.v + j * b.d, n * b.d, b.v_tile); // rows behind n are left over from the tile before, or zero: weight 0
        for (int p = 0; p < b.panels; p++) {
            int64_t least = end, most = 0;
            for (int r = p * kOwnPanel; r < (p + 1) * kOwnPanel; r++) {
                least = b.visible[r] < least ? b.visible[r] : least;
                most  = b.visible[r] > most ? b.visible[r] : most;
            }
            if (most > j) panel_tile(b, p, j, least);
        }
    }
}

} // namespace tightkv::bench
