# dcls_export_only(target map): nothing leaves the shared library but what the version script `map`
# names. Hidden visibility alone lets instantiations of the standard library's templates out, which
# other libraries in the process could then be bound to.
function(dcls_export_only target map)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(${target} PRIVATE "LINKER:--version-script=${map}")
    set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${map}")
  endif()
endfunction()
