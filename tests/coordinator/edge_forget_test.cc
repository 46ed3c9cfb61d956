// What is left of a collect job's answers when one of its raters is forgotten while others go on, and of sets that were
// imported.
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/feedback/import.h"
#include "coordinator/feedback/import_log_rows.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

class ForgetEdgeTest : public CollectFixture, public testing::WithParamInterface<bool> {
 protected:
  int AnswerSome(const std::string& rater, const std::string& job, int most) {
    const auto stub = AsRater(rater);
    v1::SubmitFeedbackRequest answers;
    const v1::NextTasksResponse next = Next(stub, job, most);
    for (const v1::FeedbackTask& task : next.tasks()) {
      v1::Answer& answer = *answers.add_answers();
      answer.set_job_id(task.job_id());
      answer.set_task_id(task.id());
      answer.set_preference(v1::FIRST);
      answer.set_comment(rater);
    }
    const auto verdicts = Call(stub, &FeedbackStub::SubmitFeedback, answers);
    EXPECT_TRUE(verdicts.ok()) << verdicts.status();
    int taken = 0;
    for (const auto& verdict : verdicts->verdicts()) taken += verdict.accepted() ? 1 : 0;
    return taken;
  }
  // How many comparisons of each rater the job holds.
  std::map<std::string, int> AnswersOf(const std::string& job) {
    v1::ExportComparisonsRequest request;
    request.set_job_id(job);
    const auto context = client::MakeContext(absl::Seconds(30));
    const auto stub = v1::FeedbackService::NewStub(Api("submitter"));
    const auto reader = stub->ExportComparisons(context.get(), request);
    std::map<std::string, int> answers;
    v1::Comparison comparison;
    while (reader->Read(&comparison)) ++answers[comparison.comment()];
    EXPECT_TRUE(reader->Finish().ok());
    return answers;
  }
};

// Of each question two are asked; a coordinator that starts again in between knows only what is stored.
TEST_P(ForgetEdgeTest, NobodyElsesAnswerIsLostToWhoComesInTheirPlace) {
  UploadSamples();
  v1::JobSpec spec = CollectJob();
  spec.mutable_collect()->set_overlap(2);
  const std::string job = Submit(spec);
  ASSERT_EQ(AnswerSome("anna", job, 10), 10);
  ASSERT_EQ(AnswerSome("ben", job, 5), 5);
  v1::ForgetRaterRequest forget;
  forget.set_rater("anna");
  const auto forgotten = Call(v1::FeedbackService::NewStub(Api("admin")), &FeedbackStub::ForgetRater, forget);
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  ASSERT_EQ(forgotten->removed(), 10);
  if (GetParam()) Restart();
  ASSERT_EQ(AnswerSome("carl", job, 10), 10);
  ASSERT_EQ(AnswerSome("ben", job, 10), 5);
  const v1::Job ended = WaitUntilEnded(job);
  ASSERT_EQ(ended.state(), v1::SUCCEEDED) << ended.reason();
  EXPECT_EQ(ended.result().metrics().at("comparisons").value(), 20);
  EXPECT_THAT(AnswersOf(job), UnorderedElementsAre(Pair("ben", 10), Pair("carl", 10)));
}
INSTANTIATE_TEST_SUITE_P(WithAndWithoutARestart, ForgetEdgeTest, testing::Bool());

// Raters whose comparisons were made elsewhere.
class ForgetImportedTest : public CollectFixture {
 protected:
  // A comparison of each prompt.
  void Import(const std::string& set, const std::string& rater, const std::vector<std::string>& prompts) {
    const std::string path = dir_.File("pairs.jsonl");
    std::ofstream out(path);
    for (const std::string& prompt : prompts) {
      out << R"({"prompt":")" << prompt << R"(","chosen":"a","rejected":"b","rater":")" << rater << "\"}\n";
    }
    out.close();
    const auto imported = cli::ImportFiles(Api("submitter"), "default", set, {path}, cli::Format::kAuto);
    ASSERT_TRUE(imported.ok()) << imported.status();
    ASSERT_EQ(imported->response.imported(), prompts.size());
  }
  absl::StatusOr<v1::ForgetRaterResponse> Forget(const std::string& rater) {
    v1::ForgetRaterRequest forget;
    forget.set_rater(rater);
    return Call(v1::FeedbackService::NewStub(Api("admin")), &FeedbackStub::ForgetRater, forget);
  }
  // The newest version; empty without one.
  v1::ComparisonSet Newest(const std::string& set) {
    v1::ListSetsRequest list;
    list.set_name(set);
    const auto sets = Call(v1::FeedbackService::NewStub(Api("submitter")), &FeedbackStub::ListSets, list);
    EXPECT_TRUE(sets.ok()) << sets.status();
    return sets->sets_size() == 0 ? v1::ComparisonSet() : *sets->sets().rbegin();
  }
  // What the set's name means.
  absl::StatusOr<v1::Artifact> Named(const std::string& set) {
    v1::GetArtifactRequest get;
    get.set_reference(set);
    return Call(v1::ArtifactService::NewStub(Api("submitter")), &v1::ArtifactService::Stub::GetArtifact, get);
  }
  // Set to how many the audit log says went of it.
  std::map<std::string, std::string> Removed() {
    v1::ListAuditRequest list;
    list.mutable_page()->set_page_size(1000);
    const auto audit =
        Call(v1::OversightService::NewStub(Api("overseer")), &v1::OversightService::Stub::ListAudit, list);
    EXPECT_TRUE(audit.ok()) << audit.status();
    std::map<std::string, std::string> removed;
    for (const v1::AuditRecord& record : audit->records()) {
      if (record.action() == "comparisons.forget") removed[record.object()] += record.details().at("removed");
    }
    return removed;
  }
};

