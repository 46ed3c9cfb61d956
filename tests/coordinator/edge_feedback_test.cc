// People's judgements over the API listener of a real coordinator: a collect job from samples to its set, imports,
// frozen sets, and a rater who is forgotten.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/backup_files.h"
#include "cli/feedback/import.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;
using FeedbackStub = v1::FeedbackService::Stub;

class FeedbackEdgeTest : public CollectFixture {
 protected:
  std::unique_ptr<FeedbackStub> As(const std::string& role) { return v1::FeedbackService::NewStub(Api(role)); }

  std::string Collect(const std::function<void(v1::CollectSpec*)>& change = nullptr) {
    UploadSamples();
    v1::JobSpec spec = CollectJob();
    if (change) change(spec.mutable_collect());
    return Submit(spec);
  }

  std::vector<v1::Comparison> Export(const std::string& reference) {
    v1::ExportComparisonsRequest request;
    request.set_job_id(reference);
    const auto context = client::MakeContext(absl::Seconds(30));
    const auto stub = As("submitter");
    const auto reader = stub->ExportComparisons(context.get(), request);
    std::vector<v1::Comparison> found;
    v1::Comparison comparison;
    while (reader->Read(&comparison)) found.push_back(comparison);
    EXPECT_TRUE(reader->Finish().ok());
    return found;
  }
  absl::Status BackUp(const std::string& folder) {
    RLHF_ASSIGN_OR_RETURN(const auto writer, cli::BackupWriter::Begin(folder));
    const auto context = client::MakeContext(absl::Seconds(60));
    const auto stub = v1::AdminService::NewStub(Api("admin"));
    const auto reader = stub->Backup(context.get(), v1::BackupRequest());
    v1::BackupChunk chunk;
    while (reader->Read(&chunk)) RLHF_RETURN_IF_ERROR(writer->Take(chunk));
    RLHF_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
    return writer->Finish().status();
  }
  std::string Lines(const std::string& digest, const std::string& file) {
    client::ArtifactCache cache("", dir_.File("fetched"), Api("submitter"));
    const auto folder = cache.Fetch(digest);
    EXPECT_TRUE(folder.ok()) << folder.status();
    const auto lines = folder.ok() ? ReadFile(*folder + "/" + file) : folder;
    EXPECT_TRUE(lines.ok()) << lines.status();
    return lines.ok() ? *lines : "";
  }
  // "planted": ten questions whose right answer is "yes".
  void UploadPlanted() {
    std::string planted;
    for (int i = 0; i < 10; ++i)
      absl::StrAppend(&planted, R"({"prompt":"P)", i, R"(","chosen":"yes","rejected":"no"})", "\n");
    Upload("planted", planted);
  }
  // A better version of every answer, "yes" to planted questions and whatever is not "worse" of two answers, or the
  // opposite. Returns how many were taken.
  int EditAll(const std::string& rater, const std::string& job, bool honest) {
    const auto stub = AsRater(rater);
    v1::SubmitFeedbackRequest answers;
    const v1::NextTasksResponse next = Next(stub, job);
    for (const v1::FeedbackTask& task : next.tasks()) {
      v1::Answer& answer = *answers.add_answers();
      answer.set_job_id(task.job_id());
      answer.set_task_id(task.id());
      if (task.kind() == v1::FEEDBACK_EDIT)
        answer.set_written(absl::StrCat(task.first().text(), ", edited by ", rater));
      else
        answer.set_preference((task.first().text() != "no" && task.first().text() != "worse") == honest ? v1::FIRST
                                                                                                        : v1::SECOND);
    }
    const auto verdicts = Call(stub, &FeedbackStub::SubmitFeedback, answers);
    EXPECT_TRUE(verdicts.ok()) << verdicts.status();
    if (!verdicts.ok()) return 0;
    const auto& all = verdicts->verdicts();
    return static_cast<int>(std::count_if(all.begin(), all.end(), [](const auto& v) { return v.accepted(); }));
  }
};

