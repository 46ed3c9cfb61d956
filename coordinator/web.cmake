# The web listener and its pages. A page's files are listed here and compiled in (EmbedFiles.cmake).
set(_static "${CMAKE_CURRENT_SOURCE_DIR}/web/static")
set(_pages alerts.js app.js curves.js index.html rate.css rate.html rate.js samples.html samples.js signin.html signin.js status.js style.css)
list(TRANSFORM _pages PREPEND "${_static}/" OUTPUT_VARIABLE _page_files)
set(_assets "${PROJECT_BINARY_DIR}/gen/coordinator/web/assets.cc")
add_custom_command(OUTPUT "${_assets}"
  COMMAND "${CMAKE_COMMAND}" "-DOUTPUT=${_assets}" "-DROOT=${_static}" "-DFILES=${_pages}"
          -P "${PROJECT_SOURCE_DIR}/cmake/EmbedFiles.cmake"
  DEPENDS ${_page_files} "${PROJECT_SOURCE_DIR}/cmake/EmbedFiles.cmake" VERBATIM)
pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
rlhf_cc_library(NAME coordinator_web GRPC
  HDRS web/assets.h web/gateway.h web/sessions.h web/tls_files.h web/token_texts.h web/web_server.h
  SRCS web/gateway.cc web/sessions.cc web/tls_files.cc web/token_texts.cc web/web_server.cc "${_assets}"
  DEPS rlhf::coordinator_core rlhf::coordinator_secrets rlhf::artifact_root rlhf::artifact_tokenizer rlhf::common rlhf::proto absl::status absl::statusor absl::strings absl::synchronization absl::time
       nlohmann_json::nlohmann_json OpenSSL::SSL OpenSSL::Crypto PkgConfig::httplib)
