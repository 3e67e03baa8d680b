# The host: headers and shared libraries of llama.cpp, as targets llama::ggml and llama::llama.
#   TIGHTKV_LLAMA_DIR     a llama.cpp of your own: an install prefix, or a build tree inside its source tree
#   TIGHTKV_LLAMA_SRC, _BUILD   source and build tree that ./run prepares
set(TIGHTKV_LLAMA_DIR "$ENV{TIGHTKV_LLAMA_DIR}" CACHE PATH "llama.cpp install prefix or build tree to use instead of the prepared one")
set(TIGHTKV_LLAMA_SRC "" CACHE PATH "llama.cpp source tree")
set(TIGHTKV_LLAMA_BUILD "" CACHE PATH "llama.cpp build tree")

set(places ${TIGHTKV_LLAMA_SRC})
set(lib_places ${TIGHTKV_LLAMA_BUILD})
if(TIGHTKV_LLAMA_DIR)
  set(places ${TIGHTKV_LLAMA_DIR} ${TIGHTKV_LLAMA_DIR}/..)
  set(lib_places ${TIGHTKV_LLAMA_DIR})
endif()
find_path(TIGHTKV_LLAMA_H llama.h PATHS ${places} PATH_SUFFIXES include NO_DEFAULT_PATH)
find_path(TIGHTKV_GGML_H ggml-backend.h PATHS ${places} PATH_SUFFIXES include ggml/include NO_DEFAULT_PATH)
foreach(name llama ggml ggml-base)
  find_library(TIGHTKV_LIB_${name} ${name} PATHS ${lib_places} PATH_SUFFIXES bin lib lib64 NO_DEFAULT_PATH)
  list(APPEND found TIGHTKV_LIB_${name})
endforeach()
foreach(var TIGHTKV_LLAMA_H TIGHTKV_GGML_H ${found})
  if(NOT ${var})
    message(FATAL_ERROR "no llama.cpp found (${var}): run './run build', which prepares one, or give -DTIGHTKV_LLAMA_DIR=<install prefix or build tree> of a shared-library build")
  endif()
endforeach()

foreach(name ggml-base ggml llama)
  string(REPLACE "-" "_" target ${name})
  add_library(llama::${target} SHARED IMPORTED)
  set_target_properties(llama::${target} PROPERTIES IMPORTED_LOCATION ${TIGHTKV_LIB_${name}}
    INTERFACE_INCLUDE_DIRECTORIES "${TIGHTKV_LLAMA_H};${TIGHTKV_GGML_H}")
endforeach()
set_target_properties(llama::ggml PROPERTIES INTERFACE_LINK_LIBRARIES llama::ggml_base)
set_target_properties(llama::llama PROPERTIES INTERFACE_LINK_LIBRARIES llama::ggml)
