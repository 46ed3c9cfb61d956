// A whole coordinator in this process, with TLS and tokens, on free loopback ports.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/coordinator_server.h"
#include "tests/testing/certificates.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {

class CoordinatorFixture : public testing::Test {
 protected:
  void SetUp() override { Start(); }

  CoordinatorConfig Config() {
    const TlsFiles tls = certificates_.Issue("coordinator", "c0");
    CoordinatorConfig config;
    config.data_dir = dir_.File("data");
    config.artifact_root = dir_.File("artifacts");
    config.tls_ca = tls.ca_file;
    config.tls_cert = config.api_cert = tls.cert_file;
    config.tls_key = config.api_key = tls.key_file;
    config.trust_domain = "test";
    config.bootstrap_tokens = dir_.File("tokens.json");
    if (has_audit_key_) config.audit_key_file = dir_.File("audit.key");
    config.heartbeat_ms = 200;
    config.lease_ms = 60'000;  // nothing expires by itself
    return config;
  }
  void Start() {
    auto server = CoordinatorServer::Start(Config(), Clock::Real());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const auto file = ReadFile(dir_.File("tokens.json"));
    ASSERT_TRUE(file.ok()) << file.status();
    tokens_ = nlohmann::json::parse(*file).get<std::map<std::string, std::string>>();
  }
  void Restart() {
    server_.reset();
    Start();
  }

  std::shared_ptr<grpc::Channel> Channel(const std::string& listener, const TlsFiles& tls, const std::string& token) {
    client::ChannelOptions options;
    options.address = absl::StrCat("localhost:", server_->ports().at(listener));
    options.tls = tls;
    options.bearer_token = token;
    auto channel = client::MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return channel.ok() ? *channel : nullptr;
  }
  // By the bootstrap token of a role, or without one.
  std::shared_ptr<grpc::Channel> Api(const std::string& role) {
    return Channel("api", certificates_.CaOnly(), role.empty() ? "" : tokens_.at(role));
  }
  std::shared_ptr<grpc::Channel> ApiWithToken(const std::string& token) {
    return Channel("api", certificates_.CaOnly(), token);
  }
  std::shared_ptr<grpc::Channel> Fleet(const std::string& role, const std::string& instance) {
    return Channel("fleet", certificates_.Issue(role, instance), "");
  }

  // One call, with a deadline, as a status of ours.
  template <typename Stub, typename Request, typename Response>
  static absl::StatusOr<Response> Call(const std::unique_ptr<Stub>& stub,
                                       grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                       const Request& request) {
    const auto context = client::MakeContext(absl::Seconds(30));
    Response response;
    const grpc::Status status = (stub.get()->*method)(context.get(), request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  bool has_audit_key_ = true;  // read by Start and Restart
  ScratchDir dir_;
  TestCertificates certificates_;
  std::map<std::string, std::string> tokens_;
  std::unique_ptr<CoordinatorServer> server_;
};

}  // namespace rlhf::coordinator
