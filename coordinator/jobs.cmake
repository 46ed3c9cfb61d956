# Jobs and their drivers, learner groups. No gRPC calls are made here: adapters call in.
rlhf_cc_library(NAME coordinator_jobs GRPC
  HDRS jobs.h learner_groups.h jobs/checkpoint_chain.h jobs/context_spec.h jobs/deleted_rows.h jobs/driver.h jobs/explain.h jobs/generated_samples.h jobs/job_index.h jobs/job_table.h jobs/model_tokens.h jobs/pattern_spec.h jobs/policy_publisher.h jobs/rounds.h jobs/service_time.h jobs/size_spec.h jobs/spec.h
       jobs/spec_checker.h jobs/stage_metrics.h jobs/start_from.h jobs/step_issuer.h jobs/step_watch.h jobs/suite_tags.h jobs/training_driver.h
  SRCS learner_groups.cc jobs/checkpoint_chain.cc jobs/collect_driver.cc jobs/context_spec.cc jobs/deleted_rows.cc jobs/driver.cc jobs/explain.cc jobs/generated_samples.cc jobs/generating_driver.cc jobs/job_index.cc jobs/job_listing.cc jobs/job_table.cc
       jobs/job_table_api.cc jobs/kind_spec.cc jobs/model_tokens.cc jobs/numerics_spec.cc jobs/pattern_spec.cc jobs/pipeline_driver.cc jobs/pipeline_spec.cc jobs/policy_publisher.cc
       jobs/ppo_driver.cc jobs/rounds.cc jobs/service_time.cc jobs/size_spec.cc jobs/spec.cc jobs/spec_checker.cc jobs/stage_metrics.cc jobs/start_from.cc jobs/step_issuer.cc jobs/step_watch.cc jobs/suite_tags.cc jobs/training_driver.cc
  DEPS rlhf::coordinator_core rlhf::coordinator_edge rlhf::coordinator_feedback rlhf::artifact_dataset rlhf::artifact_model_config rlhf::artifact_same_tokens)
