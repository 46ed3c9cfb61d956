# The formulas: losses, rewards, advantages, KL controllers.
rlhf_cc_library(NAME learner_math TORCH
  HDRS advantage/gae.h advantage/group.h advantage/interface.h advantage/reinforce_baseline.h kl/interface.h kl/loss.h losses.h rewards.h
  SRCS advantage/factory.cc advantage/gae.cc advantage/group.cc advantage/reinforce_baseline.cc kl/controllers.cc kl/loss.cc losses.cc rewards.cc
  DEPS rlhf::learner_base rlhf::common_status rlhf::proto)
