// Profiles: what is written is read back, and everything else is refused with one line that names what is wrong.
#include "cache/profile.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <limits>

#include <gtest/gtest.h>

#include "base/checksum.h"
#include "base/half.h"
#include "cache/kv_cache.h"
#include "codec/oracle.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

// A well-conditioned matrix with its inverse: a rotation in the plane of each pair of coordinates, each scaled.
HeadProfile dense_head(Random& random, int d) {
    HeadProfile  p{gaussian(random, d), std::vector<float>(d * d), std::vector<float>(d * d)};
    const size_t n = d;
    for (size_t i = 0; i + 1 < n; i += 2) {
        const double a = 6.3 * random.uniform(), s = 0.5 + random.uniform();
        const auto   c = static_cast<float>(s * std::cos(a)), w = static_cast<float>(s * std::sin(a)), s2 = static_cast<float>(s * s);
        p.matrix[i * n + i] = c, p.matrix[i * n + i + 1] = -w, p.matrix[(i + 1) * n + i] = w, p.matrix[(i + 1) * n + i + 1] = c;
        p.inverse[i * n + i] = c / s2, p.inverse[i * n + i + 1] = w / s2, p.inverse[(i + 1) * n + i] = -w / s2,
                          p.inverse[(i + 1) * n + i + 1] = c / s2;
    }
    return p;
}

Profile example() {
    Random  random(1);
    Profile p;
    p.architecture = "llama";
    p.made_from    = "demo.txt, 4096 tokens";
    for (const int block : {0, 2}) {
        LayerProfile l;
        l.block = block, l.head_dim_k = 64, l.head_dim_v = 32, l.norm = 0x0123456789abcdef + static_cast<uint64_t>(block);
        l.k = {dense_head(random, 64), {gaussian(random, 64), {}, {}}};
        l.v = {{}, dense_head(random, 32)};
        if (block == 2) l.v_format = FormatId::turbo4;
        p.layers.push_back(std::move(l));
    }
    return p;
}

std::vector<uint8_t> resealed(std::vector<uint8_t> bytes) {
    const uint64_t sum = fnv1a(bytes.data(), bytes.size() - 8);
    for (size_t b = 0; b < 8; b++) bytes[bytes.size() - 8 + b] = static_cast<uint8_t>(sum >> (8 * b));
    return bytes;
}

bool says(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

// The message; the profile must be untouched.
std::string refusal(const std::vector<uint8_t>& bytes) {
    Profile p;
    p.architecture = "untouched";
    const Status s = Profile::read(bytes, p);
    EXPECT_FALSE(s.ok());
    EXPECT_EQ(s.code(), StatusCode::kCorruptData);
    EXPECT_TRUE(p.architecture == "untouched" && p.layers.empty());
    EXPECT_EQ(s.message().find('\n'), std::string::npos);
    return s.message();
}

} // namespace

TEST(Profile, IsReadAsItWasWritten) {
    const Profile p = example();
    Profile       q;
    ASSERT_TRUE(Profile::read(p.write(), q).ok());
    EXPECT_EQ(p, q);
    EXPECT_EQ(q.write(), p.write());
}

TEST(Profile, IsSavedAndLoaded) {
    const Profile     p    = example();
    const std::string path = testing::TempDir() + "profile_test." + std::to_string(::getpid()) + ".saved.tkv";
    ASSERT_TRUE(p.save(path).ok());
    Profile q;
    ASSERT_TRUE(Profile::load(path, q).ok());
    EXPECT_EQ(p, q);
    std::remove(path.c_str());
    const Status s = Profile::load(path, q);
    EXPECT_PRED2(says, s.message(), path);
    EXPECT_PRED2(says, s.message(), "No such file");
    EXPECT_EQ(p, q) << "a failed load leaves the profile alone";
    EXPECT_PRED2(says, p.save("/no/such/folder/x.tkv").message(), "cannot write /no/such/folder/x.tkv");
}

TEST(Profile, TruncationIsFoundAtEveryByte) {
    const std::vector<uint8_t> whole = example().write();
    for (size_t n = 0; n < whole.size(); n += n < 200 ? 1 : 97) {
        std::vector<uint8_t> cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(n));
        refusal(cut);
        if (n >= 20) refusal(resealed(cut)); // also where the checksum is right
    }
    std::vector<uint8_t> longer = whole;
    longer.insert(longer.end(), 4, 0);
    EXPECT_PRED2(says, refusal(resealed(longer)), "longer than it says");
}

