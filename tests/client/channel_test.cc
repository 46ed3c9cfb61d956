#include "client/cpp/channel.h"

#include <atomic>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"

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

TEST(MakeChannelTest, NeedsAnAddressAndTrust) {
  EXPECT_TRUE(absl::IsInvalidArgument(MakeChannel({}).status()));
  ChannelOptions options;
  options.address = "127.0.0.1:1";
  EXPECT_THAT(std::string(MakeChannel(options).status().message()),
              testing::HasSubstr("channel to 127.0.0.1:1: no CA"));
}

}  // namespace
}  // namespace rlhf::client
