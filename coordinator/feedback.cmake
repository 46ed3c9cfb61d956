# People's judgements and decisions: queues of tasks, sets, agreement; gates, the audit chain; what results and committed
# steps say; where models come from. Without gRPC calls.
rlhf_cc_library(NAME coordinator_feedback GRPC
  HDRS comparison_line.h feedback.h lineage.h model_card.h oversight.h timestamps.h feedback/agreement.h feedback/collect_queue.h oversight/audit_chain.h
       feedback/comparison_set.h feedback/import_log.h feedback/import_log_rows.h feedback/import_session.h jobs/collect_metrics.h
       jobs/collect_tasks.h jobs/committed_steps.h jobs/cut_answers.h jobs/evaluation.h jobs/evaluation_against.h jobs/gold_windows.h jobs/monitor.h
  SRCS comparison_line.cc feedback.cc lineage.cc model_card.cc oversight.cc oversight/audit_chain.cc feedback/agreement.cc feedback/collect_queue.cc
       feedback/comparison_set.cc feedback/import_log.cc feedback/import_log_rows.cc feedback/import_session.cc jobs/collect_metrics.cc
       jobs/collect_tasks.cc jobs/committed_steps.cc jobs/evaluation.cc jobs/evaluation_against.cc jobs/gold_windows.cc jobs/monitor.cc
  DEPS rlhf::coordinator_core rlhf::client_audit rlhf::artifact_dataset rlhf::artifact_digest rlhf::common rlhf::proto absl::flat_hash_set
       absl::int128 absl::strings nlohmann_json::nlohmann_json PkgConfig::pcre2)
