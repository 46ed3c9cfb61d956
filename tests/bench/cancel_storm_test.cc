// Two hundred jobs that come at once and are cancelled at once, in any order, while slow readers follow them: nobody
// waits for anybody, and nothing of a cancelled job stays behind.
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/bench/load_fixture.h"

namespace rlhf::bench {
namespace {

constexpr int kJobs = 200;        // every second one trains
constexpr int kSlowReaders = 20;  // of a message a second
constexpr int kStorms = 2;
constexpr int kClients = 8;  // that submit and cancel side by side

class CancelStorm : public LoadClusterTest {
 protected:
  void Until(const std::string& what, const std::function<bool()>& condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(40);
    while (!condition()) {
      ASSERT_LT(absl::Now(), deadline) << "waited in vain until " << what;
      absl::SleepFor(absl::Milliseconds(20));  // another process: there is nothing to wait on but its answers
    }
  }
  // The same for each of so many, by some clients at once.
  static void AtOnce(int count, const std::function<void(int)>& fn) {
    std::atomic<int> next{0};
    std::vector<std::thread> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&] {
        for (int at = next++; at < count; at = next++) fn(at);
      });
    }
    for (std::thread& client : clients) client.join();
  }
  // A channel of its own, so that nobody waits behind another's call.
  std::shared_ptr<grpc::Channel> Api() {
    client::ChannelOptions options;
    options.address = cluster_->coordinator().address("api");
    options.tls = cluster_->channels().api();
    options.bearer_token = cluster_->coordinator().token("admin");
    auto channel = client::MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return channel.value_or(nullptr);
  }
  // Reads a message a second until the stream ends or the test is over.
  template <typename Message, typename Open>
  void ReadSlowly(const Open& open) {
    const auto context = contexts_.emplace_back(std::make_shared<grpc::ClientContext>());
    readers_.emplace_back([this, open, context] {
      const auto reader = open(context.get());
      Message message;
      while (!over_.HasBeenNotified() && reader->Read(&message)) {
        ++slow_messages_;
        over_.WaitForNotificationWithTimeout(absl::Seconds(1));
      }
      context->TryCancel();
      (void)reader->Finish();
    });
  }
  void BeginToReadSlowly(const std::vector<std::string>& jobs) {
    for (int i = 0; i < kSlowReaders; ++i) {
      const auto channel = Api();
      if (i % 2 == 0) {
        v1::WatchJobRequest request;
        request.set_job_id(jobs[static_cast<size_t>(i)]);
        const std::shared_ptr<v1::JobService::Stub> stub = v1::JobService::NewStub(channel);
        ReadSlowly<v1::JobEvent>([=](grpc::ClientContext* context) { return stub->WatchJob(context, request); });
      } else {
        v1::FollowLogsRequest request;
        request.set_follow(true);
        const std::shared_ptr<v1::LogService::Stub> stub = v1::LogService::NewStub(channel);
        ReadSlowly<v1::LogLine>([=](grpc::ClientContext* context) { return stub->FollowLogs(context, request); });
      }
    }
  }
  // How long a call takes that only passes through the loop, again and again.
  void BeginToProbe() {
    readers_.emplace_back([this, stub = v1::OversightService::NewStub(Api())] {
      while (!over_.HasBeenNotified()) {
        const absl::Time began = absl::Now();
        v1::ServiceState state;
        const auto context = client::MakeContext(absl::Seconds(30));
        EXPECT_TRUE(FromGrpc(stub->GetServiceState(context.get(), {}, &state)).ok());
        delays_.push_back(absl::Now() - began);
        over_.WaitForNotificationWithTimeout(absl::Milliseconds(5));
      }
    });
  }
  // PPO jobs, and jobs that only draw samples, which need no learner.
  std::vector<std::string> SubmitAll(const v1::PpoSpec& ppo, int storm) {
    std::vector<std::string> jobs(kJobs);
    AtOnce(kJobs, [&](int i) {
      v1::SubmitJobRequest request;
      const std::string name = absl::StrCat("storm-", storm, "-", i);
      request.set_request_id(name);
      request.mutable_spec()->set_name(name);
      if (i % 2 == 0) {
        *request.mutable_spec()->mutable_ppo() = ppo;
      } else {
        v1::SampleSpec& sample = *request.mutable_spec()->mutable_sample();
        sample.set_model(ppo.policy());
        sample.set_prompts(ppo.prompts());
        *sample.mutable_sampling() = ppo.sampling();
      }
      v1::SubmitJobResponse response;
      const auto context = client::MakeContext(absl::Seconds(30));
      const absl::Status status =
          FromGrpc(v1::JobService::NewStub(cluster_->api())->SubmitJob(context.get(), request, &response));
      EXPECT_TRUE(status.ok()) << status;
      jobs[static_cast<size_t>(i)] = response.job().id();
    });
    return jobs;
  }
  void OtherGoesOn() {
    const int64_t step = GetJob(cluster_->api(), cluster_->job_id())->step();
    Until("the one that trains goes on",
          [&] { return GetJob(cluster_->api(), cluster_->job_id())->step() >= step + 2; });
  }
  void CancelAll(const std::vector<std::string>& jobs) {
    std::vector<std::string> order = jobs;
    std::shuffle(order.begin(), order.end(), std::mt19937_64(std::random_device{}()));
    const absl::Time began = absl::Now();
    AtOnce(kJobs, [&](int i) {
      const absl::Status status = CancelJob(cluster_->api(), order[static_cast<size_t>(i)]);
      EXPECT_TRUE(status.ok()) << status;
    });
    EXPECT_LT(absl::Now() - began, absl::Seconds(20));
    for (const std::string& id : jobs) {
      const auto job = GetJob(cluster_->api(), id);
      ASSERT_TRUE(job.ok()) << job.status();
      EXPECT_EQ(job->state(), v1::CANCELLED) << id;
      const v1::LedgerCounts counts = CountsOf(id, true);
      EXPECT_EQ(counts.queued() + counts.leased() + counts.generated() + counts.scored() + counts.assigned(), 0)
          << counts.ShortDebugString();
    }
  }
  void DeleteAll(const std::vector<std::string>& jobs) {
    AtOnce(kJobs, [&](int i) {
      v1::DeleteJobRequest request;
      request.set_job_id(jobs[static_cast<size_t>(i)]);
      v1::DeleteJobResponse response;
      const auto context = client::MakeContext(absl::Seconds(60));
      const absl::Status status =
          FromGrpc(v1::JobService::NewStub(cluster_->api())->DeleteJob(context.get(), request, &response));
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  void EndReaders() {
    if (!over_.HasBeenNotified()) over_.Notify();
    for (const auto& context : contexts_) context->TryCancel();
    for (std::thread& reader : readers_) reader.join();
    readers_.clear();
  }
  void TearDown() override { EndReaders(); }
  v1::LedgerCounts CountsOf(const std::string& job, bool check) {
    const auto ledger = CheckLedger(cluster_->api(), job, check);
    EXPECT_TRUE(ledger.ok()) << ledger.status();
    if (ledger.ok()) {
      EXPECT_TRUE(ledger->violations().empty()) << job << ": " << absl::StrJoin(ledger->violations(), "\n");
    }
    return ledger.ok() ? ledger->counts() : v1::LedgerCounts();
  }
  double Metric(const std::string& name) {
    const std::string text =
        RunCommand(absl::StrCat("curl -s http://", cluster_->coordinator().address("http"), "/metrics")).output;
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      if (words.size() == 2 && words[0] == name) return std::atof(words[1].c_str());
    }
    return -1;
  }
  double ResidentMb() {
    const auto usage = UsageOf(cluster_->coordinator().pid());
    EXPECT_TRUE(usage.ok()) << usage.status();
    return usage.ok() ? usage->resident_mb : 0;
  }

  absl::Notification over_;
  std::vector<std::thread> readers_;
  std::vector<std::shared_ptr<grpc::ClientContext>> contexts_;  // of those that may wait for a message
  std::atomic<int> slow_messages_{0};
  std::vector<absl::Duration> delays_;  // of the probe, which is joined before anybody looks
};

TEST_F(CancelStorm, NobodyWaitsAndNothingStaysBehind) {
  Start(SmallLoad());
  WaitTrained(kSamplesPerStep);
  const v1::Job first = *GetJob(cluster_->api(), cluster_->job_id());
  BeginToProbe();
  double resident[kStorms] = {};
  for (int storm = 0; storm < kStorms; ++storm) {
    const std::vector<std::string> jobs = SubmitAll(first.spec().ppo(), storm);
    ASSERT_FALSE(HasFailure());
    if (storm == 0) BeginToReadSlowly(jobs);
    Until("many of them run", [&] {
      return Metric("rlhf_leases_active") > 0 && slow_messages_ >= kSlowReaders / 2 &&
             CountsOf(jobs[1], false).generated() + CountsOf(jobs[1], false).scored() > 0;
    });
    OtherGoesOn();
    CancelAll(jobs);
    ASSERT_FALSE(HasFailure());
    OtherGoesOn();  // the fleet is its alone again
    DeleteAll(jobs);
    resident[storm] = ResidentMb();
  }
  // And anybody's, when that one is gone, too.
  ASSERT_TRUE(CancelJob(cluster_->api(), cluster_->job_id()).ok());
  Until("no lease is left", [&] { return Metric("rlhf_leases_active") == 0; });
  const auto last = SubmitSimulatedJob(cluster_->api(), SmallLoad(), dir_.path(), "last", 2);
  ASSERT_TRUE(last.ok()) << last.status();
  Until("the last one succeeds", [&] { return GetJob(cluster_->api(), *last)->state() == v1::SUCCEEDED; });
  EXPECT_EQ(CountsOf(*last, true).trained(), 2 * kSamplesPerStep);
  EndReaders();
  std::error_code ignored;
  for (const auto& left : std::filesystem::directory_iterator(cluster_->dir() + "/artifacts/.staging", ignored))
    ADD_FAILURE() << left.path();

  std::sort(delays_.begin(), delays_.end());
  ASSERT_GT(delays_.size(), 100u);
  const absl::Duration p99 = delays_[delays_.size() * 99 / 100];
  std::printf(
      "through the loop: p50 %.1f ms, p99 %.1f ms, max %.1f ms of %zu; %d slow messages; %.0f MB, %.0f after the "
      "second storm\n",
      absl::ToDoubleMilliseconds(delays_[delays_.size() / 2]), absl::ToDoubleMilliseconds(p99),
      absl::ToDoubleMilliseconds(delays_.back()), delays_.size(), slow_messages_.load(), resident[0],
      resident[kStorms - 1]);
  EXPECT_LT(p99, absl::Milliseconds(250));
  EXPECT_LT(delays_.back(), absl::Seconds(2));
  // What the first one took serves the next.
  EXPECT_LT(resident[kStorms - 1] - resident[0], 60);
}

}  // namespace
}  // namespace rlhf::bench
