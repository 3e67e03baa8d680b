# Included by project() of ggml when ./run builds a host with a compiler that breaks AMX: GCC before 11.5, 12.4
# and 13.3 (PR 114098) drops the stores to the tile configuration, and every product of quantised weights ends in an illegal instruction.
cmake_language(DEFER CALL target_compile_options ggml-cpu PRIVATE -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
