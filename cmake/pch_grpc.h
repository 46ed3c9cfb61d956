// The precompiled header of everything that speaks gRPC: the generated headers are what costs, seconds a file.
#pragma once
#include <absl/container/flat_hash_map.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <absl/synchronization/mutex.h>
#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/learner_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "rlhf/v1/reward_service.grpc.pb.h"
#include "rlhf/v1/state.pb.h"
#include "rlhf/v1/weights_service.grpc.pb.h"
