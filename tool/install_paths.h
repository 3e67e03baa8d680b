// Where things lie relative to the running executable: …/bin/tightkv, …/lib/*.so, …/share/tightkv or the source tree's data.
#pragma once
#include <string>

namespace tightkv::tool {

std::string adapter_file();     // libggml-tightkv.so
std::string preload_file();     // libtightkv-preload.so
std::string demo_text();        // demo.txt, to measure on
std::string calibration_text(); // calibration.txt, to learn from
std::string cache_folder();     // $TIGHTKV_CACHE or ~/.cache/tightkv; throws Failure where neither is known

} // namespace tightkv::tool