TEST(Profile, EveryFlippedByteIsFound) {
    const std::vector<uint8_t> whole = example().write();
    for (size_t at = 0; at < whole.size(); at += at < 200 ? 1 : 131) {
        std::vector<uint8_t> bytes = whole;
        bytes[at] ^= 0x40;
        refusal(bytes);
    }
}

TEST(Profile, RefusalsNameWhatIsWrong) {
    const auto message = [](auto change) {
        Profile p = example();
        change(p);
        return refusal(p.write());
    };
    EXPECT_PRED2(says, refusal({'h', 'e', 'l', 'l', 'o', ' ', 't', 'h', 'e', 'r', 'e'}), "no tightkv profile");
    std::vector<uint8_t> version = example().write();
    version[8]                   = 9;
    EXPECT_PRED2(says, refusal(resealed(version)), "version 9, this version of tightkv reads 1");
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    EXPECT_PRED2(says, message([&](Profile& p) { p.layers[0].k[1].mean[5] = nan; }), "not finite");
    EXPECT_PRED2(says, message([&](Profile& p) { p.layers[1].v[1].matrix[5] = inf; }), "not finite");
    EXPECT_PRED2(says, message([&](Profile& p) { p.layers[1].v[1].inverse[5] = nan; }), "not finite");
    EXPECT_PRED2(says, message([](Profile& p) { p.layers[0].k[0].inverse[3] += 0.5f; }), "inverse does not fit");
    EXPECT_PRED2(says, message([](Profile& p) { p.layers[0].head_dim_k = 40; }), "head_dim 40; accepted: multiples of 32");
    EXPECT_PRED2(says, message([](Profile& p) { p.layers[1].block = 0; }), "out of order");
    EXPECT_PRED2(says, message([](Profile& p) { p.layers.clear(); }), "0 layers");
    EXPECT_PRED2(says, message([](Profile& p) { p.layers[0].k.clear(), p.layers[0].v.clear(); }), "0 KV heads");
    EXPECT_PRED2(says, message([](Profile& p) { p.made_from = "\x1b[2J"; }), "cannot be printed");
}

// A count of a few bytes must not become an allocation of gigabytes.
TEST(Profile, HugeCountsAreRefusedBeforeMemoryIsTaken) {
    std::vector<uint8_t> bytes = example().write();
    for (const size_t at : {size_t{12}, size_t{16}, size_t{16 + 4 + 5}})
        for (const uint8_t high : {uint8_t{0x7f}, uint8_t{0xff}}) {
            std::vector<uint8_t> changed = bytes;
            changed[at + 3]              = high;
            refusal(resealed(changed));
        }
}

TEST(Profile, FingerprintDependsOnNormsAndBlocksAlone) {
    const Profile p  = example();
    Profile       q  = p;
    q.layers[0].k[0] = {}, q.made_from = "another text", q.layers[0].v_format = FormatId::turbo2;
    EXPECT_EQ(q.fingerprint(), p.fingerprint());
    EXPECT_EQ(p.fingerprint().size(), 16u);
    q.layers[1].norm++;
    EXPECT_NE(q.fingerprint(), p.fingerprint());
    q = p, q.layers[1].block = 3;
    EXPECT_NE(q.fingerprint(), p.fingerprint());
    const std::vector<uint8_t> a(16, 1), b(16, 2);
    EXPECT_EQ(norm_hash(norm_name(0), a), norm_hash("blk.0.attn_norm.weight", a));
    EXPECT_NE(norm_hash(norm_name(0), a), norm_hash(norm_name(1), a));
    EXPECT_NE(norm_hash(norm_name(0), a), norm_hash(norm_name(0), b));
}

TEST(Profile, TransformsAreThoseOfTheHeads) {
    const Profile p = example();
    Random        random(3);
    const auto    made = p.transforms(*p.layer_of_block(2), Operand::K, true);
    ASSERT_EQ(made.size(), 2u);
    EXPECT_EQ(p.layer_of_block(1), nullptr);
    EXPECT_TRUE(made[0]->dense());
    EXPECT_FALSE(made[1]->dense());
    const std::vector<float> x = gaussian(random, 64);
    std::vector<float>       y = x;
    made[0]->forward(y.data());
    const HeadProfile& head = p.layers[1].k[0];
    for (size_t i = 0; i < 64; i++) {
        double want = 0, size = 0;
        for (size_t j = 0; j < 64; j++) {
            const double term =
                static_cast<double>(head.matrix[i * 64 + j]) * (static_cast<double>(x[j]) - static_cast<double>(head.mean[j]));
            want += term, size += std::fabs(term);
        }
        EXPECT_NEAR(y[i], want, size * 65 * 0x1p-24); // 64 products and sums, and the mean
    }
    EXPECT_TRUE(p.transforms(p.layers[0], Operand::V, true)[0]->plain());
    EXPECT_TRUE(p.transforms(p.layers[0], Operand::K, false)[1]->plain()) << "without the mean";
}

