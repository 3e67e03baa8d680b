// What a figure depends on beside the code: processor, caches, memory at hand, compiler.
#pragma once
#include <cstddef>
#include <string>

namespace tightkv::bench {

std::string cpu_model();        // "AMD EPYC (family 25, model 1)"; virtual machines hide the product, not the family
std::string compiler();         // "gcc 12.2.0"
size_t      last_cache_bytes(); // largest cache of this core; 32 MiB where the system does not say
size_t      available_memory(); // bytes; 0 where the system does not say

} // namespace tightkv::bench
