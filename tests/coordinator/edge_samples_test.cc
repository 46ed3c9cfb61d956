// Samples of a real coordinator's job, through gRPC: a worker of this test brings long ones, and they are listed.
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/cpp/artifact_cache.h"
#include "common/durable_file.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"
#include "tests/coordinator/waiting_job.h"

namespace rlhf::coordinator {
namespace {

constexpr int kLong = 6;
constexpr size_t kLength = 15 << 20;  // of an answer; all of them are more than a message may have

class SamplesEdgeTest : public CoordinatorFixture {
 protected:
  // A job whose samples are all generated, in a fleet of one worker.
  std::string Generate(size_t length) {
    EXPECT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
    std::string prompts;
    for (int i = 0; i < kLong; ++i) absl::StrAppend(&prompts, "{\"prompt\":\"p", i, "\"}\n");
    EXPECT_TRUE(WriteFileDurably(dir_.File("prompts.jsonl"), prompts).ok());
    EXPECT_TRUE(
        client::UploadArtifact(Api("submitter"), dir_.File("prompts.jsonl"), "data", "default", "prompts").ok());
    v1::SubmitJobRequest submit;
    submit.set_request_id("submit");
    submit.mutable_spec()->set_name("long");
    submit.mutable_spec()->mutable_sample()->set_model("tiny");
    submit.mutable_spec()->mutable_sample()->set_prompts("prompts");
    const auto job = Call(v1::JobService::NewStub(Api("submitter")), &v1::JobService::Stub::SubmitJob, submit);
    EXPECT_TRUE(job.ok()) << job.status();
    if (!job.ok()) return "";
    const auto fleet = v1::FleetService::NewStub(Fleet("rollout_worker", "w0"));
    v1::RegisterRequest hello;
    hello.set_role(v1::ROLE_ROLLOUT_WORKER);
    hello.set_instance_id("w0");
    hello.set_protocol_version(1);
    hello.set_slots(kLong);
    const auto session = Call(fleet, &v1::FleetService::Stub::Register, hello);
    EXPECT_TRUE(session.ok()) << session.status();
    int brought = 0;
    for (int tries = 0; session.ok() && brought < kLong && tries < 20; ++tries) {
      v1::LeasePromptsRequest want;
      want.set_session_id(session->session_id());
      want.set_max_samples(kLong);
      want.set_wait_ms(1000);
      const auto work = Call(fleet, &v1::FleetService::Stub::LeasePrompts, want);
      EXPECT_TRUE(work.ok()) << work.status();
      if (!work.ok()) break;
      for (const v1::PromptLease& lease : work->leases()) {
        v1::SubmitSamplesRequest result;
        result.set_session_id(session->session_id());
        v1::Sample* sample = result.add_samples();
        sample->mutable_id()->set_job_id(lease.job_id());
        sample->mutable_id()->set_step(lease.step());
        sample->mutable_id()->set_ordinal(lease.ordinal());
        sample->set_attempt(lease.samples(0).attempt());
        sample->set_response_text(std::string(length, static_cast<char>('a' + lease.ordinal())));
        sample->add_response_tokens(1);
        sample->add_behaviour_log_probs(-1);
        const auto verdicts = Call(fleet, &v1::FleetService::Stub::SubmitSamples, result);
        EXPECT_TRUE(verdicts.ok() && verdicts->verdicts(0).accepted()) << verdicts.status();
        ++brought;
      }
    }
    EXPECT_EQ(brought, kLong);
    return job->job().id();
  }
};

TEST_F(SamplesEdgeTest, LongSamplesAreListedInPagesThatAMessageCarries) {
  const std::string job = Generate(kLength);
  const auto stub = v1::JobService::NewStub(Api("submitter"));
  v1::ListSamplesRequest request;
  request.set_job_id(job);
  request.mutable_page()->set_page_size(1000);
  std::set<int> listed;
  int pages = 0;
  do {
    const auto page = Call(stub, &v1::JobService::Stub::ListSamples, request);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const v1::SampleView& view : page->samples()) {
      EXPECT_TRUE(listed.insert(view.row().id().ordinal()).second);
      EXPECT_EQ(view.sample().response_text().size(), kLength);
    }
    request.mutable_page()->set_page_token(page->next_page_token());
    ++pages;
  } while (!request.page().page_token().empty());
  EXPECT_EQ(listed.size(), static_cast<size_t>(kLong));
  EXPECT_GT(pages, 1);
}

TEST_F(SamplesEdgeTest, MetricsInPagesAreAllMetrics) {
  v1::WatchJobRequest watch;
  watch.set_job_id(Generate(10));
  const auto stub = v1::JobService::NewStub(Api("submitter"));
  const auto context = client::MakeContext(absl::Seconds(30));
  const auto reader = stub->WatchJob(context.get(), watch);
  std::vector<std::string> told;
  for (v1::JobEvent event; reader->Read(&event);) {
    if (event.has_metrics()) told.push_back(event.metrics().ShortDebugString());
  }
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_FALSE(told.empty());
  for (const int size : {1, static_cast<int>(told.size()), 1000}) {
    v1::ListMetricsRequest request;
    request.set_job_id(watch.job_id());
    request.mutable_page()->set_page_size(size);
    std::vector<std::string> listed;
    do {
      const auto page = Call(stub, &v1::JobService::Stub::ListMetrics, request);
      ASSERT_TRUE(page.ok()) << page.status();
      ASSERT_FALSE(page->points().empty());
      for (const v1::MetricPoint& point : page->points()) listed.push_back(point.ShortDebugString());
      request.mutable_page()->set_page_token(page->next_page_token());
    } while (!request.page().page_token().empty());
    EXPECT_EQ(listed, told) << size;
  }
}

}  // namespace
}  // namespace rlhf::coordinator