namespace {

// example() in a shape that a KvCache can have, saved; gone with the test.
struct SavedProfile {
    Profile     profile = example();
    std::string path    = testing::TempDir() + "profile_test." + std::to_string(::getpid()) + ".tkv";
    SavedProfile() {
        Random random(7);
        for (LayerProfile& l : profile.layers) l.head_dim_v = 64, l.v = {dense_head(random, 64), {}};
        EXPECT_TRUE(profile.save(path).ok());
    }
    ~SavedProfile() { std::remove(path.c_str()); }
};

Status create(const std::string& text, const CacheShape& shape, std::unique_ptr<KvCache>& cache) {
    CacheSpec spec;
    EXPECT_TRUE(parse_cache_spec(text, spec).ok());
    return KvCache::create(spec, shape, cache);
}

} // namespace

TEST(Profile, CacheUsesItsTransformsAndFormats) {
    const SavedProfile       saved;
    std::unique_ptr<KvCache> cache, plain;
    const CacheShape         shape{2, 2, 64, 64, 1, 70};
    const Status             s = create("turbo3:profile=" + saved.path, shape, cache);
    ASSERT_TRUE(s.ok()) << s.message();
    ASSERT_TRUE(create("turbo3", shape, plain).ok());
    EXPECT_TRUE(cache->store(0, Operand::K).transform(0).dense());
    EXPECT_NE(cache->store(0, Operand::K).transform(0).mean(), nullptr);
    EXPECT_FALSE(cache->store(0, Operand::K).transform(1).dense());
    EXPECT_TRUE(cache->store(0, Operand::V).transform(0).dense());
    EXPECT_EQ(cache->store(0, Operand::V).transform(0).mean(), nullptr) << "no sink rows";
    EXPECT_EQ(cache->store(0, Operand::V).format().id, FormatId::turbo3);
    EXPECT_EQ(cache->store(1, Operand::V).format().id, FormatId::turbo4) << "the profile's choice";
    EXPECT_DOUBLE_EQ(cache->bits_per_value(), (3 * 3.25 + 4.25) / 4);

    // Rows around the mean lose less than they do without it.
    Random                   random(11);
    const std::vector<float> noise = gaussian(random, 2 * 64, 0.1);
    std::vector<float>       row(2 * 64), back(2 * 64);
    for (size_t i = 0; i < row.size(); i++) row[i] = saved.profile.layers[0].k[i / 64].mean[i % 64] + noise[i];
    const auto error = [&](KvCache& c) {
        c.write(0, Operand::K, 0, 5, row.data());
        c.read(0, Operand::K, 0, 5, back.data());
        double e = 0;
        for (size_t i = 0; i < row.size(); i++) e += std::pow(static_cast<double>(back[i] - row[i]), 2);
        return e;
    };
    // The error follows the norm of what is coded: noise of 0.1 beside a mean of about 1.
    EXPECT_LT(error(*cache), 0.1 * error(*plain));
}

