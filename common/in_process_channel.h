// Calls to a listener of this process.
#pragma once

#include <memory>

#include <grpcpp/grpcpp.h>

#include "common/rpc_server.h"

namespace rlhf {

// Without network and TLS. The authorizer is asked by the interceptor only, which cancels what it refuses while the
// handler runs: so ask the authorizer first, and call only what it let in.
std::shared_ptr<grpc::Channel> InProcessChannel(RpcServer& server);

}  // namespace rlhf
