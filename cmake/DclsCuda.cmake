# Decides whether CUDA is built, and for which GPUs (see cuda_architectures.txt).
include(DclsArchitectures)
set(DCLS_HAS_CUDA OFF)

if(NOT DCLS_CUDA MATCHES "^(AUTO|ON|OFF|TRUE|FALSE|YES|NO|1|0)$")
  message(FATAL_ERROR "DCLS_CUDA must be AUTO, ON or OFF, got '${DCLS_CUDA}'")
endif()

if(DCLS_CUDA STREQUAL "AUTO" OR DCLS_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 75) # for the compiler checks; every target sets its own
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit 12.0 QUIET)
  endif()
  if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
    set(DCLS_HAS_CUDA ON)
  elseif(NOT DCLS_CUDA STREQUAL "AUTO")
    message(
      FATAL_ERROR
        "DCLS_CUDA=${DCLS_CUDA}, but no CUDA toolkit 12.0 or newer was found (nvcc: "
        "'${CMAKE_CUDA_COMPILER}', version '${CMAKE_CUDA_COMPILER_VERSION}'). Put nvcc on the PATH or "
        "set CUDACXX, or configure with DCLS_CUDA=OFF.")
  endif()
endif()

if(DCLS_HAS_CUDA AND NOT DCLS_CUDA_ARCHITECTURES)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${DCLS_CUDA_ARCHITECTURE_LIST}")
  dcls_cuda_architectures(DCLS_CUDA_ARCHITECTURES_USED ${CMAKE_CUDA_COMPILER_VERSION})
elseif(DCLS_HAS_CUDA)
  # Also with commas: an environment variable that sets several options parts them by semicolons.
  string(REPLACE "," ";" DCLS_CUDA_ARCHITECTURES_USED "${DCLS_CUDA_ARCHITECTURES}")
endif()

if(DCLS_HAS_CUDA)
  message(STATUS "DCLS: building with CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${DCLS_CUDA_ARCHITECTURES_USED}")
elseif(DCLS_CUDA STREQUAL "AUTO")
  message(STATUS "DCLS: building for the CPU only: no nvcc (CUDA 12.0 or newer) was found")
else()
  message(STATUS "DCLS: building for the CPU only: DCLS_CUDA=${DCLS_CUDA}")
endif()
