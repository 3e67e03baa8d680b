// The cache specification: what is accepted, how it prints, and every complaint with its position.
#include "cache/cache_spec.h"

#include <gtest/gtest.h>

#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

CacheSpec parse(const std::string& text) {
    CacheSpec    spec;
    const Status s = parse_cache_spec(text, spec);
    EXPECT_TRUE(s.ok()) << text << ": " << s.message();
    return spec;
}

} // namespace

TEST(CacheSpec, Accepts) {
    for (const Format& f : all_formats()) {
        const CacheSpec s = parse(f.name);
        EXPECT_EQ(s.k, f.id);
        EXPECT_EQ(s.v, f.id);
        EXPECT_EQ(s.n_first + s.n_last, 0);
    }
    const CacheSpec s = parse("k=turbo4:v=turbo3:first=f16x2:last=turbo8x12");
    EXPECT_EQ(s.k, FormatId::turbo4);
    EXPECT_EQ(s.v, FormatId::turbo3);
    EXPECT_EQ(s.first, FormatId::f16);
    EXPECT_EQ(s.n_first, 2);
    EXPECT_EQ(s.last, FormatId::turbo8);
    EXPECT_EQ(s.n_last, 12);
    EXPECT_EQ(parse("last=turbo8x12:v=turbo3:first=f16x2:k=turbo4"), s) << "parts in any order";
    EXPECT_EQ(parse("turbo3:first=turbo8x1"), parse("k=turbo3:v=turbo3:first=turbo8x1"));
}

TEST(CacheSpec, ProfileNamesAFile) {
    EXPECT_EQ(parse("turbo4").profile, "");
    EXPECT_EQ(parse("turbo4:profile=a b.tkv").profile, "a b.tkv");
    EXPECT_EQ(parse("profile=\"/x/a:b=c\":k=turbo4:v=turbo3").profile, "/x/a:b=c");
    EXPECT_EQ(parse("turbo4:profile=\"auto\"").profile, "auto") << "a file of that name";
    for (const char* text : {"turbo4:profile=a.tkv", "turbo4:profile=\"a:b\"", "turbo4:profile=\"auto\"", "turbo4:sparse_v=0:profile=x=y"})
        EXPECT_EQ(parse(text).to_string(), text);
    EXPECT_EQ(parse("turbo4:profile=\"a\"").to_string(), "turbo4:profile=a");
    EXPECT_FALSE(parse("turbo4:profile=a") == parse("turbo4"));
}

TEST(CacheSpec, ProfileAutoIsNoFile) {
    const CacheSpec s = parse("turbo3:sink=4:profile=auto");
    EXPECT_TRUE(s.self_profile);
    EXPECT_EQ(s.profile, "");
    EXPECT_EQ(s.to_string(), "turbo3:sink=4:profile=auto");
    EXPECT_EQ(parse("profile=auto:sink=4:k=turbo3:v=turbo3"), s);
    EXPECT_FALSE(s == parse("turbo3:sink=4"));
    EXPECT_FALSE(parse("turbo3:profile=\"auto\"").self_profile) << "a file of that name";
    EXPECT_FALSE(parse("turbo3:profile=auto.tkv").self_profile);
    EXPECT_FALSE(parse("auto").self_profile);
}

TEST(CacheSpec, PrintsCanonically) {
    struct Case {
        const char *text, *canonical;
    };
    for (const Case& c : {Case{"turbo3", "turbo3"},
                          {"k=turbo3:v=turbo3", "turbo3"},
                          {"v=turbo3:k=turbo4", "k=turbo4:v=turbo3"},
                          {"turbo4:last=turbo8x1:first=f16x02", "turbo4:first=f16x2:last=turbo8x1"},
                          {"turbo2:first=f16x0", "turbo2"},
                          {"turbo3:mean=064:window=32:sink=4", "turbo3:sink=4:window=32:mean=64"},
                          {"turbo3:sink=0:window=0:mean=0", "turbo3"},
                          {"sink=4096:k=turbo4:mean=16:v=turbo2:window=4096", "k=turbo4:v=turbo2:sink=4096:window=4096:mean=16"},
                          {"turbo4:sparse_v=0:window=1:last=f16x1", "turbo4:last=f16x1:window=1:sparse_v=0"},
                          {"k=f16:v=turbo2", "k=f16:v=turbo2"}})
        EXPECT_EQ(parse(c.text).to_string(), c.canonical) << c.text;
}

