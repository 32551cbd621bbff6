# Decides whether CUDA kernels can be built, and says why not. Sets PERTOKEN_NVCC (a path or empty),
# PERTOKEN_NVCC_VERSION and PERTOKEN_CUDA_REASON (empty when nvcc works), which the build information
# carries. A compiler counts only once it has compiled a kernel: one that is installed but unusable
# would otherwise make a build without CUDA that nobody notices. pertoken_embed_kernels() builds them.

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

if(PERTOKEN_NVCC)
  enable_language(ASM)
endif()

# Machine code of each generation that has one of its own and that this nvcc knows, and for later ones
# the newest PTX, which the driver compiles.
set(PERTOKEN_GPU_TARGETS "")
set(PERTOKEN_GPU_CODE "")
if(PERTOKEN_NVCC)
  execute_process(COMMAND ${PERTOKEN_NVCC} --list-gpu-code
                  OUTPUT_VARIABLE known_code ERROR_QUIET TIMEOUT 60)
  foreach(generation 80 90)
    if(known_code MATCHES "sm_${generation}[ \r\n]")
      list(APPEND PERTOKEN_GPU_CODE -gencode=arch=compute_${generation},code=sm_${generation})
      list(APPEND PERTOKEN_GPU_TARGETS sm_${generation})
      set(newest ${generation})
    endif()
  endforeach()
  if(PERTOKEN_GPU_TARGETS)
    list(APPEND PERTOKEN_GPU_CODE -gencode=arch=compute_${newest},code=compute_${newest})
    list(APPEND PERTOKEN_GPU_TARGETS "PTX of compute_${newest}")
  endif()
  # From nvcc 12.8 on: a sixth of the size, for the same drivers that this nvcc's code is for.
  execute_process(COMMAND ${PERTOKEN_NVCC} --help OUTPUT_VARIABLE options ERROR_QUIET TIMEOUT 60)
  if(options MATCHES "--compress-mode")
    list(APPEND PERTOKEN_GPU_CODE --compress-mode=size)
  endif()
  list(JOIN PERTOKEN_GPU_TARGETS ", " PERTOKEN_GPU_TARGETS)
endif()

# Compiles all kernels to one image and puts it into a library, between the symbols that
# csrc/cuda/kernel_image.cpp knows. Without nvcc that file has none.
function(pertoken_embed_kernels library)
  if(NOT PERTOKEN_NVCC)
    return()
  endif()
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/kernels)
  set(includes "")
  foreach(kernel IN LISTS ARGN)
    string(APPEND includes "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${kernel}\"\n")
  endforeach()
  file(CONFIGURE OUTPUT ${folder}/kernels.cu CONTENT "${includes}" @ONLY)
  file(CONFIGURE OUTPUT ${folder}/kernels.S @ONLY CONTENT
"    .section .rodata
    .balign 16
    .globl pertoken_kernels_begin
    .hidden pertoken_kernels_begin
pertoken_kernels_begin:
    .incbin \"${folder}/kernels.fatbin\"
    .globl pertoken_kernels_end
    .hidden pertoken_kernels_end
pertoken_kernels_end:
    .section .note.GNU-stack,\"\",%progbits
")
  add_custom_command(
    OUTPUT ${folder}/kernels.fatbin
    COMMAND ${PERTOKEN_NVCC} -std=c++20 -fatbin ${PERTOKEN_GPU_CODE}
            -I ${CMAKE_CURRENT_SOURCE_DIR}/csrc -MD -MF ${folder}/kernels.d
            ${folder}/kernels.cu -o ${folder}/kernels.fatbin
    MAIN_DEPENDENCY ${folder}/kernels.cu
    DEPENDS ${ARGN}
    DEPFILE ${folder}/kernels.d
    COMMENT "Compiling the GPU kernels"
    VERBATIM)
  set_source_files_properties(${folder}/kernels.S PROPERTIES
    OBJECT_DEPENDS ${folder}/kernels.fatbin)
  target_sources(${library} PRIVATE ${folder}/kernels.S)
  target_compile_definitions(${library} PRIVATE PERTOKEN_HAS_KERNELS)
endfunction()
