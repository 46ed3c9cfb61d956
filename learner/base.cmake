# What training stands on: ranks, gradients, optimizer, checkpoints, order of data.
rlhf_cc_library(NAME learner_base TORCH
  HDRS batching.h checkpoint.h collective.h divided_weights.h gradient_buckets.h metered_collective.h optimizer.h share.h wakeups.h
  SRCS batching.cc checkpoint.cc collective_c10d.cc divided_weights.cc gradient_buckets.cc metered_collective.cc optimizer.cc share.cc single_rank.cc wakeups.cc
  DEPS rlhf::model rlhf::artifact rlhf::common_base rlhf::common_status rlhf::proto nlohmann_json::nlohmann_json)
