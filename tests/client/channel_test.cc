#include "client/cpp/channel.h"

#include <atomic>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "tests/testing/certificates.h"

namespace rlhf::client {
namespace {

// Fails each method's first two calls.
class Flaky final : public v1::FleetService::CallbackService {
 public:
  grpc::ServerUnaryReactor* SubmitSamples(grpc::CallbackServerContext* context, const v1::SubmitSamplesRequest* request,
                                          v1::SubmitSamplesResponse* response) override {
    return Answer(context, &submits);
  }
  grpc::ServerUnaryReactor* LeasePrompts(grpc::CallbackServerContext* context, const v1::LeasePromptsRequest* request,
                                         v1::LeasePromptsResponse* response) override {
    return Answer(context, &leases);
  }
  std::atomic<int> submits{0};
  std::atomic<int> leases{0};

 private:
  static grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, std::atomic<int>* calls) {
    auto* reactor = context->DefaultReactor();
    reactor->Finish(++*calls <= 2 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "not now") : grpc::Status::OK);
    return reactor;
  }
};

class ChannelTest : public testing::Test {
 protected:
  ChannelTest() {
    RpcServerOptions options;
    options.address = "127.0.0.1:0";
    options.tls.insecure = true;
    options.services = {&service_};
    options.max_message_bytes = 1 << 20;
    auto server = RpcServer::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ChannelOptions channel;
    channel.address = absl::StrCat("127.0.0.1:", server_->port());
    channel.tls.insecure = true;
    stub_ = v1::FleetService::NewStub(*MakeChannel(channel));
  }

  Flaky service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::FleetService::Stub> stub_;
};

TEST_F(ChannelTest, OnlyIdempotentCallsAreTriedAgain) {
  v1::SubmitSamplesResponse submitted;
  EXPECT_TRUE(stub_->SubmitSamples(MakeContext(absl::Seconds(10)).get(), {}, &submitted).ok());
  EXPECT_EQ(service_.submits, 3);
  v1::LeasePromptsResponse leased;
  const grpc::Status status = stub_->LeasePrompts(MakeContext(absl::Seconds(10)).get(), {}, &leased);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(service_.leases, 1);
}

TEST_F(ChannelTest, MessagesHaveALimit) {
  v1::SubmitSamplesRequest request;
  request.set_session_id(std::string(2 << 20, 'x'));
  v1::SubmitSamplesResponse response;
  const grpc::Status status = stub_->SubmitSamples(MakeContext(absl::Seconds(10)).get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(service_.submits, 0);
}

// Several coordinators: one serves, the other stands by.
class SeveralAddressesTest : public testing::Test {
 protected:
  class Counting final : public v1::FleetService::CallbackService {
   public:
    grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* context, const v1::HeartbeatRequest* request,
                                        v1::HeartbeatResponse* response) override {
      ++calls;
      auto* reactor = context->DefaultReactor();
      reactor->Finish(grpc::Status::OK);
      return reactor;
    }
    std::atomic<int> calls{0};
  };
  std::unique_ptr<RpcServer> Serve(const std::string& host, Counting* service, bool serving) {
    RpcServerOptions options;
    options.address = host + ":0";
    options.tls = certificates_.Issue("coordinator", "coordinator");
    options.authorizer = [](const std::string&, const std::string&, const std::string&) { return Caller{}; };
    options.services = {service};
    options.serving = serving;
    auto server = RpcServer::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }
  void Connect(const std::string& first_host, const std::string& second_host) {
    first_ = Serve(first_host, &first_service_, false);
    second_ = Serve(second_host, &second_service_, true);
    ChannelOptions options;
    options.address = absl::StrCat(first_host, ":", first_->port(), ",", second_host, ":", second_->port());
    options.tls = certificates_.CaOnly();
    auto channel = MakeChannel(options);
    ASSERT_TRUE(channel.ok()) << channel.status();
    stub_ = v1::FleetService::NewStub(*channel);
  }
  grpc::Status Beat() {
    v1::HeartbeatResponse response;
    return stub_->Heartbeat(MakeContext(absl::Seconds(10)).get(), {}, &response);
  }

  TestCertificates certificates_;
  Counting first_service_, second_service_;
  std::unique_ptr<RpcServer> first_, second_;
  std::unique_ptr<v1::FleetService::Stub> stub_;
};

TEST_F(SeveralAddressesTest, CallsGoToWhoServesAndFollowTheLead) {
  Connect("127.0.0.1", "127.0.0.1");
  for (int i = 0; i < 20; ++i) {
    const grpc::Status status = Beat();
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_EQ(second_service_.calls, 20);
  EXPECT_EQ(first_service_.calls, 0);
  first_->SetServing(true);
  second_->Shutdown(absl::ZeroDuration());
  for (int i = 0; i < 20; ++i) {
    const grpc::Status status = Beat();
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_GE(first_service_.calls, 20);
}

TEST_F(SeveralAddressesTest, OnDifferentHostsTheCertificateIsAMembersOfTheFleet) {
  Connect("127.0.0.1", "127.0.0.2");
  const grpc::Status status = Beat();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(second_service_.calls, 1);
}

TEST(MakeChannelTest, AListIsOfAddressesOfOneFamily) {
  for (const char* bad :
       {"127.0.0.1:1,localhost:2", "127.0.0.1:1,[::1]:2", "127.0.0.1:1,", "127.0.0.1:1,127.0.0.1:0"}) {
    ChannelOptions options;
    options.address = bad;
    options.tls.insecure = true;
    const absl::Status status = MakeChannel(options).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad << ": " << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("dns:///NAME:PORT")) << bad;
  }
  grpc::ChannelArguments arguments;
  EXPECT_EQ(*TargetOf("127.0.0.1:1,10.0.0.2:2", &arguments), "ipv4:127.0.0.1:1,10.0.0.2:2");
  EXPECT_EQ(*TargetOf("[::1]:1,[::2]:2", &arguments), "ipv6:[::1]:1,[::2]:2");
  EXPECT_EQ(*TargetOf("coordinator:7001", &arguments), "coordinator:7001");
  ChannelOptions token;
  token.address = "127.0.0.1:1,10.0.0.2:2";
  token.tls.insecure = true;
  token.bearer_token = "rlhf_secret";
  EXPECT_TRUE(absl::IsInvalidArgument(MakeChannel(token).status())) << "a token in plaintext to another host";
}

TEST(MakeChannelTest, NeedsAnAddressAndTrust) {
  EXPECT_TRUE(absl::IsInvalidArgument(MakeChannel({}).status()));
  ChannelOptions options;
  options.address = "127.0.0.1:1";
  EXPECT_THAT(std::string(MakeChannel(options).status().message()),
              testing::HasSubstr("channel to 127.0.0.1:1: no CA"));
}

}  // namespace
}  // namespace rlhf::client