TEST_F(FeedbackEdgeTest, ACollectJobEndsInASetWithAgreement) {
  const std::string job = Collect([](v1::CollectSpec* spec) { spec->set_overlap(2); });
  const auto anna = AsRater("anna"), ben = AsRater("ben");
  EXPECT_EQ(AnswerAll(anna, job), 10);
  EXPECT_EQ(Next(anna, job, 1).mine(), 10);
  EXPECT_EQ(AnswerAll(ben, job), 10);
  const v1::Job ended = WaitUntilEnded(job);
  ASSERT_EQ(ended.state(), v1::SUCCEEDED) << ended.reason();
  EXPECT_DOUBLE_EQ(ended.result().metrics().at("agreement").value(), 1);
  EXPECT_EQ(ended.result().metrics().at("comparisons").value(), 20);
  EXPECT_EQ(ended.step(), ended.total_steps()) << "tasks, however many answered each";
  EXPECT_EQ(ended.total_steps(), 10);

  v1::ListSetsRequest list;
  const auto sets = Call(As("submitter"), &FeedbackStub::ListSets, list);
  ASSERT_TRUE(sets.ok()) << sets.status();
  ASSERT_EQ(sets->sets_size(), 1);
  EXPECT_EQ(sets->sets(0).name(), job);
  EXPECT_EQ(sets->sets(0).digest(), ended.result().artifacts().at("comparisons"));
  EXPECT_EQ(sets->sets(0).raters_size(), 2);
  for (const v1::Comparison& comparison : Export(job)) {
    EXPECT_THAT(comparison.rater(), testing::StartsWith("rater-")) << "raters are pseudonymous";
  }
  v1::GetAgreementRequest agreement;
  agreement.set_job_id(job);
  const auto report = Call(As("submitter"), &FeedbackStub::GetAgreement, agreement);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->preference().items(), 10);
  EXPECT_THAT(report->raters(), SizeIs(2));
}

TEST_F(FeedbackEdgeTest, ARaterWhoIsForgottenIsGoneFromTheStoreAndWhatUsedThemIsNamed) {
  const std::string job = Collect([](v1::CollectSpec* spec) { spec->set_overlap(2); });
  const auto anna = AsRater("anna"), ben = AsRater("ben");
  AnswerAll(anna, job);
  v1::ForgetRaterRequest forget;
  forget.set_rater("anna");
  // While the job is open, the questions are asked again.
  EXPECT_TRUE(absl::IsPermissionDenied(Call(As("submitter"), &FeedbackStub::ForgetRater, forget).status()));
  auto forgotten = Call(As("admin"), &FeedbackStub::ForgetRater, forget);
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  EXPECT_EQ(forgotten->removed(), 10);
  EXPECT_TRUE(forgotten->used_by().empty());
  EXPECT_EQ(AnswerAll(anna, job), 10);
  AnswerAll(ben, job, false);
  ASSERT_EQ(WaitUntilEnded(job).state(), v1::SUCCEEDED);

  v1::FreezeSetRequest freeze;
  freeze.set_job_id(job);
  freeze.set_name("frozen");
  freeze.add_exclude_raters(forgotten->rater());
  const auto frozen = Call(As("submitter"), &FeedbackStub::FreezeSet, freeze);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_EQ(frozen->comparisons(), 10);
  EXPECT_EQ(frozen->version(), 1);

  forgotten = Call(As("admin"), &FeedbackStub::ForgetRater, forget);
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  EXPECT_EQ(forgotten->removed(), 10);
  ASSERT_EQ(forgotten->sets_size(), 1) << "the frozen set never had anna's";
  EXPECT_EQ(forgotten->sets(0).name(), job);
  EXPECT_THAT(Export(job), SizeIs(10));
  Restart();
  EXPECT_THAT(Export(job), SizeIs(10)) << "durably";
}

