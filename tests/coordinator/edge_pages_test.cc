// What people look at is behind nothing that takes minutes: the oversight service over threads of this test.
#include <deque>
#include <future>
#include <memory>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/mutex.h"
#include "client/cpp/channel.h"
#include "common/status_util.h"
#include "coordinator/grpc_adapter/services.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/loopback_server.h"

namespace rlhf::coordinator {
namespace {

// Runs nothing until it is told to.
class HeldBack final : public Background {
 public:
  void Run(absl::AnyInvocable<void()> fn) override {
    absl::MutexLock lock(&mu_);
    queue_.push_back(std::move(fn));
  }
  bool Waits() {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !queue_.empty(); };
    return mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(30));
  }
  void RunAll() {
    std::deque<absl::AnyInvocable<void()>> queue;
    {
      absl::MutexLock lock(&mu_);
      queue.swap(queue_);
    }
    for (auto& fn : queue) std::move(fn)();
  }

 private:
  absl::Mutex mu_;
  std::deque<absl::AnyInvocable<void()>> queue_ ABSL_GUARDED_BY(mu_);
};

TEST(EdgePages, APageOfTheAuditLogDoesNotWaitForItsVerification) {
  EdgeMemoryStore store;
  const std::unique_ptr<EventLoop> loop = EventLoop::StartThread(Clock::Real());
  const std::unique_ptr<Oversight> oversight = MakeOversight(loop.get(), &store);
  HeldBack background, checks;
  const std::unique_ptr<Background> pages = Background::StartThreads(1);
  OpenCalls open_calls;
  Edge edge;
  edge.loop = loop.get();
  edge.oversight = oversight.get();
  edge.background = &background;
  edge.checks = &checks;
  edge.pages = pages.get();
  edge.open_calls = &open_calls;
  const std::unique_ptr<grpc::Service> service = MakeOversightService(edge);
  const std::unique_ptr<RpcServer> server = ServeOnLoopback({service.get()});
  ASSERT_NE(server, nullptr);
  client::ChannelOptions options;
  options.address = absl::StrCat("127.0.0.1:", server->port());
  options.tls.insecure = true;
  const auto channel = client::MakeChannel(options);
  ASSERT_TRUE(channel.ok()) << channel.status();
  const auto stub = v1::OversightService::NewStub(*channel);
  {
    WriteBatch batch;
    oversight->Audit("somebody", "did", "something", "done", {}, &batch);
    ASSERT_TRUE(store.CommitAndWait(std::move(batch)).ok());
  }

  std::future<v1::VerifyAuditResponse> verified = std::async(std::launch::async, [&] {
    v1::VerifyAuditResponse response;
    const auto context = client::MakeContext(absl::Seconds(60));
    EXPECT_TRUE(stub->VerifyAudit(context.get(), {}, &response).ok());
    return response;
  });
  ASSERT_TRUE(checks.Waits());
  v1::ListAuditResponse page;
  ASSERT_TRUE(stub->ListAudit(client::MakeContext(absl::Seconds(30)).get(), {}, &page).ok());
  EXPECT_EQ(page.records_size(), 1);
  v1::ListAuditHeadsResponse heads;
  EXPECT_TRUE(stub->ListAuditHeads(client::MakeContext(absl::Seconds(30)).get(), {}, &heads).ok());
  checks.RunAll();
  const v1::VerifyAuditResponse response = verified.get();
  EXPECT_TRUE(response.intact()) << response.problem();
  EXPECT_EQ(response.records(), 1u);
}

}  // namespace
}  // namespace rlhf::coordinator
