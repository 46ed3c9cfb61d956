// A coordinator whose folder is a long time's work beside one that has begun: what active jobs, scrapes and people's
// pages cost is by what is active, not by what there ever was.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/load_generator/coordinator_process.h"
#include "bench/load_generator/simulated_job.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "common/status_util.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/bench/aged_folder.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::bench {
namespace {

constexpr int kWaiting = 40;  // jobs, for their turn
constexpr int kRounds = 60;   // of what pages and scrapes ask

class Service {
 public:
  Service(const std::string& dir, const AgedOptions& options) : dir_(dir) {
    const absl::Status written = WriteAgedFolder(dir, options);
    EXPECT_TRUE(written.ok()) << written;
    CoordinatorProcess::Options process;
    process.binary = BinDir() + "/rlhf-coordinator";
    process.dir = dir;
    process.data_dir = dir + "/data";
    process.tls.insecure = true;
    auto started = CoordinatorProcess::Start(process);
    EXPECT_TRUE(started.ok()) << started.status();
    if (!started.ok()) return;
    process_ = *std::move(started);
    client::ChannelOptions channel;
    channel.address = process_->address("api");
    channel.tls.insecure = true;
    api_ = client::MakeChannel(channel).value_or(nullptr);
  }
  bool ok() const { return api_ != nullptr; }

  // One runs, the others wait for their turn.
  void SubmitWaiting() {
    v1::SetQuotaRequest quota;
    quota.mutable_quota()->set_project("default");
    quota.mutable_quota()->set_max_jobs(1);
    v1::Quota set;
    EXPECT_TRUE(Call(v1::AdminService::NewStub(api_), &v1::AdminService::Stub::SetQuota, quota, &set).ok());
    EXPECT_TRUE(WriteSimulatedInputs(dir_).ok());
    const auto model = client::UploadArtifact(api_, dir_ + "/model", "model", "default", "");
    const auto prompts = client::UploadArtifact(api_, dir_ + "/prompts.jsonl", "data", "default", "");
    ASSERT_TRUE(model.ok() && prompts.ok());
    for (int i = 0; i < kWaiting; ++i) {
      v1::SubmitJobRequest request;
      request.set_request_id(absl::StrCat("waiting-", i));
      request.mutable_spec()->set_name(absl::StrCat("waiting-", i));
      request.mutable_spec()->mutable_sample()->set_model(model->digest());
      request.mutable_spec()->mutable_sample()->set_prompts(prompts->digest());
      v1::SubmitJobResponse response;
      const absl::Status status =
          Call(v1::JobService::NewStub(api_), &v1::JobService::Stub::SubmitJob, request, &response);
      ASSERT_TRUE(status.ok()) << status;
    }
  }
  // What a raters' page, a status page and Prometheus ask again and again.
  void Ask() {
    v1::ListJobsRequest active;
    for (const v1::JobState state : {v1::RUNNING, v1::PENDING}) active.add_states(state);
    active.mutable_page()->set_page_size(1);
    v1::ListJobsResponse jobs;
    EXPECT_TRUE(Call(v1::JobService::NewStub(api_), &v1::JobService::Stub::ListJobs, active, &jobs).ok());
    v1::GetJobRequest named;
    named.set_job_id("waiting-3");
    v1::Job job;
    EXPECT_TRUE(Call(v1::JobService::NewStub(api_), &v1::JobService::Stub::GetJob, named, &job).ok());
    v1::ListGatesRequest waiting;
    waiting.add_states(v1::GATE_WAITING);
    v1::ListGatesResponse gates;
    EXPECT_TRUE(
        Call(v1::OversightService::NewStub(api_), &v1::OversightService::Stub::ListGates, waiting, &gates).ok());
    const CommandResult scraped =
        RunCommand(absl::StrCat("curl -s http://", process_->address("http"), "/metrics | grep -c ^rlhf_jobs"));
    EXPECT_EQ(scraped.code, 0) << scraped.output;
  }
  // Of the process, for so many rounds of it, with what its ticks do meanwhile.
  double CpuOfAsking() {
    Ask();  // the first one may have something to find out
    const double before = Cpu();
    for (int i = 0; i < kRounds; ++i) Ask();
    return Cpu() - before;
  }
  template <typename Stub, typename Request, typename Response>
  static absl::Status Call(const std::unique_ptr<Stub>& stub,
                           grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                           const Request& request, Response* response) {
    const auto context = client::MakeContext(absl::Seconds(60));
    return FromGrpc((stub.get()->*method)(context.get(), request, response));
  }
  const std::shared_ptr<grpc::Channel>& api() const { return api_; }