TEST_F(FeedbackEdgeTest, WhoIsLeftOutIsNamedAsTheyAreForgottenAndWasThere) {
  const std::string job = Collect([](v1::CollectSpec* spec) { spec->set_overlap(2); });
  ASSERT_EQ(AnswerAll(AsRater("anna"), job), 10);
  ASSERT_EQ(AnswerAll(AsRater("ben"), job), 10);
  ASSERT_EQ(WaitUntilEnded(job).state(), v1::SUCCEEDED);
  const auto exported = [&](const std::string& reference, const std::string& rater, absl::Status* status) {
    v1::ExportComparisonsRequest request;
    request.set_job_id(reference);
    request.add_exclude_raters(rater);
    const auto context = client::MakeContext(absl::Seconds(30));
    const auto stub = As("submitter");
    const auto reader = stub->ExportComparisons(context.get(), request);
    std::vector<v1::Comparison> found;
    v1::Comparison comparison;
    while (reader->Read(&comparison)) found.push_back(comparison);
    *status = FromGrpc(reader->Finish());
    return found;
  };
  v1::FreezeSetRequest freeze;
  freeze.set_job_id(job);
  freeze.set_name("without-anna");
  freeze.add_exclude_raters("anna");
  const auto frozen = Call(As("submitter"), &FeedbackStub::FreezeSet, freeze);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_EQ(frozen->comparisons(), 10);
  ASSERT_THAT(frozen->excluded_raters(), SizeIs(1));
  EXPECT_THAT(frozen->excluded_raters(0), testing::StartsWith("rater-"));
  absl::Status status;
  const std::vector<v1::Comparison> bens = exported(job, "anna", &status);
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_THAT(bens, SizeIs(10));
  EXPECT_NE(bens[0].rater(), frozen->excluded_raters(0));

  for (const char* nobody : {"ann", "rater-0123456789ab"}) {
    SCOPED_TRACE(nobody);
    freeze.set_exclude_raters(0, nobody);
    freeze.set_name("nobody");
    const auto refused = Call(As("submitter"), &FeedbackStub::FreezeSet, freeze);
    EXPECT_TRUE(absl::IsInvalidArgument(refused.status())) << refused.status();
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(absl::StrCat("\"", nobody, "\"")));
    EXPECT_THAT(exported(job, nobody, &status), testing::IsEmpty());
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    v1::ForgetRaterRequest forget;
    forget.set_rater(nobody);
    EXPECT_TRUE(absl::IsNotFound(Call(As("admin"), &FeedbackStub::ForgetRater, forget).status()));
  }
  v1::ListSetsRequest list;
  list.set_name("nobody");
  EXPECT_EQ(Call(As("submitter"), &FeedbackStub::ListSets, list)->sets_size(), 0);
  AsRater("carl");
  v1::ForgetRaterRequest forget;
  forget.set_rater("carl");
  const auto forgotten = Call(As("admin"), &FeedbackStub::ForgetRater, forget);
  EXPECT_TRUE(forgotten.ok()) << "has a token, and judged nothing: " << forgotten.status();

  const std::string path = dir_.File("pairs.jsonl");
  std::ofstream(path) << "{\"prompt\":\"Q1\",\"chosen\":\"a\",\"rejected\":\"b\",\"rater\":\"dora\"}\n";
  ASSERT_TRUE(cli::ImportFiles(Api("submitter"), "default", "team/human", {path}, cli::Format::kAuto).ok());
  EXPECT_THAT(exported("set:team/human", "dora", &status), testing::IsEmpty());
  EXPECT_TRUE(status.ok()) << status;
  exported("set:team/human", "anna", &status);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << "she is in none of the set: " << status;
}

TEST_F(FeedbackEdgeTest, WhoOnlyReadsDoesNotFindOutWhoIsBehindAPseudonym) {
  const std::string job = Collect([](v1::CollectSpec*) {});
  ASSERT_EQ(AnswerAll(AsRater("anna"), job), 10);
  ASSERT_EQ(WaitUntilEnded(job).state(), v1::SUCCEEDED);
  const auto vera = v1::FeedbackService::NewStub(AsPerson("vera", {v1::VIEWER, v1::OVERSEER}));
  const auto without = [&](const std::string& rater) {
    v1::ExportComparisonsRequest request;
    request.set_job_id(job);
    if (!rater.empty()) request.add_exclude_raters(rater);
    const auto context = client::MakeContext(absl::Seconds(30));
    const auto reader = vera->ExportComparisons(context.get(), request);
    std::vector<v1::Comparison> found;
    v1::Comparison comparison;
    while (reader->Read(&comparison)) found.push_back(comparison);
    return std::pair(FromGrpc(reader->Finish()), found);
  };
  const auto all = without("");
  ASSERT_THAT(all.second, SizeIs(10)) << all.first;
  const auto named = without("anna"), nobody = without("zoe"), pseudonym = without(all.second[0].rater());
  EXPECT_TRUE(absl::IsPermissionDenied(named.first)) << named.first;
  EXPECT_THAT(named.second, testing::IsEmpty());
  EXPECT_EQ(nobody.first.code(), named.first.code()) << "no hint";
  EXPECT_TRUE(pseudonym.first.ok()) << pseudonym.first;
  EXPECT_THAT(pseudonym.second, testing::IsEmpty());
}