TEST(CacheSpec, PrintedTextMeansTheSame) { // every combination
    for (const Format& k : all_formats())
        for (const Format& v : all_formats())
            for (const Format& first : all_formats())
                for (const int n_first : {0, 1, 7})
                    for (const int n_last : {0, 3}) {
                        CacheSpec s;
                        s.k = k.id, s.v = v.id, s.n_first = n_first, s.n_last = n_last;
                        s.first = first.id, s.last = k.id;
                        const CacheSpec back = parse(s.to_string());
                        EXPECT_EQ(back.to_string(), s.to_string());
                        for (int i = 0; i < 30; i++) {
                            EXPECT_EQ(back.k_of(i, 30), s.k_of(i, 30)) << s.to_string();
                            EXPECT_EQ(back.v_of(i, 30), s.v_of(i, 30)) << s.to_string();
                        }
                    }
}

TEST(CacheSpec, ComplaintsNamePositionAndAcceptedWords) {
    struct Case {
        const char* text;
        int         position; // 1 = first character
        const char* says;
    };
    const char* const formats = "turbo2, turbo3, turbo4, turbo8, f16, turbo2t, turbo3t, turbo4t";
    const char* const keys    = "k=, v=, first=, last=, sink=, window=, mean=, sparse_v=, profile=";
    for (const Case& c : {
             Case{"", 1, formats},
             {"turbo5", 1, "'turbo5'"},
             {"turbo5", 1, formats},
             {"Turbo4", 1, formats},
             {" turbo4", 1, formats},
             {"turbo4 ", 1, "'turbo4 '"},
             {"turbo4:", 8, keys},
             {":", 1, formats},
             {":turbo4", 1, formats},
             {"k=turbo4:turbo3", 10, keys},
             {"k=turbo4", 9, "v"},
             {"v=turbo4", 9, "k"},
             {"first=f16x2", 12, "k"},
             {"k=:v=turbo3", 3, formats},
             {"k=turbo4:v=turbo9", 12, formats},
             {"k=turbo4:v=turbo3:x=turbo2", 19, keys},
             {"k=turbo4:v=turbo3::first=f16x1", 19, keys},
             {"k=turbo4:v=turbo3:K=turbo2", 19, "'K'"},
             {"k=turbo4:v=turbo3:k=turbo2", 19, "twice"},
             {"k=turbo4:v=turbo3:v=turbo3", 19, "twice"},
             {"turbo4:k=turbo3", 8, "twice"},
             {"turbo4:first=f16x1:first=f16x1", 20, "twice"},
             {"turbo4:last=f16x1:last=f16x1", 19, "twice"},
             {"turbo4:sparse_v=", 17, "1e-6"},
             {"turbo4:sparse_v=x", 17, "0.01"},
             {"turbo4:sparse_v=-1", 17, "0.01"},
             {"turbo4:sparse_v=0.02", 17, "0.01"},
             {"turbo4:sparse_v=nan", 17, "0.01"},
             {"turbo4:sparse_v=0:sparse_v=0", 19, "twice"},
             {"turbo4:first=f16", 14, "f16x2"},
             {"turbo4:first=", 14, "f16x2"},
             {"turbo4:first=f16x", 18, "0 to 1000000"},
             {"turbo4:first=f16x-1", 18, "'-1'"},
             {"turbo4:first=f16x1.5", 18, "'1.5'"},
             {"turbo4:first=f16x99999999999999999999", 18, "0 to 1000000"},
             {"turbo4:first=f16x1000001", 18, "0 to 1000000"},
             {"turbo4:first=q8_0x2", 14, formats},
             {"turbo4:last=x2", 13, formats},
             {"turbo4,turbo3", 1, formats},
             {"turbo4:sink=x", 13, "'x' is no count; accepted: 0 to 4096"},
             {"turbo4:sink=4097", 13, "0 to 4096"},
             {"turbo4:sink=-1", 13, "0 to 4096"},
             {"turbo4:sink=4:window=32:sink=4", 25, "'sink' is given twice"},
             {"turbo4:window=", 15, "0 to 4096"},
             {"turbo4:window=4097", 15, "0 to 4096"},
             {"turbo4:window=99999999999999999999", 15, "0 to 4096"},
             {"turbo4:window=1:window=1", 17, "'window' is given twice"},
             {"turbo4:sink", 8, keys},
             {"turbo4:mean=", 13, "accepted: 0 (off) or 16 to 4096"},
             {"turbo4:mean=1.5", 13, "accepted: 0 (off) or 16 to 4096"},
             {"turbo4:mean=4097", 13, "accepted: 0 (off) or 16 to 4096"},
             {"turbo4:mean=1", 13, "accepted: 0 (off) or 16 to 4096"},
             {"turbo4:mean=15", 13, "accepted: 0 (off) or 16 to 4096"},
             {"turbo4:mean=64:mean=0", 16, "'mean' is given twice"},
             {"sink=4:window=32", 17, "the format of k is missing"},
             {"auto:sink=4", 1, "auto takes no other parts; it stands for turbo3t"},
             {"turbo5", 1, "accepted: auto, turbo2"},
             {"turbo4:profile=auto:profile=a", 21, "twice"},
             {"turbo4:profile=a:profile=auto", 18, "twice"},
             {"turbo4:profile=a:profile=a", 18, "twice"},
             {"turbo4:profile=\"\"", 16, "file name"},
             {"turbo4:profile=\"a", 16, "quotes"},
             {"turbo4:profile=a\"b\"", 16, "quotes"},
             {"turbo4:profile=a\nb", 16, "control"},
             {"turbo4:profile=", 16, "file name"},
             {"turbo8t", 1, formats},
         }) {
        CacheSpec spec;
        spec.k = FormatId::turbo2, spec.n_last = 17;
        const CacheSpec before = spec;
        const Status    s      = parse_cache_spec(c.text, spec);
        EXPECT_EQ(s.code(), StatusCode::kInvalidArgument) << c.text << ": " << s.message();
        EXPECT_NE(s.message().find("position " + std::to_string(c.position) + ":"), std::string::npos)
            << "'" << c.text << "': " << s.message();
        EXPECT_NE(s.message().find(c.says), std::string::npos) << "'" << c.text << "': " << s.message();
        EXPECT_EQ(spec, before) << c.text << ": a refused text changes nothing";
    }
}

