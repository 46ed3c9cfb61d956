// Jobs over the API listener of a real coordinator, without a fleet: they wait, and can be watched while they do.
#include <filesystem>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/uploads.h"
#include "client/cpp/artifact_cache.h"
#include "common/durable_file.h"
#include "common/spec_loader.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"
#include "tests/coordinator/waiting_job.h"
#include "tests/testing/golden.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;
using Stub = v1::JobService::Stub;

class JobsEdgeTest : public CoordinatorFixture {
 protected:
  void SetUp() override {
    CoordinatorFixture::SetUp();
    stub_ = v1::JobService::NewStub(Api("submitter"));
  }
  absl::StatusOr<v1::Job> Submit(const std::string& name) {
    RLHF_RETURN_IF_ERROR(UploadWaitingJobInputs(Api("submitter"), dir_.path()));
    RLHF_ASSIGN_OR_RETURN(const v1::SubmitJobResponse response, Call(stub_, &Stub::SubmitJob, WaitingJob(name)));
    return response.job();
  }
  absl::StatusOr<v1::Job> Cancel(const std::string& id) {
    v1::CancelJobRequest request;
    request.set_job_id(id);
    request.set_reason("enough");
    return Call(stub_, &Stub::CancelJob, request);
  }
  std::vector<v1::JobEvent> Watch(const std::string& id, int64_t from, grpc::Status* status) {
    v1::WatchJobRequest request;
    request.set_job_id(id);
    request.set_resume_token(from);
    request.set_include_stages(true);
    const auto context = client::MakeContext(absl::Seconds(30));
    const auto reader = stub_->WatchJob(context.get(), request);
    std::vector<v1::JobEvent> events;
    v1::JobEvent event;
    while (reader->Read(&event)) {
      if (!event.has_bookmark()) events.push_back(event);
    }
    *status = reader->Finish();
    return events;
  }

  std::unique_ptr<Stub> stub_;
};

TEST_F(JobsEdgeTest, AnInvalidSpecificationComesBackWithItsProblems) {
  v1::ValidateJobRequest validate;
  validate.mutable_spec()->set_name("Bad Name");
  validate.mutable_spec()->mutable_sft();
  const auto problems = Call(stub_, &Stub::ValidateJob, validate);
  ASSERT_TRUE(problems.ok()) << problems.status();
  EXPECT_GE(problems->problems_size(), 2);
  v1::SubmitJobRequest submit;
  submit.set_request_id("r1");
  *submit.mutable_spec() = validate.spec();
  const auto refused = Call(stub_, &Stub::SubmitJob, submit);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument) << refused.status();
  EXPECT_EQ(ReasonOf(refused.status()), v1::INVALID_SPEC);
}

TEST_F(JobsEdgeTest, AModelIsNoDataAndDataIsNoModel) {
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
  v1::ValidateJobRequest validate;
  *validate.mutable_spec() = WaitingJob("job").spec();
  validate.mutable_spec()->mutable_sft()->set_model("tiny-data");
  validate.mutable_spec()->mutable_sft()->set_data("tiny");
  const auto problems = Call(stub_, &Stub::ValidateJob, validate);
  ASSERT_TRUE(problems.ok()) << problems.status();
  ASSERT_EQ(problems->problems_size(), 2) << problems->DebugString();
  EXPECT_EQ(problems->problems(0).field(), "sft.model");
  EXPECT_THAT(problems->problems(0).problem(),
              HasSubstr("expected a model, with a config.json; found \"tiny-data.jsonl\" in sha256:"));
  EXPECT_EQ(problems->problems(1).field(), "sft.data");
  EXPECT_THAT(problems->problems(1).problem(),
              HasSubstr("expected data, with a .jsonl file; found \"config.json\" in sha256:"));
  v1::SubmitJobRequest submit;
  submit.set_request_id("swapped");
  *submit.mutable_spec() = validate.spec();
  EXPECT_EQ(ReasonOf(Call(stub_, &Stub::SubmitJob, submit).status()), v1::INVALID_SPEC);
}

