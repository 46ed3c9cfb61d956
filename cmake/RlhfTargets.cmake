# rlhf_cc_library, rlhf_cc_binary, rlhf_cc_test, rlhf_proto_library: the only ways a target is made in this tree.
#
# Targets are named rlhf_<NAME> and linked by their alias rlhf::<NAME>. Headers are included from the repository root
# ("common/clock.h"). TORCH marks targets that use LibTorch; GRPC marks those that include grpcpp or generated stubs.
# Both reuse one shared precompiled header each.

add_library(rlhf_build_flags INTERFACE)
target_include_directories(rlhf_build_flags INTERFACE "${PROJECT_SOURCE_DIR}" "${PROJECT_BINARY_DIR}/gen")
# -fPIC and -pthread everywhere, executables too: a precompiled header serves only units compiled with the same settings.
target_compile_options(rlhf_build_flags INTERFACE -fPIC -pthread -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(rlhf_build_flags INTERFACE -Wthread-safety -Werror=thread-safety)
endif()
if(RLHF_SANITIZE)
  target_compile_options(rlhf_build_flags INTERFACE -fsanitize=${RLHF_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=undefined)
  target_link_options(rlhf_build_flags INTERFACE -fsanitize=${RLHF_SANITIZE})
endif()

# The shared precompiled headers. Compile options must agree with every user: rlhf_build_flags holds them.
function(_rlhf_pch NAME HEADER)
  set(_stub "${PROJECT_BINARY_DIR}/pch/${NAME}.cc")
  file(WRITE "${_stub}.in" "// Holds the precompiled header shared by all targets of its kind.\n")
  configure_file("${_stub}.in" "${_stub}" COPYONLY)
  add_library(rlhf_${NAME} OBJECT "${_stub}")
  target_link_libraries(rlhf_${NAME} PRIVATE rlhf_build_flags ${ARGN})
  target_precompile_headers(rlhf_${NAME} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/${HEADER}")
endfunction()

function(_rlhf_apply_kind TARGET TORCH GRPC)
  target_link_libraries(${TARGET} PUBLIC rlhf_build_flags)
  if(TORCH)
    if(RLHF_CUDA)
      target_link_libraries(${TARGET} PUBLIC Torch::cuda)
    else()
      target_link_libraries(${TARGET} PUBLIC Torch::cpu)
    endif()
    if(NOT RLHF_NO_PCH)
      target_precompile_headers(${TARGET} REUSE_FROM rlhf_pch_torch)
    endif()
  elseif(GRPC)
    target_link_libraries(${TARGET} PUBLIC gRPC::grpc++)
    if(NOT RLHF_NO_PCH)
      target_precompile_headers(${TARGET} REUSE_FROM rlhf_pch_grpc)
    endif()
  endif()
  # A Torch target may also talk gRPC: it links it, with Torch's precompiled header.
  if(TORCH AND GRPC)
    target_link_libraries(${TARGET} PUBLIC gRPC::grpc++)
  endif()
endfunction()

# The sources of a library that have failpoints, once more with them compiled in: rlhf_<NAME>_failpoints, objects that
# rlhf_cc_binary links before the library. The library's own members of the same names are then never pulled in.
function(_rlhf_failpoint_objects NAME TORCH GRPC SRCS DEPS)
  set(_with)
  foreach(_src IN LISTS SRCS)
    if(IS_ABSOLUTE "${_src}")  # generated
      continue()
    endif()
    file(STRINGS "${CMAKE_CURRENT_SOURCE_DIR}/${_src}" _uses REGEX "RLHF_FAILPOINT" LIMIT_COUNT 1)
    if(_uses)
      list(APPEND _with "${_src}")
    endif()
  endforeach()
  if(NOT _with)
    return()
  endif()
  add_library(rlhf_${NAME}_failpoints OBJECT ${_with})
  target_link_libraries(rlhf_${NAME}_failpoints PUBLIC ${DEPS})
  target_compile_definitions(rlhf_${NAME}_failpoints PRIVATE RLHF_FAILPOINTS=1)
  _rlhf_apply_kind(rlhf_${NAME}_failpoints "${TORCH}" "${GRPC}")
endfunction()

# rlhf_cc_library(NAME artifact_tokenizer [TORCH] [GRPC] HDRS a.h SRCS a.cc DEPS rlhf::common absl::status)
function(rlhf_cc_library)
  cmake_parse_arguments(ARG "TORCH;GRPC" "NAME" "HDRS;SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(rlhf_${ARG_NAME} STATIC ${ARG_SRCS} ${ARG_HDRS})
    target_link_libraries(rlhf_${ARG_NAME} PUBLIC ${ARG_DEPS})
    _rlhf_apply_kind(rlhf_${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
    _rlhf_failpoint_objects(${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}" "${ARG_SRCS}" "${ARG_DEPS}")
  else()
    add_library(rlhf_${ARG_NAME} INTERFACE ${ARG_HDRS})
    target_link_libraries(rlhf_${ARG_NAME} INTERFACE rlhf_build_flags ${ARG_DEPS})
  endif()
  add_library(rlhf::${ARG_NAME} ALIAS rlhf_${ARG_NAME})
endfunction()

# rlhf_cc_binary(NAME coordinator OUTPUT rlhf-coordinator [COMPONENT rlhf-coordinator] [TORCH] [GRPC] SRCS main.cc DEPS …
#                [FAILPOINTS lib…])
# -> build/<preset>/bin/OUTPUT. With a COMPONENT it is installed (RlhfInstall.cmake); with FAILPOINTS (libraries whose sources
# have some) there is also build/<preset>/bin-faults/OUTPUT, for tests/faults.
function(rlhf_cc_binary)
  cmake_parse_arguments(ARG "TORCH;GRPC" "NAME;OUTPUT;COMPONENT" "SRCS;DEPS;FAILPOINTS" ${ARGN})
  add_executable(rlhf_bin_${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(rlhf_bin_${ARG_NAME} PRIVATE ${ARG_DEPS})
  _rlhf_apply_kind(rlhf_bin_${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
  set_target_properties(rlhf_bin_${ARG_NAME} PROPERTIES OUTPUT_NAME "${ARG_OUTPUT}"
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
  if(ARG_FAILPOINTS)
    set(_objects)
    foreach(_lib IN LISTS ARG_FAILPOINTS)
      list(APPEND _objects $<TARGET_OBJECTS:rlhf_${_lib}_failpoints>)
    endforeach()
    add_executable(rlhf_faults_${ARG_NAME} ${ARG_SRCS} ${_objects})
    target_link_libraries(rlhf_faults_${ARG_NAME} PRIVATE ${ARG_DEPS})
    _rlhf_apply_kind(rlhf_faults_${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
    set_target_properties(rlhf_faults_${ARG_NAME} PROPERTIES OUTPUT_NAME "${ARG_OUTPUT}"
      RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin-faults")
  endif()
  if(ARG_TORCH)
    set_target_properties(rlhf_bin_${ARG_NAME} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib/rlhf/torch/lib")
  endif()
  if(ARG_COMPONENT)
    install(TARGETS rlhf_bin_${ARG_NAME} RUNTIME DESTINATION bin COMPONENT "${ARG_COMPONENT}")
  endif()
endfunction()

# rlhf_cc_test(NAME ledger_test [TORCH] [GRPC] [LABELS integration] [TIMEOUT 60] SRCS ledger_test.cc DEPS …): one
# executable, one CTest entry. Tests find the repository through RLHF_SOURCE_DIR and the binaries through RLHF_BIN_DIR.
function(rlhf_cc_test)
  cmake_parse_arguments(ARG "TORCH;GRPC" "NAME;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  _rlhf_apply_kind(${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
    ENVIRONMENT "RLHF_SOURCE_DIR=${PROJECT_SOURCE_DIR};RLHF_BIN_DIR=${PROJECT_BINARY_DIR}/bin;RLHF_FAULTS_BIN_DIR=${PROJECT_BINARY_DIR}/bin-faults;OMP_NUM_THREADS=1")
endfunction()

# rlhf_proto_library(NAME proto SRCS rlhf/v1/job.proto …): messages and gRPC stubs into one library.
function(rlhf_proto_library)
  cmake_parse_arguments(ARG "" "NAME" "SRCS" ${ARGN})
  set(_gen "${PROJECT_BINARY_DIR}/gen")
  file(MAKE_DIRECTORY "${_gen}")
  set(_outputs)
  foreach(_src IN LISTS ARG_SRCS)
    string(REGEX REPLACE "\\.proto$" "" _stem "${_src}")
    set(_out "${_gen}/${_stem}.pb.cc" "${_gen}/${_stem}.pb.h")
    set(_plugin)
    if(_stem MATCHES "_service$")
      list(APPEND _out "${_gen}/${_stem}.grpc.pb.cc" "${_gen}/${_stem}.grpc.pb.h")
      set(_plugin --grpc_out=${_gen} --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>)
    endif()
    add_custom_command(OUTPUT ${_out}
      COMMAND protobuf::protoc -I "${CMAKE_CURRENT_SOURCE_DIR}" --cpp_out=${_gen} ${_plugin} "${CMAKE_CURRENT_SOURCE_DIR}/${_src}"
      DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${_src}" VERBATIM)
    list(APPEND _outputs ${_out})
  endforeach()
  add_library(rlhf_${ARG_NAME} STATIC ${_outputs})
  target_link_libraries(rlhf_${ARG_NAME} PUBLIC rlhf_build_flags gRPC::grpc++ protobuf::libprotobuf)
  target_compile_options(rlhf_${ARG_NAME} PRIVATE -w)
  # Every user includes generated headers: they must exist before its sources compile.
  set_target_properties(rlhf_${ARG_NAME} PROPERTIES EXPORT_COMPILE_COMMANDS ON)
  add_library(rlhf::${ARG_NAME} ALIAS rlhf_${ARG_NAME})
endfunction()
