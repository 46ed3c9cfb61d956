# rlhf_cc_library, rlhf_cc_binary, rlhf_cc_test, rlhf_proto_library: the only ways a target is made in this tree.
#
# Targets are named rlhf_<NAME> and linked by their alias rlhf::<NAME>. Headers are included from the repository root
# ("common/clock.h"). TORCH marks targets that use LibTorch; GRPC marks those that include grpcpp or generated stubs.
# Both reuse one shared precompiled header each; a target that is both has Torch's.

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
  # What each program brings along for its sanitizer.
  if(RLHF_SANITIZE STREQUAL "thread")
    # Debian's protobuf and Abseil are built without the sanitizer; their headers give maps another layout where they see
    # it. libstdc++'s reference counts must go on knowing of it.
    target_compile_options(rlhf_build_flags INTERFACE -U__SANITIZE_THREAD__ -D_GLIBCXX_TSAN=1)
    set(_sanitizer "${PROJECT_SOURCE_DIR}/cmake/sanitizer_thread.cc")
  elseif(RLHF_SANITIZE MATCHES "address" AND NOT RLHF_FUZZ)
    set(_sanitizer "${PROJECT_SOURCE_DIR}/cmake/sanitizer_address.cc")
  endif()
  if(_sanitizer)
    add_library(rlhf_sanitizer OBJECT "${_sanitizer}")
    target_link_libraries(rlhf_sanitizer PRIVATE rlhf_build_flags absl::synchronization)
    set(RLHF_SANITIZER_OBJECTS $<TARGET_OBJECTS:rlhf_sanitizer>)
  endif()
endif()