TEST_F(ForgetImportedTest, ASetWithNothingLeftLosesItsNameAndTheAuditLogSaysHowMuchWent) {
  Import("alone", "carl", {"Q1", "Q2"});
  Import("mixed", "carl", {"Q1"});
  Import("mixed", "dora", {"Q2"});
  Import("other", "dora", {"Q3"});
  const auto forgotten = Forget("carl");
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  EXPECT_EQ(forgotten->removed(), 3);
  EXPECT_TRUE(absl::IsNotFound(Named("alone").status())) << "a job that names it would train on carl's answers";
  EXPECT_EQ(Named("mixed")->digest(), Newest("mixed").digest());
  EXPECT_EQ(Newest("mixed").comparisons(), 1);
  EXPECT_FALSE(Newest("mixed").forgotten());
  EXPECT_THAT(Removed(), UnorderedElementsAre(Pair("default/alone", "2"), Pair("default/mixed", "1")));
  Restart();
  Import("alone", "dora", {"Q4"});
  EXPECT_EQ(Newest("alone").comparisons(), 1);
  EXPECT_EQ(Named("alone")->digest(), Newest("alone").digest());
}

TEST_F(ForgetImportedTest, ALogThatCannotBeReadKeepsNoOtherSetFromItAndASecondCallDoesWhatIsLeft) {
  for (const char* set : {"a", "b", "c"}) {
    Import(set, "carl", {"Q1"});
    Import(set, "dora", {"Q2"});
  }
  const std::string log = dir_.File("data") + "/" + ImportLogPath("default", "b", 0);
  const auto whole = ReadFile(log);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_TRUE(WriteFileDurably(log, std::string(whole->size(), '\xff')).ok());
  const auto failed = Forget("carl");
  EXPECT_TRUE(absl::IsDataLoss(failed.status())) << failed.status();
  EXPECT_THAT(std::string(failed.status().message()), HasSubstr("set default/b is not rid of"));
  for (const char* set : {"a", "c"}) EXPECT_FALSE(Newest(set).forgotten()) << set;
  EXPECT_TRUE(Newest("b").forgotten());

  ASSERT_TRUE(WriteFileDurably(log, *whole).ok());
  const auto again = Forget("carl");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->removed(), 1);
  EXPECT_FALSE(Newest("b").forgotten());
  EXPECT_EQ(Newest("b").comparisons(), 1);
  EXPECT_THAT(Removed(), UnorderedElementsAre(Pair("default/a", "1"), Pair("default/b", "1"), Pair("default/c", "1")));
}

TEST_F(ForgetImportedTest, WhatCouldNotBePublishedIsPublishedByASecondCall) {
  Import("alone", "carl", {"Q1"});
  Import("mixed", "carl", {"Q1"});
  Import("mixed", "dora", {"Q2"});
  // No folder can be made there.
  const std::string staging = dir_.File("artifacts") + "/.staging";
  std::filesystem::remove_all(staging);
  ASSERT_TRUE(WriteFileDurably(staging, "in the way").ok());
  EXPECT_FALSE(Forget("carl").ok());
  EXPECT_TRUE(Newest("mixed").forgotten());
  Restart();
  std::filesystem::remove(staging);
  const auto again = Forget("carl");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->removed(), 0) << "the logs were rid of carl";
  EXPECT_FALSE(Newest("mixed").forgotten());
  EXPECT_EQ(Newest("mixed").comparisons(), 1);
  EXPECT_EQ(Named("mixed")->digest(), Newest("mixed").digest());
  EXPECT_TRUE(absl::IsNotFound(Named("alone").status()));
}

}  // namespace
}  // namespace rlhf::coordinator