TEST_F(FeedbackEdgeTest, WhoWasForgottenBetweenTwoRoundsIsNotInTheNextRoundsSet) {
  // anna says the opposite of ben: her lines prefer "bad".
  const auto two_raters = [](v1::CollectSpec* spec) { spec->set_overlap(2); };
  const std::string first = Collect(two_raters);
  const auto anna = AsRater("anna"), ben = AsRater("ben");
  ASSERT_EQ(AnswerAll(anna, first, false), 10);
  ASSERT_EQ(AnswerAll(ben, first), 10);
  const v1::Job before = WaitUntilEnded(first);
  ASSERT_EQ(before.state(), v1::SUCCEEDED) << before.reason();

  v1::JobSpec spec = CollectJob("next-round");
  spec.mutable_collect()->set_previous(before.result().artifacts().at("comparisons"));
  const std::string second = Submit(spec);
  v1::ForgetRaterRequest forget;
  forget.set_rater("anna");
  const auto forgotten = Call(As("admin"), &FeedbackStub::ForgetRater, forget);
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  ASSERT_EQ(forgotten->removed(), 10);
  Restart();
  ASSERT_EQ(AnswerAll(AsRater("ben2"), second), 10);
  const v1::Job ended = WaitUntilEnded(second);
  ASSERT_EQ(ended.state(), v1::SUCCEEDED) << ended.reason();
  EXPECT_EQ(ended.result().metrics().at("comparisons").value(), 20) << "ben's of both rounds";

  v1::ListSetsRequest list;
  list.set_name(second);
  const auto sets = Call(As("submitter"), &FeedbackStub::ListSets, list);
  ASSERT_TRUE(sets.ok()) << sets.status();
  ASSERT_EQ(sets->sets_size(), 1);
  EXPECT_FALSE(sets->sets(0).forgotten());
  EXPECT_EQ(sets->sets(0).raters().count(forgotten->rater()), 0u);
  EXPECT_EQ(sets->sets(0).raters_size(), 2);
  client::ArtifactCache cache("", dir_.File("fetched"), Api("submitter"));
  const auto folder = cache.Fetch(ended.result().artifacts().at("comparisons"));
  ASSERT_TRUE(folder.ok()) << folder.status();
  const auto lines = ReadFile(*folder + "/comparisons.jsonl");
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_EQ(std::count(lines->begin(), lines->end(), '\n'), 20);
  EXPECT_THAT(*lines, testing::Not(HasSubstr("\"chosen\":\"bad\""))) << "what anna judged";
}

TEST_F(FeedbackEdgeTest, WhoIsLeftOutOfASetIsLeftOutOfWhatIsMeasuredOfIt) {
  UploadPlanted();
  std::string worse;
  for (int p = 0; p < 10; ++p)
    absl::StrAppend(&worse, R"({"id":")", p, R"(","prompt":"Q)", p, R"(","response":"worse","category":"known"})",
                    "\n");
  Upload("worse", worse);
  const std::string job = Collect([](v1::CollectSpec* spec) {
    spec->set_overlap(3);
    spec->set_against("worse");
    spec->set_planted("planted");
    spec->set_planted_fraction(1);
    spec->set_min_planted_accuracy(0.8);
  });
  // ben says the opposite of what is right, of planted questions as of the others.
  for (const char* rater : {"anna", "ben", "carl"})
    ASSERT_EQ(EditAll(rater, job, std::string(rater) != "ben"), 20) << "ten are planted";
  const v1::Job ended = WaitUntilEnded(job);
  ASSERT_EQ(ended.state(), v1::SUCCEEDED) << ended.reason();
  const auto& metrics = ended.result().metrics();
  EXPECT_EQ(metrics.at("comparisons").value(), 20);
  EXPECT_EQ(metrics.at("win_rate").value(), 1);
  EXPECT_EQ(metrics.at("win_rate").n(), 20);
  EXPECT_EQ(metrics.at("known.win_rate").value(), 1);
  EXPECT_EQ(metrics.at("agreement").value(), 1);
  EXPECT_NEAR(metrics.at("planted_accuracy").value(), 2.0 / 3, 1e-12) << "of all: why somebody was left out";
  EXPECT_EQ(metrics.at("planted_accuracy").n(), 30);
}