TEST_F(JobsEdgeTest, AnswersLongerThanTheModelsContextAreRefused) {
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());  // a context of 128 tokens
  v1::SubmitJobRequest submit;
  submit.set_request_id("long");
  submit.mutable_spec()->set_name("long");
  v1::SampleSpec* sample = submit.mutable_spec()->mutable_sample();
  sample->set_model("tiny");
  sample->set_prompts("tiny-data");
  sample->mutable_sampling()->set_max_new_tokens(128);
  const auto refused = Call(stub_, &Stub::SubmitJob, submit);
  EXPECT_EQ(ReasonOf(refused.status()), v1::INVALID_SPEC);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("sample.sampling.max_new_tokens: expected at most 127, for the context of tiny is 128 tokens, "
                        "prompt and answer together; found 128: lower it, or choose a model with a longer context"));
  v1::ValidateJobRequest validate;
  *validate.mutable_spec() = submit.spec();
  EXPECT_EQ(Call(stub_, &Stub::ValidateJob, validate)->problems_size(), 1);
  sample->mutable_sampling()->set_max_new_tokens(127);
  EXPECT_TRUE(Call(stub_, &Stub::SubmitJob, submit).ok());

  // A stage's model has the context of what it is trained from.
  v1::JobSpec line = WaitingJob("line").spec();
  v1::StageSpec first, second, third;
  first.set_name("first");
  *first.mutable_sft() = line.sft();
  second.set_name("second");
  v1::PpoSpec* ppo = second.mutable_ppo();
  ppo->set_policy("stage:first");
  ppo->set_prompts("tiny-data");
  ppo->set_steps(1);
  ppo->set_prompts_per_step(1);
  ppo->mutable_sampling()->set_max_new_tokens(200);
  v1::RewardComponent* component = ppo->mutable_scorer()->add_components();
  component->set_name("t");
  component->mutable_regex()->set_pattern("t");
  third.set_name("third");
  third.mutable_evaluate()->set_model("stage:second");
  third.mutable_evaluate()->set_suite("tiny-data");
  third.mutable_evaluate()->mutable_sampling()->set_max_new_tokens(128);
  for (const v1::StageSpec& stage : {first, second, third}) *line.mutable_pipeline()->add_stages() = stage;
  *validate.mutable_spec() = line;
  const auto problems = Call(stub_, &Stub::ValidateJob, validate);
  ASSERT_TRUE(problems.ok()) << problems.status();
  ASSERT_EQ(problems->problems_size(), 2) << problems->DebugString();
  EXPECT_EQ(problems->problems(0).field(), "pipeline.stages[1].ppo.sampling.max_new_tokens");
  EXPECT_THAT(problems->problems(0).problem(), HasSubstr("the context of stage:first (tiny) is 128 tokens"));
  EXPECT_EQ(problems->problems(1).field(), "pipeline.stages[2].evaluate.sampling.max_new_tokens");
  EXPECT_THAT(problems->problems(1).problem(), HasSubstr("the context of stage:second (tiny) is 128 tokens"));
}

TEST_F(JobsEdgeTest, EveryExampleIsValid) {
  int examples = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(SourceDir() + "/examples")) {
    if (entry.path().extension() != ".yaml") continue;
    SCOPED_TRACE(entry.path().string());
    // Stand-ins for what the examples' scripts make: whatever files the example names, and a model.
    const std::string data = dir_.File("data"), model = dir_.File("model");
    ASSERT_TRUE(MakeDirs(data).ok() && MakeDirs(model).ok());
    ASSERT_TRUE(WriteFileDurably(model + "/config.json", "{}").ok());
    const auto text = ReadFile(entry.path().string());
    ASSERT_TRUE(text.ok()) << text.status();
    const std::string named = "${data}/";
    for (size_t at = text->find(named); at != std::string::npos; at = text->find(named, at)) {
      at += named.size();
      const std::string file = text->substr(at, text->find_first_of("\"\n ,}", at) - at);
      ASSERT_TRUE(WriteFileDurably(data + "/" + file, "{\"prompt\":\"" + file + "\"}\n").ok());
    }
    v1::ValidateJobRequest validate;
    const absl::Status parsed =
        LoadYamlFile(entry.path().string(), {{"data", data}, {"model", model}}, validate.mutable_spec());
    ASSERT_TRUE(parsed.ok()) << parsed;
    const auto files =
        cli::UploadFileReferences(nullptr, entry.path().parent_path().string(), "default", validate.mutable_spec());
    ASSERT_TRUE(files.ok()) << files.status();
    EXPECT_GE(files->size(), 3u);
    for (const v1::Artifact& file : *files) validate.add_uploads(file.digest());
    const auto valid = Call(stub_, &Stub::ValidateJob, validate);
    ASSERT_TRUE(valid.ok()) << valid.status();
    EXPECT_EQ(valid->problems_size(), 0) << valid->DebugString();
    EXPECT_TRUE(valid->has_completed());
    ++examples;
  }
  EXPECT_GE(examples, 3);
}

