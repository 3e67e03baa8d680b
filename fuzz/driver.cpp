// Runs a fuzz target on made-up inputs: `fuzz_NAME [SECONDS [SEED]]`, or `fuzz_NAME FILE…` to repeat saved inputs.
// The inputs are a function of the seed alone; only how many of them fit into the time differs.
// A target reports by abort(); the number of the input is on stderr then, and the input in fuzz_last_input.
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Fragments that make inputs meaningful; a target may define its own.
extern const char* const kFuzzWords[];
extern const size_t      kFuzzWordCount;

namespace {

uint64_t state;
uint64_t next() { // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z          = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z          = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

std::vector<uint8_t> input;
uint64_t             number = 0;

void save(int) {
    std::signal(SIGABRT, SIG_DFL);
    std::fprintf(stderr, "fuzz: input %llu of this seed, %zu bytes, is in fuzz_last_input\n", static_cast<unsigned long long>(number),
                 input.size());
    if (FILE* f = std::fopen("fuzz_last_input", "wb")) {
        std::fwrite(input.data(), 1, input.size(), f);
        std::fclose(f);
    }
}

std::vector<uint8_t> make(const std::vector<uint8_t>& before) {
    std::vector<uint8_t> out;
    if (next() % 4 == 0) { // change the one before
        out = before;
        for (uint64_t n = 1 + next() % 4; n > 0 && !out.empty(); n--) out[next() % out.size()] ^= static_cast<uint8_t>(1u << next() % 8);
        if (next() % 3 == 0) out.resize(next() % (out.size() + 1)); // truncate
        return out;
    }
    const uint64_t parts = next() % 12;
    for (uint64_t i = 0; i < parts; i++) {
        if (kFuzzWordCount && next() % 4) {
            const std::string w = kFuzzWords[next() % kFuzzWordCount];
            out.insert(out.end(), w.begin(), w.end());
        } else {
            const uint8_t fill = static_cast<uint8_t>(next());
            const bool    same = next() % 3 == 0;
            for (uint64_t n = next() % (kFuzzWordCount ? 6 : 300); n > 0; n--) out.push_back(same ? fill : static_cast<uint8_t>(next()));
        }
    }
    return out;
}

} // namespace

int main(int argc, char** argv) {
    std::signal(SIGABRT, save);
    if (argc > 1 && std::ifstream(argv[1]).good()) {
        for (int i = 1; i < argc; i++) {
            std::ifstream in(argv[i], std::ios::binary);
            input.assign(std::istreambuf_iterator<char>(in), {});
            LLVMFuzzerTestOneInput(input.data(), input.size());
        }
        return 0;
    }
    const double seconds     = argc > 1 ? std::atof(argv[1]) : 3;
    state                    = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    const auto           end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    std::vector<uint8_t> exact;
    while (number < 100 || std::chrono::steady_clock::now() < end) {
        number++;
        input = make(input);
        exact.assign(input.begin(), input.end());
        exact.shrink_to_fit(); // one byte too far is a heap overflow
        LLVMFuzzerTestOneInput(exact.data(), exact.size());
    }
    std::printf("%llu inputs\n", static_cast<unsigned long long>(number));
    return 0;
}
