rlhf_cc_library(NAME coordinator_secrets HDRS auth/secrets.h SRCS auth/secrets.cc
  DEPS absl::status absl::statusor absl::strings OpenSSL::Crypto)
# What faces the network, and the process: authentication, gRPC adapters, artifacts, logs, metrics, main.
rlhf_cc_library(NAME coordinator_edge GRPC
  HDRS artifacts.h artifacts_impl.h backup.h comparison_sets.h config.h data_dir_lock.h logs.h metered_store.h metrics_export.h
       names.h slice_metrics.h standby.h upload_registry.h upload_session.h volume_start.h volume_watch.h auth/authorizer.h auth/denials.h auth/first_tokens.h auth/method_table.h auth/token_metrics.h auth/tokens.h
       grpc_adapter/backup_stream.h grpc_adapter/call_token.h grpc_adapter/collect_lookup.h grpc_adapter/comparison_streams.h grpc_adapter/edge.h grpc_adapter/loop_stream.h grpc_adapter/reward_client.h
       grpc_adapter/services.h grpc_adapter/unary.h grpc_adapter/watch_job.h
  SRCS artifact_uploads.cc artifacts.cc backup.cc comparison_sets.cc config.cc data_dir_lock.cc logs.cc metered_store.cc metrics_export.cc names.cc
       slice_metrics.cc standby.cc upload_registry.cc upload_session.cc volume_start.cc volume_watch.cc auth/authorizer.cc auth/denials.cc auth/first_tokens.cc auth/method_table.cc auth/token_metrics.cc auth/tokens.cc
       grpc_adapter/admin_service.cc grpc_adapter/artifact_service.cc grpc_adapter/backup_stream.cc grpc_adapter/call_token.cc grpc_adapter/collect_lookup.cc grpc_adapter/comparison_streams.cc
       grpc_adapter/edge.cc grpc_adapter/feedback_service.cc grpc_adapter/fleet_service.cc
       grpc_adapter/job_service.cc grpc_adapter/learner_service.cc grpc_adapter/log_service.cc
       grpc_adapter/oversight_service.cc grpc_adapter/reward_client.cc grpc_adapter/watch_job.cc
  DEPS rlhf::coordinator_feedback rlhf::coordinator_secrets rlhf::common rlhf::client rlhf::artifact_manifest_entries rlhf::artifact_root rlhf::artifact_digest rlhf::artifact_model_config rlhf::artifact_sample_digest rlhf::proto absl::any_invocable absl::cleanup
       absl::function_ref absl::status absl::statusor absl::strings absl::synchronization absl::time CLI11::CLI11
       nlohmann_json::nlohmann_json OpenSSL::Crypto prometheus-cpp::core yaml-cpp)
# One template a call of the API: what it costs at run time is inside gRPC.
target_compile_options(rlhf_coordinator_edge PRIVATE $<$<CONFIG:Release>:-O1>)

if(TARGET rlhf_coordinator_core AND TARGET rlhf_coordinator_jobs)
  rlhf_cc_library(NAME coordinator_server GRPC HDRS coordinator_server.h SRCS coordinator_server.cc
    DEPS rlhf::coordinator_edge rlhf::coordinator_jobs rlhf::coordinator_core rlhf::coordinator_web)
  rlhf_cc_binary(NAME coordinator OUTPUT rlhf-coordinator COMPONENT rlhf-coordinator GRPC SRCS coordinator_main.cc DEPS rlhf::coordinator_server
    FAILPOINTS)
endif()
