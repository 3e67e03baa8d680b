// Reading, writing and checking profiles.
#include "cache/profile.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "base/checksum.h"

namespace tightkv {

namespace {

constexpr char   kMagic[8] = {'t', 'k', 'v', 'c', 'a', 'l', 'i', 'b'};
constexpr size_t kChecksum = 8, kMaxText = 4096;
constexpr size_t kMaxBytes  = size_t{4} << 30; // of a file; 96 layers of 64 heads of 256 with all matrices take 6 GiB: nobody has that
constexpr int    kMaxBlock  = 100000;
constexpr int    kMaxKvHead = 65536;

class Writer {
public:
    void number(uint64_t v, int bytes) {
        for (int i = 0; i < bytes; i++) out_.push_back(static_cast<uint8_t>(v >> (8 * i)));
    }
    void text(std::string_view s) {
        number(s.size(), 4);
        out_.insert(out_.end(), s.begin(), s.end());
    }
    void floats(const std::vector<float>& x) {
        for (const float v : x) {
            uint32_t u;
            std::memcpy(&u, &v, 4);
            number(u, 4);
        }
    }
    std::vector<uint8_t> finish() {
        number(fnv1a(out_.data(), out_.size()), kChecksum);
        return std::move(out_);
    }

private:
    std::vector<uint8_t> out_;
};

// Reads while there are bytes; after the first failure everything is 0 and `good` is false.
class Reader {
public:
    explicit Reader(std::span<const uint8_t> bytes) : at_(bytes.data()), left_(bytes.size()) {}
    bool     good() const { return good_; }
    size_t   left() const { return left_; }
    uint64_t number(int bytes) {
        if (!has(static_cast<size_t>(bytes))) return 0;
        uint64_t v = 0;
        for (int i = 0; i < bytes; i++) v |= static_cast<uint64_t>(at_[i]) << (8 * i);
        skip(static_cast<size_t>(bytes));
        return v;
    }
    std::string text() {
        const uint64_t n = number(4);
        if (n > kMaxText || !has(n)) return good_ = false, std::string();
        std::string s(reinterpret_cast<const char*>(at_), n);
        skip(n);
        return s;
    }
    std::vector<float> floats(size_t n) {
        if (n > left_ / 4) return good_ = false, std::vector<float>();
        std::vector<float> x(n);
        for (float& v : x) {
            const auto u = static_cast<uint32_t>(number(4));
            std::memcpy(&v, &u, 4);
        }
        return x;
    }

private:
    bool has(size_t n) { return good_ = good_ && n <= left_; }
    void skip(size_t n) { at_ += n, left_ -= n; }

    const uint8_t* at_;
    size_t         left_;
    bool           good_ = true;
};

// Control characters would reach a terminal.
bool printable(const std::string& s) {
    for (const char c : s)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
    return true;
}

bool all_finite(const std::vector<float>& x) {
    for (const float v : x)
        if (!std::isfinite(v)) return false;
    return true;
}

// Is `inverse` that of `matrix`? Freivalds 1977: products with a few vectors instead of the product of the matrices. Wanted is an error
// below a hundredth of the row, a tenth of what the best codebook leaves; f32 matrices of condition d / 0.01, the worst that calibration
// makes, stay below d / 0.01 * 2^-24 = 0.006 at d = 1024.
bool inverse_fits(const HeadProfile& p, int d) {
    std::vector<double> x(static_cast<size_t>(d)), y(x.size());
    uint64_t            state = kSignSeed;
    for (int probe = 0; probe < 4; probe++) {
        for (double& v : x) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            v     = state >> 63 ? 1.0 : -1.0;
        }
        const float* row = p.matrix.data();
        for (double& v : y) {
            v = 0;
            for (const double xi : x) v += xi * static_cast<double>(*row++);
        }
        row          = p.inverse.data();
        double error = 0;
        for (const double xi : x) {
            double v = 0;
            for (const double yi : y) v += yi * static_cast<double>(*row++);
            error += (v - xi) * (v - xi);
        }
        if (!(error <= 1e-4 * d)) return false;
    }
    return true;
}

Status read_format(Reader& in, std::optional<FormatId>& id) {
    const std::string name = in.text();
    if (!in.good() || name.empty()) return {};
    const Format* f = find_format(name);
    if (!f)
        return corrupt_data("the profile chose a format that is unknown here" + (printable(name) ? ": '" + name + "'" : std::string()) +
                            "; accepted: " + format_names());
    id = f->id;
    return {};
}

Status read_heads(Reader& in, int d, int n_heads, std::vector<HeadProfile>& heads) {
    const size_t row = static_cast<size_t>(d);
    for (int h = 0; h < n_heads && in.good(); h++) {
        HeadProfile    p;
        const uint64_t parts = in.number(1);
        if (parts > 3) return corrupt_data("the profile has a part of a kind that is unknown here");
        if (parts & 1) p.mean = in.floats(row);
        if (parts & 2) p.matrix = in.floats(row * row), p.inverse = in.floats(row * row);
        if (!in.good()) break;
        if (!all_finite(p.mean) || !all_finite(p.matrix) || !all_finite(p.inverse))
            return corrupt_data("the profile holds a value that is not finite");
        if ((parts & 2) && !inverse_fits(p, d)) return corrupt_data("the profile holds a matrix whose inverse does not fit it");
        heads.push_back(std::move(p));
    }
    return {};
}

Status read_layer(Reader& in, int after_block, LayerProfile& l) {
    const uint64_t block = in.number(4), dk = in.number(4), dv = in.number(4), heads = in.number(4);
    l.norm = in.number(8);
    if (!in.good()) return {};
    if (block > kMaxBlock || static_cast<int>(block) <= after_block) return corrupt_data("the profile's layers are out of order");
    for (const uint64_t d : {dk, dv})
        if (d > kMaxHeadDim || !valid_head_dim(static_cast<int>(d)))
            return corrupt_data("the profile has head_dim " + std::to_string(d) + "; accepted: multiples of 32 from 32 to 1024");
    if (heads < 1 || heads > kMaxKvHead) return corrupt_data("the profile has a layer of " + std::to_string(heads) + " KV heads");
    l.block      = static_cast<int>(block);
    l.head_dim_k = static_cast<int>(dk), l.head_dim_v = static_cast<int>(dv);
    for (auto* f : {&l.k_format, &l.v_format})
        if (Status s = read_format(in, *f); !s.ok()) return s;
    if (Status s = read_heads(in, l.head_dim_k, static_cast<int>(heads), l.k); !s.ok()) return s;
    return read_heads(in, l.head_dim_v, static_cast<int>(heads), l.v);
}

std::string hex(uint64_t v) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(v));
    return text;
}

} // namespace

