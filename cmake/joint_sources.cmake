# Compiles the sources of a library that are optimised alike as one file: most of what a source alone
# takes goes to its headers, pybind11's above all, and together they take a third. What a source keeps
# to itself needs a name that no other has. CMake's own UNITY_BUILD would leave out each source with
# options of its own (optimisation.cmake). Off for clang-tidy, which looks at each source alone, so
# that an include that is missing is found.

option(PERTOKEN_JOIN_SOURCES "Compile a library's sources that are optimised alike as one file" ON)

# The same names for each set of instructions.
set_source_files_properties(
  csrc/core/logit_kernels_avx2.cpp
  csrc/core/logit_kernels_avx512.cpp
  csrc/core/logit_kernels_portable.cpp
  csrc/core/slot_kernels_avx2.cpp
  csrc/core/slot_kernels_avx512.cpp
  csrc/core/slot_kernels_portable.cpp
  PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)

function(pertoken_join_sources target)
  if(NOT PERTOKEN_JOIN_SOURCES)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  set(kept "")
  set(levels "")
  foreach(source IN LISTS sources)
    get_source_file_property(alone ${source} SKIP_UNITY_BUILD_INCLUSION)
    if(alone OR NOT source MATCHES "\\.cpp$")
      list(APPEND kept ${source})
      continue()
    endif()
    get_source_file_property(options ${source} COMPILE_OPTIONS)
    string(REGEX MATCH "O[3s]" level "${options}")
    if(NOT level)
      set(level default)
    endif()
    list(APPEND levels ${level})
    string(APPEND includes_${level} "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n")
    set(options_${level} "${options}")
  endforeach()
  list(REMOVE_DUPLICATES levels)
  foreach(level IN LISTS levels)
    set(joint ${CMAKE_CURRENT_BINARY_DIR}/joint/${target}_${level}.cpp)
    file(CONFIGURE OUTPUT ${joint} CONTENT "${includes_${level}}" @ONLY)
    if(options_${level})
      set_source_files_properties(${joint} PROPERTIES COMPILE_OPTIONS "${options_${level}}")
    endif()
    list(APPEND kept ${joint})
  endforeach()
  set_property(TARGET ${target} PROPERTY SOURCES ${kept})
endfunction()
