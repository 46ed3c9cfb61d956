rlhf_cc_library(NAME learner_event_file HDRS service/event_file.h service/event_log.h SRCS service/event_file.cc service/event_log.cc
  DEPS rlhf::common_base absl::core_headers absl::str_format absl::synchronization absl::time)
if(TARGET rlhf_learner_trainers)
  rlhf_cc_library(NAME learner_service TORCH GRPC
    HDRS service/coordinator_client.h service/group_numerics.h service/rank_meeting.h service/rank_agreement.h service/run_metrics.h service/training_run.h service/weight_publisher.h
    SRCS service/coordinator_client.cc service/group_numerics.cc service/ledger_step.cc service/rank_meeting.cc service/rank_agreement.cc service/run_metrics.cc service/training_run.cc service/weight_publisher.cc
    DEPS rlhf::learner_trainers rlhf::artifact_sample_digest rlhf::artifact_weight_delta rlhf::client rlhf::learner_event_file rlhf::model)
  rlhf_cc_library(NAME learner_replay TORCH GRPC HDRS replay/replay.h SRCS replay/replay.cc
    DEPS rlhf::learner_service rlhf::artifact_root)
  rlhf_cc_binary(NAME replay OUTPUT rlhf-replay COMPONENT rlhf-learner TORCH GRPC SRCS replay/replay_main.cc DEPS rlhf::learner_replay CLI11::CLI11)
  rlhf_cc_binary(NAME learner OUTPUT rlhf-learner COMPONENT rlhf-learner TORCH GRPC SRCS service/learner_main.cc DEPS rlhf::learner_service rlhf::client_member CLI11::CLI11
    FAILPOINTS)
endif()
