# Installs the library, its headers and what find_package(DCLS) needs, relocatable as a whole.
include(CMakePackageConfigHelpers)

if(NOT DCLS_PACKAGE_DIR)
  # Not in a wheel, where every symbolic link becomes a copy.
  set_target_properties(dcls PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
endif()

# No dependency is exported: OpenMP and cudart are the shared library's own affair.
install(TARGETS dcls EXPORT DCLSTargets LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/dcls" "${PROJECT_BINARY_DIR}/include/dcls"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp")

set(_config_dir "${CMAKE_INSTALL_DATADIR}/cmake/DCLS")
install(EXPORT DCLSTargets NAMESPACE DCLS:: DESTINATION "${_config_dir}")
configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/DCLSConfig.cmake.in" "${PROJECT_BINARY_DIR}/DCLSConfig.cmake"
  INSTALL_DESTINATION "${_config_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/DCLSConfigVersion.cmake"
                                 COMPATIBILITY SameMajorVersion)
install(FILES "${PROJECT_BINARY_DIR}/DCLSConfig.cmake" "${PROJECT_BINARY_DIR}/DCLSConfigVersion.cmake"
        DESTINATION "${_config_dir}")

# The same for pkg-config.
set(_pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")
foreach(_kind libdir includedir)
  string(TOUPPER ${_kind} _name)
  get_filename_component(_from "${_pkgconfig_dir}" ABSOLUTE BASE_DIR "${CMAKE_INSTALL_PREFIX}")
  get_filename_component(_to "${CMAKE_INSTALL_${_name}}" ABSOLUTE BASE_DIR "${CMAKE_INSTALL_PREFIX}")
  file(RELATIVE_PATH _${_kind} "${_from}" "${_to}")
endforeach()
configure_file("${CMAKE_CURRENT_LIST_DIR}/dcls.pc.in" "${PROJECT_BINARY_DIR}/dcls.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/dcls.pc" DESTINATION "${_pkgconfig_dir}")
