// The precompiled header of everything that speaks gRPC.
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