TEST_F(FeedbackEdgeTest, WhoIsLeftOutOfASetIsLeftOutOfItsEditsToo) {
  UploadPlanted();
  const std::string first = Collect([](v1::CollectSpec* spec) {
    spec->set_overlap(3);
    spec->set_edit_fraction(1);
    spec->set_planted("planted");
    spec->set_planted_fraction(1);
    spec->set_min_planted_accuracy(0.8);
  });
  // ben answers every planted question wrongly.
  const std::vector<std::string> raters = {"anna", "ben", "carl"};
  for (const std::string& rater : raters) ASSERT_EQ(EditAll(rater, first, rater != "ben"), 20) << "ten are planted";
  const v1::Job before = WaitUntilEnded(first);
  ASSERT_EQ(before.state(), v1::SUCCEEDED) << before.reason();
  EXPECT_EQ(before.result().metrics().at("comparisons").value(), 20);
  const auto edits_of = [&](const v1::Job& job, const std::string& rater) {
    const std::string lines = Lines(job.result().artifacts().at("edits"), "edits.jsonl");
    const std::vector<std::string> parts = absl::StrSplit(lines, absl::StrCat("edited by ", rater));
    return static_cast<int>(parts.size()) - 1;
  };
  for (const std::string& rater : raters) EXPECT_EQ(edits_of(before, rater), rater == "ben" ? 0 : 10) << rater;

  // Frozen without those who were flagged: the same edits.
  v1::FreezeSetRequest freeze;
  freeze.set_job_id(first);
  freeze.set_name("edits-of-some");
  freeze.set_edits_as_sft(true);
  freeze.set_exclude_flagged(true);
  const auto frozen = Call(As("submitter"), &FeedbackStub::FreezeSet, freeze);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(frozen->excluded_raters(), SizeIs(1));
  EXPECT_EQ(Lines(frozen->digest(), "edits.jsonl"), Lines(before.result().artifacts().at("edits"), "edits.jsonl"));

  // Who was left out of an earlier round's set teaches nothing in the next one, though nothing is planted there.
  v1::JobSpec spec = CollectJob("next-round");
  spec.mutable_collect()->set_overlap(2);
  spec.mutable_collect()->set_edit_fraction(1);
  spec.mutable_collect()->set_previous(before.result().artifacts().at("comparisons"));
  const std::string second = Submit(spec);
  for (const char* rater : {"anna2", "ben"}) ASSERT_EQ(EditAll(rater, second, true), 10);
  const v1::Job after = WaitUntilEnded(second);
  ASSERT_EQ(after.state(), v1::SUCCEEDED) << after.reason();
  EXPECT_EQ(after.result().metrics().at("comparisons").value(), 30);
  EXPECT_EQ(edits_of(after, "anna2"), 10);
  EXPECT_EQ(edits_of(after, "ben"), 0);

  // What used somebody is named when they are forgotten: nothing of who was left out, of the others also the edits.
  const auto used_by = [&](const std::string& rater) {
    v1::ForgetRaterRequest forget;
    forget.set_rater(rater);
    const auto forgotten = Call(As("admin"), &FeedbackStub::ForgetRater, forget);
    EXPECT_TRUE(forgotten.ok()) << forgotten.status();
    return forgotten.ok() ? absl::StrJoin(forgotten->used_by(), "\n") : "";
  };
  EXPECT_EQ(used_by("ben"), "");
  const auto named = [](const v1::Job& job) {
    return HasSubstr(absl::StrCat("edits ", job.result().artifacts().at("edits"), " of job ", job.id()));
  };
  EXPECT_THAT(used_by("anna"), testing::AllOf(named(before), testing::Not(named(after)), HasSubstr("edits-of-some")));
  EXPECT_THAT(used_by("anna2"), testing::AllOf(named(after), testing::Not(named(before))));
}

