# Decides whether CUDA kernels can be built, and says why not. Sets PERTOKEN_NVCC (a path or empty),
# PERTOKEN_NVCC_VERSION and PERTOKEN_CUDA_REASON (empty when nvcc works), which the build information
# carries. A compiler counts only once it has compiled a kernel: one that is installed but unusable
# would otherwise make a build without CUDA that nobody notices.

set(PERTOKEN_NVCC "")
set(PERTOKEN_NVCC_VERSION "")
set(PERTOKEN_CUDA_REASON "")

function(pertoken_try_nvcc nvcc version_variable reason_variable)
  set(${version_variable} "" PARENT_SCOPE)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/cuda_check/check.cu)
  file(WRITE ${source} "__global__ void check(int* out) { *out = 1; }\n")
  execute_process(
    COMMAND ${nvcc} -fatbin ${source} -o ${CMAKE_CURRENT_BINARY_DIR}/cuda_check/check.fatbin
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output TIMEOUT 120)
  if(NOT status EQUAL 0)
    string(REGEX REPLACE "[ \t\r\n]+" " " output "exit status ${status}: ${output}")
    string(REPLACE "${CMAKE_CURRENT_BINARY_DIR}/" "" output "${output}")
    string(SUBSTRING "${output}" 0 300 output)
    string(STRIP "${output}" output)
    set(${reason_variable} "nvcc was found but cannot compile a kernel: ${output}" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE output ERROR_QUIET TIMEOUT 60)
  if(output MATCHES "V([0-9]+\\.[0-9]+\\.[0-9]+)")
    set(${version_variable} ${CMAKE_MATCH_1} PARENT_SCOPE)
  else()
    set(${version_variable} "of unknown version" PARENT_SCOPE)
  endif()
  set(${reason_variable} "" PARENT_SCOPE)
endfunction()

if(NOT PERTOKEN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "PERTOKEN_CUDA is '${PERTOKEN_CUDA}'; it must be AUTO, ON or OFF.")
endif()

if(PERTOKEN_CUDA STREQUAL "OFF")
  set(PERTOKEN_CUDA_REASON "switched off by PERTOKEN_CUDA=OFF")
else()
  if(DEFINED ENV{CUDACXX})
    find_program(found_nvcc NAMES $ENV{CUDACXX} NO_CACHE)
    set(PERTOKEN_CUDA_REASON "CUDACXX names '$ENV{CUDACXX}', which is not an executable")
  else()
    find_program(found_nvcc NAMES nvcc NO_CACHE
                 PATHS ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin)
    set(PERTOKEN_CUDA_REASON "nvcc is neither in PATH nor under CUDA_PATH; set CUDACXX to its path")
  endif()
  if(found_nvcc)
    pertoken_try_nvcc(${found_nvcc} PERTOKEN_NVCC_VERSION PERTOKEN_CUDA_REASON)
    if(PERTOKEN_NVCC_VERSION)
      set(PERTOKEN_NVCC ${found_nvcc})
    endif()
  endif()
  if(PERTOKEN_NVCC)
    message(STATUS "pertoken: CUDA compiler ${PERTOKEN_NVCC} (${PERTOKEN_NVCC_VERSION})")
  elseif(PERTOKEN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PERTOKEN_CUDA=ON, but ${PERTOKEN_CUDA_REASON}. "
                        "PERTOKEN_CUDA=AUTO builds without CUDA.")
  else()
    message(STATUS "pertoken: building without a CUDA compiler: ${PERTOKEN_CUDA_REASON}")
  endif()
endif()