# The shared precompiled headers. Compile options must agree with every user: rlhf_build_flags holds them.
function(_rlhf_pch NAME HEADER)
  set(_stub "${PROJECT_BINARY_DIR}/pch/${NAME}.cc")
  file(WRITE "${_stub}.in" "// Holds the precompiled header shared by all targets of its kind.\n")
  configure_file("${_stub}.in" "${_stub}" COPYONLY)
  add_library(rlhf_${NAME} OBJECT "${_stub}")
  target_link_libraries(rlhf_${NAME} PRIVATE rlhf_build_flags ${ARGN})
  target_precompile_headers(rlhf_${NAME} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/${HEADER}")
  if(CMAKE_CXX_COMPILER_LAUNCHER)
    set_target_properties(rlhf_${NAME} PROPERTIES
      CXX_COMPILER_LAUNCHER "${PROJECT_SOURCE_DIR}/cmake/fresh_pch;${CMAKE_CXX_COMPILER_LAUNCHER}")
  endif()
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
  if(TORCH AND GRPC)
    target_link_libraries(${TARGET} PUBLIC gRPC::grpc++)
  endif()
endfunction()

# A few sources make one unit: headers are read, and templates compiled, once for all of them. A name that a library's
# files have twice in one unnamed namespace is then an error: give it a better one.
function(_rlhf_unity TARGET)
  set_target_properties(${TARGET} PROPERTIES UNITY_BUILD ${RLHF_UNITY} UNITY_BUILD_BATCH_SIZE 6)
endfunction()

# rlhf_cc_library(NAME artifact_tokenizer [TORCH] [GRPC] HDRS a.h SRCS a.cc DEPS rlhf::common absl::status)
function(rlhf_cc_library)
  cmake_parse_arguments(ARG "TORCH;GRPC" "NAME" "HDRS;SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(rlhf_${ARG_NAME} STATIC ${ARG_SRCS} ${ARG_HDRS})
    target_link_libraries(rlhf_${ARG_NAME} PUBLIC ${ARG_DEPS})
    _rlhf_apply_kind(rlhf_${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
    _rlhf_unity(rlhf_${ARG_NAME})
  else()
    add_library(rlhf_${ARG_NAME} INTERFACE ${ARG_HDRS})
    target_link_libraries(rlhf_${ARG_NAME} INTERFACE rlhf_build_flags ${ARG_DEPS})
  endif()
  add_library(rlhf::${ARG_NAME} ALIAS rlhf_${ARG_NAME})
endfunction()

# rlhf_cuda_library(NAME cuda_kernels HDRS a.h SRCS a.cu): kernels without LibTorch; only where RLHF_CUDA is on.
function(rlhf_cuda_library)
  cmake_parse_arguments(ARG "" "NAME" "HDRS;SRCS" ${ARGN})
  add_library(rlhf_${ARG_NAME} STATIC ${ARG_SRCS} ${ARG_HDRS})
  target_include_directories(rlhf_${ARG_NAME} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(rlhf_${ARG_NAME} PUBLIC CUDA::cudart)
  set_target_properties(rlhf_${ARG_NAME} PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Shared
    CUDA_STANDARD 17)  # 20 is unknown to CMake 3.25
  add_library(rlhf::${ARG_NAME} ALIAS rlhf_${ARG_NAME})
endfunction()

# rlhf_cc_binary(NAME coordinator OUTPUT rlhf-coordinator [COMPONENT rlhf-coordinator] [TORCH] [GRPC] [FAILPOINTS]
#                SRCS main.cc DEPS …)
# -> build/<preset>/bin/OUTPUT. With a COMPONENT it is installed (RlhfInstall.cmake); with FAILPOINTS there is also
# build/<preset>/bin-faults/OUTPUT, the same objects linked with failpoints that can be armed, for tests/faults.
function(rlhf_cc_binary)
  cmake_parse_arguments(ARG "TORCH;GRPC;FAILPOINTS" "NAME;OUTPUT;COMPONENT" "SRCS;DEPS" ${ARGN})
  if(ARG_FAILPOINTS)  # two programs of the same objects
    add_library(rlhf_main_${ARG_NAME} OBJECT ${ARG_SRCS})
    target_link_libraries(rlhf_main_${ARG_NAME} PUBLIC ${ARG_DEPS})
    _rlhf_apply_kind(rlhf_main_${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
    set(ARG_SRCS $<TARGET_OBJECTS:rlhf_main_${ARG_NAME}>)
    add_executable(rlhf_faults_${ARG_NAME} ${ARG_SRCS} $<TARGET_OBJECTS:rlhf_failpoints> ${RLHF_SANITIZER_OBJECTS})
    target_link_libraries(rlhf_faults_${ARG_NAME} PRIVATE ${ARG_DEPS})
    _rlhf_apply_kind(rlhf_faults_${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
    set_target_properties(rlhf_faults_${ARG_NAME} PROPERTIES OUTPUT_NAME "${ARG_OUTPUT}" LINKER_LANGUAGE CXX
      RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin-faults")
  endif()
  add_executable(rlhf_bin_${ARG_NAME} ${ARG_SRCS} ${RLHF_SANITIZER_OBJECTS})
  _rlhf_unity(rlhf_bin_${ARG_NAME})
  target_link_libraries(rlhf_bin_${ARG_NAME} PRIVATE ${ARG_DEPS})
  _rlhf_apply_kind(rlhf_bin_${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}")
  set_target_properties(rlhf_bin_${ARG_NAME} PROPERTIES OUTPUT_NAME "${ARG_OUTPUT}" LINKER_LANGUAGE CXX
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
  if(ARG_TORCH)
    set_target_properties(rlhf_bin_${ARG_NAME} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib/rlhf/torch/lib")
  endif()
  if(ARG_COMPONENT)
    install(TARGETS rlhf_bin_${ARG_NAME} RUNTIME DESTINATION bin COMPONENT "${ARG_COMPONENT}")
    set_property(GLOBAL APPEND PROPERTY RLHF_INSTALLED rlhf_bin_${ARG_NAME})
  endif()
endfunction()

# What rlhf_cc_test and rlhf_cc_tests have in common: the executable, into build/<preset>/tests.
function(_rlhf_test_executable NAME TORCH GRPC SRCS DEPS)
  add_executable(${NAME} ${SRCS} ${RLHF_SANITIZER_OBJECTS})
  target_link_libraries(${NAME} PRIVATE ${DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  if(TORCH)
    _rlhf_apply_kind(${NAME} "${TORCH}" "${GRPC}")
  else()  # one precompiled header for all, with GoogleTest
    target_link_libraries(${NAME} PRIVATE rlhf_build_flags gRPC::grpc++ nlohmann_json::nlohmann_json)
    if(NOT RLHF_NO_PCH)
      target_precompile_headers(${NAME} REUSE_FROM rlhf_pch_test)
    endif()
  endif()
  set_target_properties(${NAME} PROPERTIES LINKER_LANGUAGE CXX RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
endfunction()

function(_rlhf_add_test NAME TIMEOUT LABELS TORCH)
  if(NOT TIMEOUT)
    set(TIMEOUT 120)
  endif()
  if(RLHF_SANITIZE)  # everything takes several times as long
    math(EXPR TIMEOUT "${TIMEOUT} * 5")
  endif()
  if(TORCH)
    list(APPEND LABELS torch)
  endif()
  add_test(NAME ${NAME} COMMAND ${ARGN})
  set_tests_properties(${NAME} PROPERTIES TIMEOUT ${TIMEOUT} LABELS "${LABELS}"
    ENVIRONMENT "RLHF_SOURCE_DIR=${PROJECT_SOURCE_DIR};RLHF_BIN_DIR=${PROJECT_BINARY_DIR}/bin;RLHF_FAULTS_BIN_DIR=${PROJECT_BINARY_DIR}/bin-faults;OMP_NUM_THREADS=1")
endfunction()

# rlhf_cc_test(NAME ledger_test [TORCH] [GRPC] [LABELS integration] [TIMEOUT 60] SRCS ledger_test.cc DEPS …): one
# executable, one CTest entry. Tests find the repository through RLHF_SOURCE_DIR and the binaries through RLHF_BIN_DIR.
function(rlhf_cc_test)
  cmake_parse_arguments(ARG "TORCH;GRPC" "NAME;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  _rlhf_test_executable(${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}" "${ARG_SRCS}" "${ARG_DEPS}")
  _rlhf_add_test(${ARG_NAME} "${ARG_TIMEOUT}" "${ARG_LABELS}" "${ARG_TORCH}" ${ARG_NAME})
endfunction()

# rlhf_cc_tests(NAME learner_tests [PREFIX learner_] [TORCH] [GRPC] [SERIAL] [LABELS …] [TIMEOUT …] SRCS a_test.cc
#               b_test.cc DEPS …): one executable, for headers cost more than tests do; one CTest entry a source, named
# PREFIX and the source's name, which runs its suites. SERIAL: no other test beside it.
function(rlhf_cc_tests)
  cmake_parse_arguments(ARG "TORCH;GRPC;SERIAL" "NAME;PREFIX;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  _rlhf_test_executable(${ARG_NAME} "${ARG_TORCH}" "${ARG_GRPC}" "${ARG_SRCS}" "${ARG_DEPS}")
  set_target_properties(${ARG_NAME} PROPERTIES UNITY_BUILD ${RLHF_UNITY} UNITY_BUILD_BATCH_SIZE 10)
  foreach(_src IN LISTS ARG_SRCS)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${_src}")
    file(STRINGS "${CMAKE_CURRENT_SOURCE_DIR}/${_src}" _lines REGEX "^TEST(_F|_P)?\\([A-Za-z0-9_]+")
    list(TRANSFORM _lines REPLACE "^TEST(_F|_P)?\\(([A-Za-z0-9_]+).*" "\\2")
    list(REMOVE_DUPLICATES _lines)
    if(NOT _lines)
      message(FATAL_ERROR "${CMAKE_CURRENT_SOURCE_DIR}/${_src}: expected tests, found none")
    endif()
    list(TRANSFORM _lines REPLACE "(.+)" "\\1.*:*/\\1.*")
    list(JOIN _lines ":" _filter)
    get_filename_component(_stem "${_src}" NAME_WE)
    _rlhf_add_test(${ARG_PREFIX}${_stem} "${ARG_TIMEOUT}" "${ARG_LABELS}" "${ARG_TORCH}"
      ${ARG_NAME} "--gtest_filter=${_filter}")
    set_tests_properties(${ARG_PREFIX}${_stem} PROPERTIES RUN_SERIAL "${ARG_SERIAL}")
  endforeach()
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
    # Messages' files have names in common; those of services go into units.
    set_source_files_properties("${_gen}/${_stem}.pb.cc" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endforeach()
  add_custom_target(rlhf_${ARG_NAME}_headers DEPENDS ${_outputs})  # the precompiled headers hold them
  add_library(rlhf_${ARG_NAME} STATIC ${_outputs})
  add_dependencies(rlhf_${ARG_NAME} rlhf_${ARG_NAME}_headers)
  target_link_libraries(rlhf_${ARG_NAME} PUBLIC rlhf_build_flags gRPC::grpc++ protobuf::libprotobuf)
  _rlhf_unity(rlhf_${ARG_NAME})
  target_compile_options(rlhf_${ARG_NAME} PRIVATE -w)
  if(NOT RLHF_NO_PCH)
    target_precompile_headers(rlhf_${ARG_NAME} REUSE_FROM rlhf_pch_grpc)
  endif()
  # Every user includes generated headers: they must exist before its sources compile.
  set_target_properties(rlhf_${ARG_NAME} PROPERTIES EXPORT_COMPILE_COMMANDS ON)
  add_library(rlhf::${ARG_NAME} ALIAS rlhf_${ARG_NAME})
endfunction()
