# Included by project() of ggml when ./run builds a host with the thread sanitizer.

if(TIGHTKV_HOST_WITHOUT_AMX)
  include(${CMAKE_CURRENT_LIST_DIR}/host_without_amx.cmake)
endif()

# Without the following two a test takes hours.
# The products of quantised rows are nine tenths of the work. They read weights and a work buffer of the host's, write one number to the
# caller's stack, and synchronise nothing, so they need no instrumentation: every access to memory that is shared with us is still seen.
file(GLOB quantised_products ${CMAKE_CURRENT_SOURCE_DIR}/src/ggml-cpu/quants.c ${CMAKE_CURRENT_SOURCE_DIR}/src/ggml-cpu/arch/*/quants.c)
cmake_language(DEFER CALL set_source_files_properties ${quantised_products} TARGET_DIRECTORY ggml-cpu PROPERTIES COMPILE_OPTIONS -fno-sanitize=thread)

# Threads that wait for their siblings at a barrier spin. On a busy machine the sibling waits for the processor meanwhile: they must let go of
# it, and sleep, so that the scheduler wakes them before those that never do.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  file(WRITE ${CMAKE_BINARY_DIR}/tsan_wait.h
    "#include <immintrin.h>\n#include <time.h>\n#define _mm_pause() nanosleep(&(struct timespec){0, 1000}, 0)\n")
  cmake_language(DEFER CALL set_source_files_properties ${CMAKE_CURRENT_SOURCE_DIR}/src/ggml-cpu/ggml-cpu.c TARGET_DIRECTORY ggml-cpu
    PROPERTIES COMPILE_OPTIONS "-include;${CMAKE_BINARY_DIR}/tsan_wait.h")
endif()
