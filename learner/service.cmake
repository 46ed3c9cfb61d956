if(TARGET rlhf_learner_trainers)
  rlhf_cc_library(NAME learner_service TORCH GRPC
    HDRS service/coordinator_client.h service/run_metrics.h service/training_run.h service/weight_publisher.h
    SRCS service/coordinator_client.cc service/run_metrics.cc service/training_run.cc service/weight_publisher.cc
    DEPS rlhf::learner_trainers rlhf::client rlhf::model)
  rlhf_cc_binary(NAME learner OUTPUT rlhf-learner COMPONENT rlhf-learner TORCH GRPC SRCS service/learner_main.cc DEPS rlhf::learner_service CLI11::CLI11)
endif()