TEST_F(FeedbackEdgeTest, TasksKeepTheirOrderOverARestartThoughIdsDoNotTell) {
  UploadPlanted();
  const std::string job = Collect([](v1::CollectSpec* spec) {
    spec->set_overlap(2);
    spec->set_planted("planted");
    spec->set_planted_fraction(0.5);
  });
  const auto ids = [&](const std::string& rater) {
    std::vector<std::string> found;
    const auto next = Next(AsRater(rater), job);
    for (const v1::FeedbackTask& task : next.tasks()) found.push_back(task.id());
    return found;
  };
  const std::vector<std::string> before = ids("anna");
  EXPECT_EQ(before.size(), 15u);
  EXPECT_FALSE(std::is_sorted(before.begin(), before.end()));
  Restart();
  EXPECT_EQ(ids("ben"), before);
}

TEST_F(FeedbackEdgeTest, RatingsOfSingleAnswersArePairedIntoSets) {
  const std::string job = Collect([](v1::CollectSpec* spec) {
    spec->set_comparisons(20);  // both answers to each of ten prompts
    spec->set_rating_fraction(1);
    spec->add_criteria("helpful");
    spec->set_pair_ratings(true);
  });
  const auto anna = AsRater("anna");
  v1::SubmitFeedbackRequest answers;
  answers.set_request_id("ratings");
  const auto next = Next(anna, job);
  for (const v1::FeedbackTask& task : next.tasks()) {
    EXPECT_EQ(task.kind(), v1::FEEDBACK_RATING);
    v1::Answer& answer = *answers.add_answers();
    answer.set_job_id(task.job_id());
    answer.set_task_id(task.id());
    (*answer.mutable_first_ratings())["helpful"] = task.first().text() == "good" ? 9 : 2;
  }
  ASSERT_EQ(answers.answers_size(), 20);
  const auto verdicts = Call(anna, &FeedbackStub::SubmitFeedback, answers);
  ASSERT_TRUE(verdicts.ok()) << verdicts.status();
  const v1::Job ended = WaitUntilEnded(job);
  ASSERT_EQ(ended.state(), v1::SUCCEEDED) << ended.reason();
  EXPECT_EQ(ended.result().metrics().at("comparisons").value(), 10);

  v1::FreezeSetRequest freeze;
  freeze.set_job_id(job);
  freeze.set_name("ratings-alone");
  const auto unpaired = Call(As("submitter"), &FeedbackStub::FreezeSet, freeze);
  EXPECT_TRUE(absl::IsFailedPrecondition(unpaired.status())) << "ratings alone train nothing: " << unpaired.status();
  freeze.set_name("paired");
  freeze.set_pair_ratings(true);
  const auto paired = Call(As("submitter"), &FeedbackStub::FreezeSet, freeze);
  ASSERT_TRUE(paired.ok()) << paired.status();
  EXPECT_EQ(paired->comparisons(), 10);
  EXPECT_EQ(paired->ties(), 0);
  v1::ListSetsRequest list;
  list.set_name(job);
  const auto sets = Call(As("submitter"), &FeedbackStub::ListSets, list);
  ASSERT_TRUE(sets.ok()) << sets.status();
  ASSERT_EQ(sets->sets_size(), 1);
  EXPECT_EQ(sets->sets(0).content_sha256(), paired->content_sha256()) << "equal sets, whoever froze them";
  freeze.set_edits_as_sft(true);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(As("submitter"), &FeedbackStub::FreezeSet, freeze).status()));
}

