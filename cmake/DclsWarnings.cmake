# dcls_target_defaults(target): language level, visibility, warnings and sanitizers of our targets.
function(dcls_target_defaults target)
  target_compile_features(${target} PUBLIC cxx_std_17)
  set_target_properties(
    ${target}
    PROPERTIES CXX_EXTENSIONS OFF
               CXX_VISIBILITY_PRESET hidden
               CUDA_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               UNITY_BUILD OFF # files have names of their own in the same namespaces
               POSITION_INDEPENDENT_CODE ON)
  target_compile_options(
    ${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wconversion>
                      $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
  if(DCLS_WERROR)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                                             $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
  endif()
  if(DCLS_SANITIZE)
    # Undefined behaviour ends the program, too, instead of being a remark in its output.
    target_compile_options(
      ${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${DCLS_SANITIZE};-fno-sanitize-recover=undefined;-fno-omit-frame-pointer>)
    target_link_options(${target} PRIVATE -fsanitize=${DCLS_SANITIZE})
  endif()
endfunction()
