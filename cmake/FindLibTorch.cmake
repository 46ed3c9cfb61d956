# Finds LibTorch without its own TorchConfig.cmake, which insists on a CUDA toolkit.
#
# Accepts three layouts below RLHF_LIBTORCH_ROOT: the unpacked `torch` wheel (what scripts/bootstrap makes),
# a LibTorch zip, or a system prefix. Defines
#   Torch::cpu    torch_cpu + c10, with Gloo's process group
#   Torch::cuda   the same plus torch_cuda + c10_cuda and NCCL's process group (RLHF_CUDA only)
#
# The wheel ships headers of another protobuf in torch/include/google: the include folder goes in with -idirafter,
# so that the system's protobuf is always found first.
set(RLHF_LIBTORCH_ROOT "${PROJECT_SOURCE_DIR}/.deps/libtorch" CACHE PATH
    "Unpacked torch wheel, LibTorch zip or prefix that holds lib/libtorch_cpu.so")

find_path(LibTorch_INCLUDE_DIR NAMES ATen/ATen.h
  HINTS "${RLHF_LIBTORCH_ROOT}/torch/include" "${RLHF_LIBTORCH_ROOT}/include" NO_CACHE)
find_library(LibTorch_CPU_LIBRARY NAMES torch_cpu
  HINTS "${RLHF_LIBTORCH_ROOT}/torch/lib" "${RLHF_LIBTORCH_ROOT}/lib" NO_CACHE)
find_library(LibTorch_C10_LIBRARY NAMES c10
  HINTS "${RLHF_LIBTORCH_ROOT}/torch/lib" "${RLHF_LIBTORCH_ROOT}/lib" NO_CACHE)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "run scripts/bootstrap, or set RLHF_LIBTORCH_ROOT to a LibTorch 2.11 folder")

if(LibTorch_FOUND AND NOT TARGET Torch::cpu)
  get_filename_component(LibTorch_LIBRARY_DIR "${LibTorch_CPU_LIBRARY}" DIRECTORY)
  # libtorch_cpu.so of the wheel needs the CUDA runtime and CUPTI by name; they are unpacked beside it.
  set(_torch_rpath "${LibTorch_LIBRARY_DIR}")
  foreach(_dir IN ITEMS nvidia/cu13/lib nvidia/nccl/lib)
    if(EXISTS "${RLHF_LIBTORCH_ROOT}/${_dir}")
      list(APPEND _torch_rpath "${RLHF_LIBTORCH_ROOT}/${_dir}")
    endif()
  endforeach()
  set(LibTorch_RPATH "${_torch_rpath}")

  add_library(Torch::cpu INTERFACE IMPORTED)
  set(_torch_link_options)
  # Run paths are for the build tree only; what is installed has its own (RlhfInstall.cmake).
  list(APPEND CMAKE_BUILD_RPATH ${_torch_rpath})
  foreach(_dir IN LISTS _torch_rpath)
    list(APPEND _torch_link_options "LINKER:-rpath-link,${_dir}")
  endforeach()
  target_compile_options(Torch::cpu INTERFACE
    "SHELL:-idirafter ${LibTorch_INCLUDE_DIR}"
    "SHELL:-idirafter ${LibTorch_INCLUDE_DIR}/torch/csrc/api/include")
  target_compile_definitions(Torch::cpu INTERFACE USE_C10D_GLOO)
  target_link_options(Torch::cpu INTERFACE ${_torch_link_options} LINKER:--allow-shlib-undefined)
  target_link_libraries(Torch::cpu INTERFACE "${LibTorch_CPU_LIBRARY}" "${LibTorch_C10_LIBRARY}")
  # at::parallel_for is a template: without OpenMP where it is instantiated, it runs on one thread. LibTorch brings the
  # library. The thread sanitizer does not know its barriers, and clang has a runtime of its own: serial there.
  find_library(LibTorch_OPENMP_LIBRARY NAMES libgomp.so.1 HINTS "${LibTorch_LIBRARY_DIR}" NO_CACHE)
  if(LibTorch_OPENMP_LIBRARY AND NOT RLHF_SANITIZE MATCHES "thread")
    target_compile_options(Torch::cpu INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fopenmp>)
    target_link_libraries(Torch::cpu INTERFACE "${LibTorch_OPENMP_LIBRARY}")
  endif()

  if(RLHF_CUDA)
    find_package(CUDAToolkit 13.0 REQUIRED)
    find_library(LibTorch_CUDA_LIBRARY NAMES torch_cuda HINTS "${LibTorch_LIBRARY_DIR}" REQUIRED NO_CACHE)
    find_library(LibTorch_C10_CUDA_LIBRARY NAMES c10_cuda HINTS "${LibTorch_LIBRARY_DIR}" REQUIRED NO_CACHE)
    add_library(Torch::cuda INTERFACE IMPORTED)
    target_compile_definitions(Torch::cuda INTERFACE USE_C10D_NCCL RLHF_CUDA=1)
    # --no-as-needed: libtorch_cuda registers its kernels from static initialisers; nothing names its symbols.
    target_link_libraries(Torch::cuda INTERFACE Torch::cpu CUDA::cudart
      "-Wl,--no-as-needed" "${LibTorch_CUDA_LIBRARY}" "${LibTorch_C10_CUDA_LIBRARY}" "-Wl,--as-needed")
  endif()
endif()
