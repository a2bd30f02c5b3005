# Decides whether the CUDA kernels are built.
#
# Input:  FASTDENSE_CUDA (AUTO, ON, OFF) and FASTDENSE_CUDA_ARCHITECTURES.
# Output: FASTDENSE_WITH_CUDA, FASTDENSE_CUDA_VERSION, FASTDENSE_CUDA_ARCHITECTURES_BUILT ("" without CUDA).

set(FASTDENSE_CUDA "AUTO" CACHE STRING "build the CUDA kernels: AUTO (when nvcc is found), ON or OFF")
# 90a and 100a are architecture-specific code; the PTX of 80 serves every other device from Ampere on.
set(FASTDENSE_CUDA_ARCHITECTURES "80-real;90a-real;100a-real;120-real;80-virtual" CACHE STRING "CUDA architectures")

set(FASTDENSE_WITH_CUDA OFF)
set(FASTDENSE_CUDA_VERSION "")
set(FASTDENSE_CUDA_ARCHITECTURES_BUILT "")
if(NOT FASTDENSE_CUDA STREQUAL "OFF")
  if(DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}" CACHE FILEPATH "")
  endif()
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(CMAKE_CUDA_COMPILER)
    set(FASTDENSE_WITH_CUDA ON)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 17)
    find_package(CUDAToolkit REQUIRED)
    set(FASTDENSE_CUDA_VERSION "${CUDAToolkit_VERSION}")
    string(REPLACE ";" "," FASTDENSE_CUDA_ARCHITECTURES_BUILT "${FASTDENSE_CUDA_ARCHITECTURES}")
  elseif(FASTDENSE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASTDENSE_CUDA=ON, but no nvcc was found: set CUDACXX to it, or leave FASTDENSE_CUDA at AUTO.")
  endif()
endif()