// Sinks, a window and a measured mean beside a profile: its matrices stay, the keys' mean is the text's, values have one as there are
// sinks. Attention in double over what each cell holds says the same.
TEST(Profile, ExactRowsAndAMeanBesideIt) {
    const SavedProfile       saved;
    std::unique_ptr<KvCache> cache;
    const CacheShape         shape{2, 2, 64, 64, 1, 70};
    const Status             s = create("turbo3:sink=2:window=5:mean=16:profile=" + saved.path, shape, cache);
    ASSERT_TRUE(s.ok()) << s.message();
    const std::string before = kernels().name;
    ASSERT_TRUE(set_isa("scalar").ok()); // attention in f32
    const std::vector<float> of_profile(cache->store(0, Operand::K).transform(0).mean(),
                                        cache->store(0, Operand::K).transform(0).mean() + 64);
    EXPECT_NE(cache->store(0, Operand::V).transform(0).mean(), nullptr);

    constexpr int               n = 40;
    Random                      random(12);
    std::vector<KvCache::Token> tokens;
    for (int i = 0; i < n; i++) tokens.push_back({0, i, i});
    std::vector<float> rows[2];
    for (const Operand op : {Operand::K, Operand::V}) {
        std::vector<float>& x = rows[op == Operand::V];
        x                     = gaussian(random, n * 128);
        for (float& v : x) v = half_to_float(float_to_half(v + (op == Operand::K ? 1.5f : 0.0f)));
    }
    cache->begin_batch(tokens);
    for (const Operand op : {Operand::K, Operand::V}) cache->append(0, op, rows[op == Operand::V].data());
    const Transform& t = cache->store(0, Operand::K).transform(0);
    EXPECT_TRUE(t.dense());
    EXPECT_FALSE(std::equal(of_profile.begin(), of_profile.end(), t.mean()));

    const std::vector<float> q = gaussian(random, 128);
    std::vector<float>       out(128);
    AttentionArgs            a;
    ExactMasks               masks;
    AttentionJob             job;
    a.k = &cache->store(0, Operand::K), a.v = &cache->store(0, Operand::V);
    a.n_kv_heads = a.n_heads = 2, a.n_kv = n, a.q = q.data(), a.out = out.data(), a.scale = 0.125f;
    a.q_strides = a.out_strides = {512, 256, 512};
    cache->attach_exact(0, a, masks);
    ASSERT_TRUE(job.prepare(a, 1).ok());
    job.run();
    ASSERT_TRUE(set_isa(before).ok());
    for (int h = 0; h < 2; h++) {
        std::vector<double> kv[2];
        for (const Operand op : {Operand::K, Operand::V})
            for (int j = 0; j < n; j++) {
                std::vector<float> codes(64);
                cache->store(0, op).read(0, h, j, codes.data());
                const float* const exact = rows[op == Operand::V].data() + j * 128 + h * 64;
                const float* const x     = j < 2 || j >= n - 5 ? exact : codes.data();
                kv[op == Operand::V].insert(kv[op == Operand::V].end(), x, x + 64);
            }
        const std::vector<double> query(q.begin() + h * 64, q.begin() + h * 64 + 64), bias(n, 0.0);
        const std::vector<double> want = oracle::attend(query, kv[0], kv[1], bias, 0.125, 0, nullptr).out;
        // Dense products of 64 terms in f32, three on the way of a score and of a value: a few 1e-6; a row that is exact or not is 1e-2.
        for (int i = 0; i < 64; i++)
            EXPECT_NEAR(out[static_cast<size_t>(h * 64 + i)], want[static_cast<size_t>(i)], 5e-5) << h << ", " << i;
    }
}

TEST(Profile, CacheRefusesAnotherShapeAndAMissingFile) {
    const SavedProfile       saved;
    std::unique_ptr<KvCache> cache;
    const std::string        spec = "turbo4:profile=" + saved.path;
    EXPECT_PRED2(says, create(spec, {3, 2, 64, 64, 1, 64}, cache).message(), "has 2 layers, the cache has 3");
    EXPECT_PRED2(says, create(spec, {2, 4, 64, 64, 1, 64}, cache).message(), "2 KV heads of head_dim 64 in block 0, the cache has 4");
    EXPECT_PRED2(says, create(spec, {2, 1, 128, 64, 1, 64}, cache).message(), "the cache has 1 of head_dim 128");
    EXPECT_PRED2(says, create("turbo4:profile=/no/such.tkv", {2, 2, 64, 64, 1, 64}, cache).message(), "No such file");
    EXPECT_EQ(cache, nullptr);
}

TEST(Profile, ACacheThatSeesNoQueriesRefusesToMakeIts) {
    std::unique_ptr<KvCache> cache;
    const Status             s = create("turbo4:profile=auto", {2, 2, 64, 64, 1, 64}, cache);
    EXPECT_EQ(s.code(), StatusCode::kUnsupported);
    EXPECT_PRED2(says, s.message(), "accepted here: profile=FILE");
    EXPECT_EQ(cache, nullptr);
}

TEST(Profile, StatesBelongToTheProfileTheyWereMadeWith) {
    SavedProfile             saved;
    std::unique_ptr<KvCache> a, b, other;
    const CacheShape         shape{2, 2, 64, 64, 1, 64};
    const std::string        spec = "turbo4:profile=" + saved.path;
    ASSERT_TRUE(create(spec, shape, a).ok());
    ASSERT_TRUE(create(spec, shape, b).ok());
    saved.profile.layers[0].k[0].mean[3] += 1.0f;
    ASSERT_TRUE(saved.profile.save(saved.path).ok());
    ASSERT_TRUE(create(spec, shape, other).ok());
    std::vector<uint8_t> state(a->state_bytes(3));
    a->save_state(0, 3, state.data());
    int64_t n = 0;
    EXPECT_TRUE(b->load_state(0, state.data(), state.size(), n).ok());
    EXPECT_PRED2(says, other->load_state(0, state.data(), state.size(), n).message(), "was saved with cache");
}
