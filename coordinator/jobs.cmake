# Jobs and their drivers, learner groups, feedback, oversight. No gRPC calls are made here: adapters call in.
rlhf_cc_library(NAME coordinator_jobs GRPC
  HDRS comparison_line.h feedback.h jobs.h learner_groups.h oversight.h timestamps.h jobs/collect_tasks.h jobs/driver.h
       jobs/evaluation.h jobs/explain.h jobs/job_table.h jobs/spec.h jobs/training_driver.h
  SRCS comparison_line.cc feedback.cc learner_groups.cc oversight.cc jobs/collect_driver.cc jobs/collect_tasks.cc
       jobs/driver.cc jobs/evaluation.cc jobs/explain.cc jobs/generating_driver.cc jobs/job_table.cc jobs/job_table_api.cc
       jobs/pipeline_driver.cc jobs/ppo_driver.cc jobs/numerics_spec.cc jobs/spec.cc jobs/training_driver.cc
  DEPS rlhf::coordinator_core rlhf::coordinator_edge rlhf::artifact_dataset)