TEST(CacheSpec, BoundaryLayers) {
    const CacheSpec s   = parse("k=turbo4:v=turbo3:first=f16x2:last=turbo8x1");
    const FormatId  k[] = {FormatId::f16, FormatId::f16, FormatId::turbo4, FormatId::turbo4, FormatId::turbo8};
    for (int i = 0; i < 5; i++) {
        EXPECT_EQ(s.k_of(i, 5), k[i]) << i;
        EXPECT_EQ(s.v_of(i, 5), k[i] == FormatId::turbo4 ? FormatId::turbo3 : k[i]) << i;
    }
    EXPECT_EQ(s.k_of(0, 1), FormatId::f16) << "first wins where both would apply";
}

TEST(CacheSpec, ExactRowsAndMean) {
    const CacheSpec s = parse("turbo3:sink=4:window=32:mean=64:first=f16x1:last=turbo8x1");
    EXPECT_EQ(s.sink, 4);
    EXPECT_EQ(s.window, 32);
    EXPECT_EQ(s.mean, 64);
    EXPECT_FALSE(s.exact_rows(0, 3)) << "f16 already";
    EXPECT_TRUE(s.exact_rows(1, 3) && s.exact_rows(2, 3));
    EXPECT_TRUE(parse("k=f16:v=turbo4:window=1").exact_rows(0, 1)) << "one operand is enough";
    EXPECT_TRUE(parse("k=turbo4:v=f16:sink=1").exact_rows(0, 1));
    EXPECT_FALSE(parse("turbo3:mean=64").exact_rows(0, 1));
    const CacheSpec none = parse("turbo3");
    EXPECT_EQ(none.sink + none.window + none.mean, 0);
    EXPECT_EQ(parse(s.to_string()), s);
}

TEST(CacheSpec, BitsPerValue) {
    EXPECT_DOUBLE_EQ(parse("turbo3").bits_per_value(32, 128, 128, 0), 3.125);
    EXPECT_DOUBLE_EQ(parse("k=turbo4:v=turbo2").bits_per_value(32, 128, 128, 0), 3.125);
    EXPECT_DOUBLE_EQ(parse("f16").bits_per_value(10, 128, 64, 0), 16.0);
    EXPECT_DOUBLE_EQ(parse("turbo4:first=f16x1:last=f16x1").bits_per_value(4, 64, 64, 0), (2 * 16 + 2 * 4.25) / 4);
    EXPECT_DOUBLE_EQ(parse("k=turbo4:v=turbo2").bits_per_value(1, 192, 128, 0), 8.0 * (98 + 34) / 320);
    EXPECT_DOUBLE_EQ(parse("turbo4").bits_per_value(0, 128, 128, 0), 0.0);
}

