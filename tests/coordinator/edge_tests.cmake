if(TARGET rlhf_coordinator_server)
  find_package(ZLIB REQUIRED)
  pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
  set(_postgres)
  set(_libpq)
  if(TARGET PkgConfig::libpq)
    set(_postgres edge_postgres_test.cc)
    set(_libpq PkgConfig::libpq)
  endif()
  rlhf_cc_tests(NAME coordinator_edge_tests GRPC TIMEOUT 180
    SRCS edge_access_test.cc edge_admins_test.cc edge_artifacts_test.cc edge_auth_test.cc edge_denials_test.cc edge_feedback_test.cc edge_forget_test.cc edge_hostile_test.cc
         edge_jobs_test.cc edge_logs_config_test.cc edge_oversight_test.cc edge_pages_test.cc edge_projects_test.cc edge_privacy_test.cc edge_quota_test.cc edge_roles_test.cc edge_sessions_test.cc edge_streams_test.cc restored_lineages_test.cc edge_samples_test.cc staged_backup_test.cc token_texts_test.cc web_test.cc ${_postgres}
    DEPS rlhf::coordinator_server rlhf::cli rlhf::client_audit PkgConfig::httplib ZLIB::ZLIB ${_libpq})
  add_dependencies(coordinator_edge_tests rlhf_bin_rlhfctl)
  rlhf_cc_test(NAME coordinator_process_test GRPC TIMEOUT 180 SRCS coordinator_process_test.cc DEPS rlhf::client rlhf::common)
  add_dependencies(coordinator_process_test rlhf_bin_coordinator rlhf_faults_coordinator)
endif()