TEST_F(JobsEdgeTest, FilesAreValidBeforeTheyAreUploadedAndUploadedBeforeAJobIsSubmitted) {
  const std::string dir = dir_.File("inputs");
  for (const char* model : {"base", "first", "second"}) {
    ASSERT_TRUE(MakeDirs(absl::StrCat(dir, "/", model)).ok());
    ASSERT_TRUE(
        WriteFileDurably(absl::StrCat(dir, "/", model, "/config.json"), absl::StrCat("{\"n\":\"", model, "\"}")).ok());
  }
  ASSERT_TRUE(WriteFileDurably(dir + "/prompts.jsonl", "{\"prompt\":\"a\"}\n").ok());
  v1::JobSpec written;
  written.set_name("files");
  written.mutable_sample()->set_model("file:base");
  written.mutable_sample()->set_prompts("file:prompts.jsonl");
  v1::RewardComponent* component = written.mutable_sample()->mutable_scorer()->add_components();
  component->set_name("ensemble");
  component->mutable_ensemble()->add_models("file:first");
  component->mutable_ensemble()->add_models("file:second");

  v1::ValidateJobRequest validate;
  *validate.mutable_spec() = written;
  const auto files = cli::UploadFileReferences(nullptr, dir, "default", validate.mutable_spec());
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->size(), 4u);
  auto valid = Call(stub_, &Stub::ValidateJob, validate);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_EQ(valid->problems_size(), 4) << "without what would be uploaded nothing is known";
  for (const v1::Artifact& file : *files) validate.add_uploads(file.digest());
  valid = Call(stub_, &Stub::ValidateJob, validate);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_EQ(valid->problems_size(), 0) << valid->DebugString();
  EXPECT_EQ(valid->completed().sample().scorer().components(0).ensemble().models(1),
            validate.spec().sample().scorer().components(0).ensemble().models(1));
  const auto artifacts = v1::ArtifactService::NewStub(Api("submitter"));
  const auto listed = Call(artifacts, &v1::ArtifactService::Stub::ListArtifacts, v1::ListArtifactsRequest());
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(listed->artifacts_size(), 0) << "validating uploads nothing";

  // Submitting accepts the same, and refuses the same.
  v1::SubmitJobRequest submit;
  submit.set_request_id("files");
  *submit.mutable_spec() = written;
  ASSERT_TRUE(cli::UploadFileReferences(Api("submitter"), dir, "default", submit.mutable_spec()).ok());
  EXPECT_EQ(submit.spec().SerializeAsString(), validate.spec().SerializeAsString());
  const auto submitted = Call(stub_, &Stub::SubmitJob, submit);
  EXPECT_TRUE(submitted.ok()) << submitted.status();
  v1::JobSpec lacks = written;
  lacks.mutable_sample()->mutable_scorer()->mutable_components(0)->mutable_ensemble()->set_models(1, "file:third");
  for (const auto& channel : {std::shared_ptr<grpc::Channel>(), Api("submitter")}) {
    v1::JobSpec spec = lacks;
    EXPECT_THAT(std::string(cli::UploadFileReferences(channel, dir, "default", &spec).status().message()),
                HasSubstr("sample.scorer.components[0].ensemble.models[1]: expected a file or folder at"));
  }
}

TEST_F(JobsEdgeTest, ListsComeInPagesInTheOrderAskedFor) {
  for (const char* name : {"one", "two", "three"}) ASSERT_TRUE(Submit(name).ok());
  const auto names = [&](const std::string& order) {
    std::vector<std::string> out;
    v1::ListJobsRequest request;
    request.mutable_page()->set_page_size(2);
    request.set_order_by(order);
    do {
      const auto response = Call(stub_, &Stub::ListJobs, request);
      EXPECT_TRUE(response.ok()) << response.status();
      if (!response.ok()) break;
      for (const v1::Job& job : response->jobs()) out.push_back(job.spec().name());
      request.mutable_page()->set_page_token(response->next_page_token());
    } while (!request.page().page_token().empty());
    return out;
  };
  EXPECT_THAT(names(""), testing::ElementsAre("three", "two", "one"));
  EXPECT_THAT(names("created_at"), testing::ElementsAre("one", "two", "three"));
  v1::ListJobsRequest request;
  request.set_order_by("name");
  const auto refused = Call(stub_, &Stub::ListJobs, request);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("created_at desc"));
}