Status Profile::read(std::span<const uint8_t> bytes, Profile& out) {
    if (bytes.size() < sizeof kMagic || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
        return corrupt_data("this is no tightkv profile");
    Reader         in(bytes.subspan(sizeof kMagic));
    const uint64_t version = in.number(4);
    if (in.good() && version != kProfileVersion)
        return corrupt_data("the profile has version " + std::to_string(version) + ", this version of tightkv reads " +
                            std::to_string(kProfileVersion));
    if (bytes.size() < sizeof kMagic + 4 + kChecksum) return corrupt_data("the profile is truncated");
    const size_t body = bytes.size() - kChecksum;
    if (Reader(bytes.subspan(body)).number(8) != fnv1a(bytes.data(), body))
        return corrupt_data("the profile is truncated or damaged: its checksum is wrong");

    in = Reader(bytes.subspan(sizeof kMagic + 4, body - sizeof kMagic - 4));
    Profile        p;
    const uint64_t n_layers = in.number(4);
    p.architecture          = in.text();
    p.made_from             = in.text();
    if (!printable(p.architecture) || !printable(p.made_from)) return corrupt_data("the profile holds text that cannot be printed");
    if (n_layers < 1 || n_layers > kMaxBlock) return corrupt_data("the profile has " + std::to_string(n_layers) + " layers");
    for (uint64_t i = 0; i < n_layers && in.good(); i++) {
        LayerProfile l;
        if (Status s = read_layer(in, p.layers.empty() ? -1 : p.layers.back().block, l); !s.ok()) return s;
        p.layers.push_back(std::move(l));
    }
    if (!in.good()) return corrupt_data("the profile is truncated");
    if (in.left() != 0) return corrupt_data("the profile is longer than it says");
    out = std::move(p);
    return {};
}

std::vector<uint8_t> Profile::write() const {
    Writer out;
    for (const char c : kMagic) out.number(static_cast<uint8_t>(c), 1);
    out.number(kProfileVersion, 4);
    out.number(layers.size(), 4);
    out.text(std::string_view(architecture).substr(0, kMaxText));
    out.text(std::string_view(made_from).substr(0, kMaxText));
    for (const LayerProfile& l : layers) {
        for (const int v : {l.block, l.head_dim_k, l.head_dim_v, static_cast<int>(l.k.size())}) out.number(static_cast<uint64_t>(v), 4);
        out.number(l.norm, 8);
        for (const auto& f : {l.k_format, l.v_format}) out.text(f ? tightkv::format(*f).name : "");
        for (const Operand op : {Operand::K, Operand::V})
            for (const HeadProfile& p : l.heads(op)) {
                out.number((p.mean.empty() ? 0 : 1) + (p.matrix.empty() ? 0 : 2), 1);
                out.floats(p.mean), out.floats(p.matrix), out.floats(p.inverse);
            }
    }
    return out.finish();
}

Status Profile::load(const std::string& path, Profile& out) {
    const auto       problem = [&](const std::string& why) { return invalid_argument("profile " + path + ": " + why); };
    std::FILE* const file    = std::fopen(path.c_str(), "rbe");
    if (!file) return problem(std::strerror(errno));
    std::vector<uint8_t> bytes;
    uint8_t              piece[65536];
    errno = 0;
    for (size_t n; (n = std::fread(piece, 1, sizeof piece, file)) > 0 && bytes.size() < kMaxBytes;)
        bytes.insert(bytes.end(), piece, piece + n);
    const int error = std::ferror(file) ? errno : 0;
    std::fclose(file);
    if (error) return problem(std::strerror(error));
    const Status s = read(bytes, out);
    return s.ok() ? s : Status(s.code(), "profile " + path + ": " + s.message());
}

Status Profile::save(const std::string& path) const {
    const std::vector<uint8_t> bytes = write();
    std::string                part  = path + ".XXXXXX"; // a name of this program's own: two of them may write the same profile
    const int                  fd    = ::mkstemp(part.data());
    if (fd < 0) return invalid_argument("cannot write " + path + ": " + std::strerror(errno));
    ::fchmod(fd, 0644);
    size_t done = 0;
    bool   good = true;
    while (good && done < bytes.size()) {
        const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
        if (n > 0) done += static_cast<size_t>(n);
        else good = n < 0 && errno == EINTR;
    }
    int error = errno;
    if (::close(fd) != 0 && good) good = false, error = errno;
    if (good && ::rename(part.c_str(), path.c_str()) != 0) good = false, error = errno;
    if (good) return {};
    ::unlink(part.c_str());
    return invalid_argument("cannot write " + path + ": " + std::strerror(error));
}

std::string Profile::fingerprint() const {
    std::vector<std::pair<int, uint64_t>> blocks;
    for (const LayerProfile& l : layers) blocks.emplace_back(l.block, l.norm);
    return fingerprint_of(blocks);
}

Status Profile::fits(const LayerProfile& layer, Operand op, int head_dim, int64_t n_embd) {
    const int    d = layer.head_dim(op);
    const size_t n = layer.heads(op).size();
    if (static_cast<int64_t>(n) * d == n_embd && (head_dim == 0 || head_dim == d)) return {};
    const std::string other = head_dim ? std::to_string(n_embd / head_dim) + " of head_dim " + std::to_string(head_dim)
                                       : "heads of " + std::to_string(n_embd) + " values together";
    return invalid_argument("the profile has " + std::to_string(n) + " KV heads of head_dim " + std::to_string(d) + " in block " +
                            std::to_string(layer.block) + ", the cache has " + other);
}

const LayerProfile* Profile::layer_of_block(int block) const {
    for (const LayerProfile& l : layers)
        if (l.block == block) return &l;
    return nullptr;
}

std::vector<std::shared_ptr<const Transform>> Profile::transforms(const LayerProfile& layer, Operand op, bool with_mean) const {
    const int                                     d = layer.head_dim(op);
    std::vector<std::shared_ptr<const Transform>> made;
    for (const HeadProfile& p : layer.heads(op)) {
        std::vector<float> mean = with_mean ? p.mean : std::vector<float>();
        made.push_back(p.matrix.empty() ? std::make_shared<const Transform>(d, std::move(mean))
                                        : std::make_shared<const Transform>(d, std::move(mean), p.matrix, p.inverse));
    }
    return made;
}

FormatId chosen_format(const CacheSpec& spec, const LayerProfile* layer, Operand op, int index, int n_layers) {
    const bool boundary = index < spec.n_first || index >= n_layers - spec.n_last;
    if (layer && layer->format(op) && !boundary) return *layer->format(op);
    return op == Operand::K ? spec.k_of(index, n_layers) : spec.v_of(index, n_layers);
}

double bits_per_value(const CacheSpec& spec, const Profile& profile, int64_t n_cells) {
    double    bytes = 0, values = 0;
    const int n = static_cast<int>(profile.layers.size());
    for (int i = 0; i < n; i++) {
        const LayerProfile& l = profile.layers[static_cast<size_t>(i)];
        for (const Operand op : {Operand::K, Operand::V}) {
            const double heads = static_cast<double>(l.heads(op).size());
            bytes += heads * static_cast<double>(format(chosen_format(spec, &l, op, i, n)).row_bytes(l.head_dim(op)));
            bytes += heads * l.head_dim(op) * spec.exact_bytes_per_value(i, n, n_cells);
            values += heads * l.head_dim(op);
        }
    }
    return 8 * bytes / values;
}

uint64_t norm_hash(std::string_view name, std::span<const uint8_t> values) {
    const uint64_t sum = fnv1a(values.data(), values.size(), fnv1a(name.data(), name.size()));
    return sum ? sum : 1;
}

std::string norm_name(int block) { return "blk." + std::to_string(block) + ".attn_norm.weight"; }

std::string fingerprint_of(std::span<const std::pair<int, uint64_t>> blocks) {
    uint64_t sum = kFnvStart;
    for (const auto& [block, norm] : blocks) {
        uint8_t bytes[12];
        for (int i = 0; i < 4; i++) bytes[i] = static_cast<uint8_t>(static_cast<uint32_t>(block) >> (8 * i));
        for (int i = 0; i < 8; i++) bytes[4 + i] = static_cast<uint8_t>(norm >> (8 * i));
        sum = fnv1a(bytes, sizeof bytes, sum);
    }
    return hex(sum);
}

} // namespace tightkv
