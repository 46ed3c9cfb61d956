# What trains: one trainer a kind of job.
rlhf_cc_library(NAME learner_trainers TORCH
  HDRS comparison_data.h ppo_batch.h ppo_trainer.h reward_model_trainer.h sft_trainer.h supervised.h trainable.h trainer.h
  SRCS comparison_data.cc ppo_batch.cc ppo_trainer.cc reward_model_trainer.cc sft_trainer.cc supervised.cc trainable.cc trainer.cc
  DEPS rlhf::learner_base rlhf::learner_math rlhf::model rlhf::artifact rlhf::common_intervals rlhf::common_learner_inputs)
