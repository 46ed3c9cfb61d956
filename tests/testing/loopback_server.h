// A server for tests: services without TLS on a free port of loopback.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/rpc_server.h"

namespace rlhf {

// `port` 0: a free one. Null, and a failed test, when it cannot be had.
inline std::unique_ptr<RpcServer> ServeOnLoopback(std::vector<grpc::Service*> services, int port = 0) {
  RpcServerOptions options;
  options.address = absl::StrCat("127.0.0.1:", port);
  options.tls.insecure = true;
  options.services = std::move(services);
  auto server = RpcServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

}  // namespace rlhf
