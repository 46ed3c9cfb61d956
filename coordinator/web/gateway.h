// What pages may call: unary methods of the API listener, as JSON (the protobuf JSON mapping, field names as in the
// protos). A call is checked by the same table of roles as one over gRPC, and its handler runs on the event loop.
// Thread-safe; Call blocks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc_server.h"

namespace rlhf::coordinator {

// The methods that pages use ("/rlhf.v1.JobService/ListJobs"). What is not listed is not served to a browser, whatever
// the caller's role: tokens are not minted, and workers not drained, with a cookie.
const std::vector<std::string>& WebMethods();

class Gateway {
 public:
  // `api`: the API listener's in-process channel. `authorizer` null: without tokens (insecure).
  Gateway(std::shared_ptr<grpc::Channel> api, Authorizer authorizer)
      : stub_(std::move(api)), authorizer_(std::move(authorizer)) {}

  // The answer as JSON. InvalidArgument for JSON that does not fit the request's message; else what the method says.
  absl::StatusOr<std::string> Call(const std::string& method, const std::string& json, const std::string& bearer_token,
                                   absl::Duration timeout);

 private:
  grpc::GenericStub stub_;
  const Authorizer authorizer_;
};

}  // namespace rlhf::coordinator