// The table of exact rows: sinks once per 1024 cells, the window and 3 more for small batches, 16 bits a value, over all cells.
TEST(CacheSpec, BitsPerValueWithTheTable) {
    const auto bits = [](const char* text, int64_t n) { return parse(text).bits_per_value(32, 128, 128, n); };
    for (const int64_t n : {512, 2048, 8192, 0}) EXPECT_DOUBLE_EQ(bits("turbo3:mean=64", n), 3.125) << "a mean costs nothing that counts";
    EXPECT_DOUBLE_EQ(bits("turbo3:sink=4:window=32", 512), 3.125 + 16.0 * (4 + 35) / 512);
    EXPECT_DOUBLE_EQ(bits("turbo3:sink=4:window=32", 2048), 3.125 + 16.0 * (8 + 35) / 2048);
    EXPECT_DOUBLE_EQ(bits("turbo3:sink=4:window=32", 8192), 3.125 + 16.0 * (32 + 35) / 8192);
    EXPECT_DOUBLE_EQ(bits("turbo3:sink=4:window=32", 0), 3.125) << "no cache, no table";
    EXPECT_DOUBLE_EQ(bits("turbo3:sink=4", 512), 3.125 + 16.0 * 4 / 512);
    EXPECT_DOUBLE_EQ(bits("turbo3:window=1", 512), 3.125 + 16.0 * 4 / 512);
    EXPECT_DOUBLE_EQ(bits("turbo3:window=4096", 512), 3.125 + 16.0 * (512 + 3) / 512) << "no more rows than cells";
    EXPECT_DOUBLE_EQ(bits("turbo3:sink=4096", 512), 3.125 + 16.0);
    EXPECT_DOUBLE_EQ(bits("f16:sink=4:window=32", 512), 16.0) << "nothing is compressed";
    EXPECT_DOUBLE_EQ(bits("turbo4:window=32:first=f16x8", 512), (8 * 16 + 24 * (4.125 + 16.0 * 35 / 512)) / 32);
}

// What `auto` promises: within 3.6 bits at 2048 cells and less in larger caches. At head_dim 32 a scale per row costs as much again.
TEST(CacheSpec, AutoStaysWithinItsBits) {
    const CacheSpec s = parse("auto");
    for (const int d : {64, 96, 128, 256, 576})
        for (const int64_t n : {2048, 8192, 32768, 1 << 20}) {
            EXPECT_LE(s.bits_per_value(30, d, d, n), 3.6) << d << ", " << n;
            EXPECT_LE(s.bits_per_value(30, d, d, n), s.bits_per_value(30, d, d, 2048)) << d << ", " << n;
        }
    EXPECT_DOUBLE_EQ(s.bits_per_value(30, 32, 32, 2048), 3.5 + 16.0 * (8 + 35) / 2048);
}

// Any text either parses, and then prints and parses to itself, or is refused with a position inside it.
TEST(CacheSpec, RandomTexts) {
    Random                         random(41);
    const std::vector<std::string> words    = {"turbo2",
                                               "turbo3",
                                               "turbo4",
                                               "turbo8",
                                               "f16",
                                               "turbo3t",
                                               "k=",
                                               "v=",
                                               "first=",
                                               "last=",
                                               "sink=",
                                               "window=",
                                               "mean=",
                                               "16",
                                               "profile=",
                                               ":",
                                               ":",
                                               ":",
                                               "x",
                                               "x2",
                                               "=",
                                               "\"",
                                               "4",
                                               "0",
                                               "-",
                                               " ",
                                               "\xff",
                                               ",",
                                               std::string(1, '\0')};
    int                            accepted = 0;
    for (int i = 0; i < 200000; i++) {
        std::string text;
        for (int n = random.below(9); n >= 0; n--)
            text +=
                random.below(30) ? words[random.below(static_cast<int>(words.size()))] : std::string(1, static_cast<char>(random.next()));
        CacheSpec    spec;
        const Status s = parse_cache_spec(text, spec);
        if (s.ok()) {
            accepted++;
            CacheSpec back;
            ASSERT_TRUE(parse_cache_spec(spec.to_string(), back).ok()) << text;
            ASSERT_EQ(back.to_string(), spec.to_string());
            continue;
        }
        const size_t at = s.message().find("position ");
        ASSERT_NE(at, std::string::npos) << s.message();
        const int position = std::atoi(s.message().c_str() + at + 9);
        ASSERT_GE(position, 1) << text << ": " << s.message();
        ASSERT_LE(position, static_cast<int>(text.size()) + 1) << text << ": " << s.message();
    }
    EXPECT_GT(accepted, 100) << "the generator must also reach valid texts";
}