 private:
  double Cpu() const {
    const auto usage = UsageOf(process_->pid());
    EXPECT_TRUE(usage.ok()) << usage.status();
    return usage.ok() ? usage->cpu_seconds : 0;
  }
  const std::string dir_;
  std::unique_ptr<CoordinatorProcess> process_;
  std::shared_ptr<grpc::Channel> api_;
};

TEST(AgedFolderTest, WhatIsActiveCostsAsMuchAsInAnEmptyService) {
  const ScratchDir aged_dir, young_dir;
  AgedOptions old;
  old.jobs = 6'000;
  old.long_job_steps = 2'000;
  old.judgements = 4'000;
  old.audit_records = 10'000;
  AgedOptions young;
  young.jobs = 8;  // one pipeline, with its stages
  young.long_job_steps = young.judgements = young.audit_records = young.gates = 1;
  old.artifacts = young.artifacts = 30;
  Service aged(aged_dir.path(), old), fresh(young_dir.path(), young);
  ASSERT_TRUE(aged.ok() && fresh.ok());
  aged.SubmitWaiting();
  fresh.SubmitWaiting();
  ASSERT_FALSE(HasFailure());
  const double fresh_cpu = fresh.CpuOfAsking(), aged_cpu = aged.CpuOfAsking();
  std::printf("%d rounds: %.2f s of a processor, with nothing behind them %.2f s\n", kRounds, aged_cpu, fresh_cpu);
  EXPECT_LT(aged_cpu, 3 * fresh_cpu + 0.1);
}

TEST(AgedFolderTest, TheLoopServesOthersWhileARaterIsForgotten) {
  const ScratchDir dir;
  AgedOptions old;
  old.jobs = 800;
  old.long_job_steps = old.audit_records = old.aliases = 1;
  old.artifacts = 30;
  old.judgements = 60'000;
  Service aged(dir.path(), old);
  ASSERT_TRUE(aged.ok());
  std::atomic<bool> over{false};
  absl::Duration longest;
  std::thread probe([&] {
    const auto stub = v1::OversightService::NewStub(aged.api());
    while (!over) {
      const absl::Time began = absl::Now();
      v1::ServiceState state;
      const auto context = client::MakeContext(absl::Seconds(60));
      EXPECT_TRUE(stub->GetServiceState(context.get(), {}, &state).ok());
      longest = std::max(longest, absl::Now() - began);
      absl::SleepFor(absl::Milliseconds(1));  // between two looks at another process
    }
  });
  v1::ForgetRaterRequest request;
  request.set_rater("rater-000000000007");
  v1::ForgetRaterResponse response;
  const absl::Time began = absl::Now();
  const absl::Status status = Service::Call(v1::FeedbackService::NewStub(aged.api()),
                                            &v1::FeedbackService::Stub::ForgetRater, request, &response);
  const absl::Duration took = absl::Now() - began;
  over = true;
  probe.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_GT(response.removed(), 1000);
  std::printf("forgotten in %.0f ms, the longest wait for the loop %.0f ms\n", absl::ToDoubleMilliseconds(took),
              absl::ToDoubleMilliseconds(longest));
  EXPECT_LT(longest, took / 2);
}

}  // namespace
}  // namespace rlhf::bench
