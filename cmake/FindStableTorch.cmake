# Finds the headers and libtorch_cpu of a torch >= 2.10 for an extension on the LibTorch stable ABI.
#
# Input:  Python_EXECUTABLE; the environment variable FASTDENSE_TORCH names the torch package folder by hand.
# Output: StableTorch_ROOT, StableTorch_VERSION and the target torch_stable.

if(NOT StableTorch_ROOT)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/find_torch.py"
    OUTPUT_VARIABLE StableTorch_ROOT COMMAND_ERROR_IS_FATAL ANY)
endif()
if(NOT StableTorch_ROOT)
  message(FATAL_ERROR "torch >= 2.10 was not found beside ${Python_EXECUTABLE}: install torch first, then fastdense; "
    "with uv or 'python -m build' add --no-build-isolation, or set FASTDENSE_TORCH to the torch package folder.")
endif()
file(READ "${StableTorch_ROOT}/version.py" _torch_version_file)
string(REGEX MATCH "__version__ = '([^']+)'" _ "${_torch_version_file}")
set(StableTorch_VERSION "${CMAKE_MATCH_1}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(StableTorch REQUIRED_VARS StableTorch_ROOT VERSION_VAR StableTorch_VERSION)

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${StableTorch_ROOT}/include")
# The floor of the binary interface: symbols of torch 2.10 only, so that one binary loads in every later torch.
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
target_link_directories(torch_stable INTERFACE "${StableTorch_ROOT}/lib")
target_link_libraries(torch_stable INTERFACE torch_cpu)