TEST_F(FeedbackEdgeTest, AnImportKeepsGoodLinesNamesBadOnesAndFindsDuplicates) {
  const std::string path = dir_.File("pairs.jsonl");
  std::ofstream(path) << "{\"prompt\":\"Q1\",\"chosen\":\"a\",\"rejected\":\"b\",\"rater\":\"carl\"}\n"
                      << "not json\n"
                      << "{\"prompt\":\"Q2\",\"chosen\":\"same\",\"rejected\":\"same\"}\n"
                      << "{\"prompt\":\"Q3\",\"chosen\":\"a\",\"rejected\":\"b\",\"tie\":true}\n"
                      << "{\"prompt\":\"Q1\",\"chosen\":\"a\",\"rejected\":\"b\",\"rater\":\"carl\"}\n";
  const auto first = cli::ImportFiles(Api("submitter"), "default", "team/human", {path}, cli::Format::kAuto);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->response.imported(), 2);
  EXPECT_EQ(first->response.duplicates(), 1);
  EXPECT_EQ(first->response.rejected(), 2);
  EXPECT_THAT(first->problems, ElementsAre(HasSubstr("pairs.jsonl:2: expected JSON"),
                                           HasSubstr("pairs.jsonl:3: first, second: expected two different texts")));
  EXPECT_EQ(first->response.set().version(), 1);

  std::ofstream(path, std::ios::app) << "{\"prompt\":\"Q4\",\"chosen\":\"c\",\"rejected\":\"d\",\"rater\":\"dora\"}\n";
  Restart();
  const auto second = cli::ImportFiles(Api("submitter"), "default", "team/human", {path}, cli::Format::kAuto);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->response.imported(), 1);
  EXPECT_EQ(second->response.duplicates(), 3);
  EXPECT_EQ(second->response.set().version(), 2);
  EXPECT_EQ(second->response.set().comparisons(), 3);
  const auto third = cli::ImportFiles(Api("submitter"), "default", "team/human", {path}, cli::Format::kAuto);
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(third->response.set().digest(), second->response.set().digest()) << "nothing new: nothing is made";

  v1::ForgetRaterRequest forget;
  forget.set_rater("carl");
  const auto forgotten = Call(As("admin"), &FeedbackStub::ForgetRater, forget);
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  EXPECT_EQ(forgotten->removed(), 1);
  EXPECT_EQ(forgotten->sets_size(), 2) << "both versions had carl's";
  std::vector<std::string> prompts;
  for (const auto& comparison : Export("set:team/human")) prompts.push_back(comparison.prompt().text());
  EXPECT_THAT(prompts, ElementsAre("Q3", "Q4"));
  v1::ListSetsRequest list;
  list.set_name("team/human");
  const auto sets = Call(As("submitter"), &FeedbackStub::ListSets, list);
  ASSERT_TRUE(sets.ok()) << sets.status();
  ASSERT_EQ(sets->sets_size(), 3) << "published again without carl";
  EXPECT_EQ(sets->sets(2).comparisons(), 2);
  EXPECT_EQ(sets->sets(2).raters_size(), 1);
}

TEST_F(FeedbackEdgeTest, ARestoredBackupHoldsWhatWasImportedAndTakesMore) {
  const std::string path = dir_.File("pairs.jsonl"), backup = dir_.File("backup");
  const auto import = [&](const std::string& prompt, const std::string& rater) {
    std::ofstream(path, std::ios::app) << R"({"prompt":")" << prompt << R"(","chosen":"a","rejected":"b","rater":")"
                                       << rater << "\"}\n";
    const auto imported = cli::ImportFiles(Api("submitter"), "default", "team/human", {path}, cli::Format::kAuto);
    EXPECT_TRUE(imported.ok()) << imported.status();
    return imported.ok() ? imported->response.set().comparisons() : -1;
  };
  const auto bytes = [&] {
    std::vector<std::string> all;
    for (const v1::Comparison& comparison : Export("set:team/human")) all.push_back(comparison.SerializeAsString());
    return all;
  };
  EXPECT_EQ(import("Q1", "carl"), 1);
  EXPECT_EQ(import("Q2", "dora"), 2);
  const std::vector<std::string> before = bytes();
  ASSERT_THAT(before, SizeIs(2));
  ASSERT_TRUE(BackUp(backup).ok());
  EXPECT_EQ(import("Q3", "carl"), 3) << "after the backup";

  server_.reset();
  std::filesystem::remove_all(dir_.File("data"));
  const absl::Status restored = cli::RestoreBackup(backup, dir_.File("data"));
  ASSERT_TRUE(restored.ok()) << restored;
  Start();
  EXPECT_EQ(bytes(), before);
  EXPECT_EQ(import("Q4", "dora"), 4) << "the file has Q3 again";
  v1::ForgetRaterRequest forget;
  forget.set_rater("carl");
  const auto forgotten = Call(As("admin"), &FeedbackStub::ForgetRater, forget);
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  EXPECT_EQ(forgotten->removed(), 2);
  EXPECT_THAT(bytes(), SizeIs(2));
  ASSERT_TRUE(BackUp(dir_.File("later")).ok()) << "of the rewritten log";
}

}  // namespace
}  // namespace rlhf::coordinator
