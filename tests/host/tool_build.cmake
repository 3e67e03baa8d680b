# cmake -DSOURCE=… -DWORK=… -DHOST=… -DAPI=… -P tool_build.cmake: configures and builds the tool in WORK against the llama.cpp in HOST, as
# one's own (TIGHTKV_LLAMA_DIR) whose build tree lies outside its source tree, and runs it. Fails where any step does. WORK stays: the next run
# compiles what has changed. It lies beside the build tree, not in it: relative paths are the same, so ccache has what does not read llama.h.
if(NOT EXISTS ${HOST}/src/include/llama.h OR NOT EXISTS ${HOST}/build/bin/libllama.so)
  message("skipped: no host in ${HOST} (./run test prepares it)")
  return()
endif()
# The compiler cache of ./run, where none is set.
if(LAUNCHER AND NOT DEFINED ENV{CCACHE_DIR} AND IS_DIRECTORY ${HOST}/../../ccache)
  file(REAL_PATH ${HOST}/../../ccache ccache)
  set(ENV{CCACHE_DIR} ${ccache})
  set(ENV{CCACHE_BASEDIR} ${SOURCE})
  set(ENV{CCACHE_NOHASHDIR} 1)
endif()
function(step what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}${errors}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()
function(expect what part)
  string(FIND "${output}" "${part}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "${what}: no '${part}' in\n${output}")
  endif()
endfunction()

# A repository that was moved takes its build trees along.
if(EXISTS ${WORK}/CMakeCache.txt)
  file(STRINGS ${WORK}/CMakeCache.txt home REGEX "^CMAKE_HOME_DIRECTORY:")
  if(NOT home STREQUAL "CMAKE_HOME_DIRECTORY:INTERNAL=${SOURCE}")
    file(REMOVE_RECURSE ${WORK})
  endif()
endif()
step("configure" ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK} -G ${GENERATOR} -DCMAKE_BUILD_TYPE=${CONFIG} -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_C_COMPILER=${CC}
  -DCMAKE_C_COMPILER_LAUNCHER=${LAUNCHER} -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER} -DTIGHTKV_BUILD_TESTS=OFF
  -DTIGHTKV_LLAMA_DIR=${HOST}/build -DTIGHTKV_LLAMA_SRC= -DTIGHTKV_LLAMA_BUILD=)
step("build" ${CMAKE_COMMAND} --build ${WORK} --config ${CONFIG} --target tightkv_tool)
find_program(tool NAMES tightkv PATHS ${WORK}/bin NO_DEFAULT_PATH REQUIRED)
step("tightkv info" ${tool} info)
expect("tightkv info" "handshake: ggml ")
expect("tightkv info" "backend API ${API}, a tested version")
# Both paths of a measurement, as short as can be.
if(EXISTS "${MODEL}")
  step("tightkv eval" ${tool} eval --no-expand -m ${MODEL} --cache q8_0,turbo4 --ctx 32 --chunks 1 -o json)
  expect("tightkv eval" "\"adapter_active\": true")
endif()
