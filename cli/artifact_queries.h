// What commands ask of the artifact service.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/channel.h>

#include "absl/status/statusor.h"

namespace rlhf::cli {

// The whole digest that the beginning of one names ("sha256:2f2670c0bea4", as listings show it); any other reference, a
// whole digest or an alias, as it is. NotFound when no artifact that the caller may see begins so, InvalidArgument when
// several do or when fewer than 8 digits are given. Blocks for the pages of a listing.
absl::StatusOr<std::string> WholeReference(const std::shared_ptr<grpc::Channel>& channel, const std::string& reference);

}  // namespace rlhf::cli
