// A coordinator with collect jobs and people who answer them. No fleet is needed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/cpp/artifact_cache.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace rlhf::coordinator {

class CollectFixture : public CoordinatorFixture {
 protected:
  using FeedbackStub = v1::FeedbackService::Stub;
  using JobStub = v1::JobService::Stub;

  std::shared_ptr<grpc::Channel> AsPerson(const std::string& subject, const std::vector<v1::TokenRole>& roles) {
    v1::CreateTokenRequest request;
    request.set_subject(subject);
    for (const v1::TokenRole role : roles) request.add_roles(role);
    const auto made = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? ApiWithToken(made->secret()) : nullptr;
  }
  std::unique_ptr<FeedbackStub> AsRater(const std::string& subject) {
    return v1::FeedbackService::NewStub(AsPerson(subject, {v1::RATER}));
  }

  void Upload(const std::string& name, const std::string& lines) {
    const std::string path = dir_.File(name + ".jsonl");
    ASSERT_TRUE(WriteFileDurably(path, lines).ok());
    const auto uploaded = client::UploadArtifact(Api("submitter"), path, "data", "default", name);
    ASSERT_TRUE(uploaded.ok()) << uploaded.status();
  }
  // "samples": ten prompts with a good and a bad answer each.
  void UploadSamples() {
    std::string lines;
    for (int p = 0; p < 10; ++p) {
      for (int i = 0; i < 2; ++i)
        absl::StrAppend(&lines, "{\"id\":\"", p, "\",\"index\":", i, ",\"prompt\":\"Q", p, "\",\"response\":\"",
                        i == 0 ? "good" : "bad", "\",\"category\":\"known\"}\n");
    }
    Upload("samples", lines);
  }

  // Ten comparisons of the samples.
  static v1::JobSpec CollectJob(const std::string& name = "collect") {
    v1::JobSpec spec;
    spec.set_name(name);
    spec.mutable_collect()->set_samples("samples");
    spec.mutable_collect()->set_comparisons(10);
    return spec;
  }
  std::string Submit(const v1::JobSpec& spec, std::shared_ptr<grpc::Channel> channel = nullptr) {
    v1::SubmitJobRequest request;
    request.set_request_id("submit-" + spec.name());
    *request.mutable_spec() = spec;
    if (channel == nullptr) channel = Api("submitter");
    const auto job = Call(v1::JobService::NewStub(channel), &JobStub::SubmitJob, request);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? job->job().id() : "";
  }
  v1::Job Get(const std::string& id) {
    v1::GetJobRequest get;
    get.set_job_id(id);
    const auto job = Call(v1::JobService::NewStub(Api("submitter")), &JobStub::GetJob, get);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? *job : v1::Job();
  }

  // Reads the job's events until one of them is wanted, or the job ends.
  v1::Job WatchUntil(const std::string& id, const std::function<bool(const v1::JobEvent&)>& wanted) {
    v1::WatchJobRequest watch;
    watch.set_job_id(id);
    const auto stub = v1::JobService::NewStub(Api("submitter"));
    const auto context = client::MakeContext(absl::Seconds(60));
    const auto reader = stub->WatchJob(context.get(), watch);
    v1::JobEvent event;
    while (reader->Read(&event)) {
      if (!wanted(event)) continue;
      context->TryCancel();
      break;
    }
    (void)reader->Finish();
    return Get(id);
  }
  v1::Job WaitUntilEnded(const std::string& id) {
    return WatchUntil(id, [](const v1::JobEvent&) { return false; });
  }

  v1::NextTasksResponse Next(const std::unique_ptr<FeedbackStub>& stub, const std::string& job, int most = 100) {
    v1::NextTasksRequest request;
    request.set_job_id(job);
    request.set_max_tasks(most);
    request.set_wait_ms(10'000);
    const auto tasks = Call(stub, &FeedbackStub::NextTasks, request);
    EXPECT_TRUE(tasks.ok()) << tasks.status();
    return tasks.ok() ? *tasks : v1::NextTasksResponse();
  }
  // Prefers "good", or the opposite. Returns how many answers were taken.
  int AnswerAll(const std::unique_ptr<FeedbackStub>& stub, const std::string& job, bool honest = true) {
    v1::SubmitFeedbackRequest answers;
    const v1::NextTasksResponse next = Next(stub, job);
    for (const v1::FeedbackTask& task : next.tasks()) {
      v1::Answer& answer = *answers.add_answers();
      answer.set_job_id(task.job_id());
      answer.set_task_id(task.id());
      answer.set_preference((task.first().text() == "good") == honest ? v1::FIRST : v1::SECOND);
    }
    if (answers.answers().empty()) return 0;
    const auto verdicts = Call(stub, &FeedbackStub::SubmitFeedback, answers);
    EXPECT_TRUE(verdicts.ok()) << verdicts.status();
    int taken = 0;
    for (const auto& verdict : verdicts->verdicts()) taken += verdict.accepted() ? 1 : 0;
    return taken;
  }
};

}  // namespace rlhf::coordinator