TEST_F(JobsEdgeTest, PagesGoOnWhereAJobWasThatIsDeletedMeanwhile) {
  std::map<std::string, std::string> ids;
  for (const char* name : {"one", "two", "three", "four"}) {
    const auto job = Submit(name);
    ASSERT_TRUE(job.ok()) << job.status();
    ids[name] = job->id();
  }
  for (const auto& [order, last, gone, rest] :
       {std::tuple("", "four", "four", "three two one"), std::tuple("created_at", "one", "one", "two three")}) {
    v1::ListJobsRequest request;
    request.mutable_page()->set_page_size(1);
    request.set_order_by(order);
    const auto page = Call(stub_, &Stub::ListJobs, request);
    ASSERT_TRUE(page.ok() && page->jobs_size() == 1) << page.status();
    EXPECT_EQ(page->jobs(0).spec().name(), last);
    ASSERT_TRUE(Cancel(ids[gone]).ok());
    v1::DeleteJobRequest remove;
    remove.set_job_id(ids[gone]);
    ASSERT_TRUE(Call(stub_, &Stub::DeleteJob, remove).ok());
    request.mutable_page()->set_page_token(page->next_page_token());
    request.mutable_page()->set_page_size(10);
    const auto others = Call(stub_, &Stub::ListJobs, request);
    ASSERT_TRUE(others.ok()) << others.status();
    std::vector<std::string> names;
    for (const v1::Job& job : others->jobs()) names.push_back(job.spec().name());
    EXPECT_EQ(absl::StrJoin(names, " "), rest);
  }
  v1::ListJobsRequest odd;
  odd.mutable_page()->set_page_token("nonsense");
  EXPECT_EQ(Call(stub_, &Stub::ListJobs, odd).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(JobsEdgeTest, AnUnknownJobIsSaidToBeUnknownEverywhere) {
  v1::GetJobRequest get;
  get.set_job_id("nothing");
  EXPECT_EQ(ReasonOf(Call(stub_, &Stub::GetJob, get).status()), v1::UNKNOWN_JOB);
  EXPECT_EQ(Call(stub_, &Stub::GetJob, get).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(Cancel("nothing").status()), v1::UNKNOWN_JOB);
  v1::GetLedgerRequest ledger;
  ledger.set_job_id("nothing");
  EXPECT_EQ(ReasonOf(Call(stub_, &Stub::GetLedger, ledger).status()), v1::UNKNOWN_JOB);
  v1::ListSamplesRequest samples;
  samples.set_job_id("nothing");
  EXPECT_EQ(ReasonOf(Call(stub_, &Stub::ListSamples, samples).status()), v1::UNKNOWN_JOB);
  v1::ExplainJobRequest explain;
  explain.set_job_id("nothing");
  EXPECT_EQ(ReasonOf(Call(stub_, &Stub::ExplainJob, explain).status()), v1::UNKNOWN_JOB);
  grpc::Status status;
  Watch("nothing", 0, &status);
  EXPECT_EQ(ReasonOf(FromGrpc(status)), v1::UNKNOWN_JOB);
  EXPECT_TRUE(absl::IsInvalidArgument(Cancel("").status()));
}

TEST_F(JobsEdgeTest, AWatchEndsWithItsJobAndResumesWhereItWas) {
  const auto job = Submit("watched");
  ASSERT_TRUE(job.ok()) << job.status();
  // Live: the stream is open before the end.
  v1::WatchJobRequest request;
  request.set_job_id(job->id());
  const auto context = client::MakeContext(absl::Seconds(30));
  const auto reader = stub_->WatchJob(context.get(), request);
  reader->WaitForInitialMetadata();
  const auto cancelled = Cancel("watched");
  ASSERT_TRUE(cancelled.ok()) << cancelled.status();
  EXPECT_EQ(cancelled->state(), v1::CANCELLED);
  std::vector<v1::JobEvent> live;
  v1::JobEvent event;
  while (reader->Read(&event)) {
    if (!event.has_bookmark()) live.push_back(event);
  }
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_GE(live.size(), 1u);
  EXPECT_EQ(live.back().state().to(), v1::CANCELLED);
  for (size_t i = 1; i < live.size(); ++i) EXPECT_EQ(live[i].sequence(), live[i - 1].sequence() + 1);

  for (int restart = 0; restart < 2; ++restart) {
    grpc::Status status;
    const auto all = Watch("watched", 0, &status);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(all.size(), live.size());
    const auto rest = Watch(job->id(), live.front().sequence(), &status);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(rest.size(), live.size() - 1);
    EXPECT_TRUE(Watch(job->id(), live.back().sequence(), &status).empty());
    EXPECT_TRUE(status.ok()) << status.error_message();
    Watch(job->id(), 1'000'000, &status);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
    EXPECT_EQ(ReasonOf(FromGrpc(status)), v1::RESUME_TOKEN_TOO_OLD);
    Restart();
    stub_ = v1::JobService::NewStub(Api("submitter"));
  }
}

TEST_F(JobsEdgeTest, WatchersComeAndGo) {
  const auto job = Submit("watched");
  ASSERT_TRUE(job.ok()) << job.status();
  for (int i = 0; i < 20; ++i) {
    v1::WatchJobRequest request;
    request.set_job_id(job->id());
    grpc::ClientContext context;
    const auto reader = stub_->WatchJob(&context, request);
    if (i % 2 == 0) reader->WaitForInitialMetadata();
    context.TryCancel();
    v1::JobEvent event;
    while (reader->Read(&event)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Cancel("watched").ok());
}

TEST_F(JobsEdgeTest, TheLedgerOfAJobThatWaitsIsEmptyAndWhole) {
  const auto job = Submit("waiting");
  ASSERT_TRUE(job.ok()) << job.status();
  v1::GetLedgerRequest request;
  request.set_job_id("waiting");
  request.set_check(true);
  const auto ledger = Call(stub_, &Stub::GetLedger, request);
  ASSERT_TRUE(ledger.ok()) << ledger.status();
  EXPECT_EQ(ledger->counts().issued(), 0);
  EXPECT_EQ(ledger->violations_size(), 0);
  v1::ExplainJobRequest explain;
  explain.set_job_id("waiting");
  const auto why = Call(stub_, &Stub::ExplainJob, explain);
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_FALSE(why->waits_for().empty());
}

// Clients send these again by themselves when an answer is lost.
TEST_F(JobsEdgeTest, WhatIsSaidTwiceMeansTheSame) {
  const auto job = Submit("waiting");
  ASSERT_TRUE(job.ok()) << job.status();
  v1::PauseJobRequest pause;
  pause.set_job_id(job->id());
  v1::ResumeJobRequest resume;
  resume.set_job_id(job->id());
  for (int i = 0; i < 2; ++i) {
    const auto paused = Call(stub_, &Stub::PauseJob, pause);
    ASSERT_TRUE(paused.ok()) << paused.status();
    EXPECT_EQ(paused->state(), v1::PAUSED);
  }
  for (int i = 0; i < 2; ++i) {
    const auto resumed = Call(stub_, &Stub::ResumeJob, resume);
    ASSERT_TRUE(resumed.ok()) << resumed.status();
    EXPECT_NE(resumed->state(), v1::PAUSED);
  }
  for (int i = 0; i < 2; ++i) {
    const auto cancelled = Cancel(job->id());
    ASSERT_TRUE(cancelled.ok()) << cancelled.status();
    EXPECT_EQ(cancelled->state(), v1::CANCELLED);
  }
  EXPECT_EQ(ReasonOf(Call(stub_, &Stub::ResumeJob, resume).status()), v1::JOB_NOT_ACTIVE);
}

TEST_F(JobsEdgeTest, ARaterIsToldWhichJobsHaveTasks) {
  const auto job = Submit("waiting");
  ASSERT_TRUE(job.ok()) << job.status();
  const auto rater = v1::FeedbackService::NewStub(Api("rater"));
  v1::NextTasksRequest next;
  const auto none = Call(rater, &v1::FeedbackService::Stub::NextTasks, next);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->tasks_size(), 0);
  EXPECT_FALSE(none->closed());
  next.set_job_id("waiting");
  const auto other_kind = Call(rater, &v1::FeedbackService::Stub::NextTasks, next);
  EXPECT_EQ(other_kind.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(other_kind.status().message()), HasSubstr("collect"));
  next.set_job_id("nothing");
  EXPECT_EQ(ReasonOf(Call(rater, &v1::FeedbackService::Stub::NextTasks, next).status()), v1::UNKNOWN_JOB);
}

}  // namespace
}  // namespace rlhf::coordinator
