// Queues of tasks, agreement between raters, sets: what stands behind people's judgements, without a service around it.
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/comparison_line.h"
#include "coordinator/feedback/agreement.h"
#include "coordinator/feedback/collect_queue.h"
#include "coordinator/feedback/comparison_set.h"
#include "coordinator/feedback/import_log.h"
#include "coordinator/jobs/collect_metrics.h"
#include "coordinator/jobs/collect_tasks.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

v1::FeedbackTask Task(const std::string& id, v1::FeedbackKind kind = v1::FEEDBACK_COMPARISON) {
  v1::FeedbackTask task;
  task.set_id(id);
  task.set_job_id("job");
  task.set_kind(kind);
  task.set_state(v1::TASK_OPEN);
  task.mutable_prompt()->set_text("Q " + id);
  task.mutable_first()->set_text("one");
  if (kind == v1::FEEDBACK_COMPARISON) task.mutable_second()->set_text("two");
  return task;
}

v1::CollectSpec Spec(int comparisons, int overlap = 1) {
  v1::CollectSpec spec;
  spec.set_comparisons(comparisons);
  spec.set_overlap(overlap);
  spec.set_task_timeout_seconds(60);
  return spec;
}

std::vector<std::string> Get(CollectQueue& queue, const std::string& rater, int most, absl::Duration now = {}) {
  v1::NextTasksResponse response;
  queue.HandOut(rater, most, now, &response);
  std::vector<std::string> ids;
  for (const auto& task : response.tasks()) {
    EXPECT_FALSE(task.planted()) << "a rater must not see which questions are planted";
    EXPECT_EQ(task.known(), v1::PREFERENCE_UNSPECIFIED);
    ids.push_back(task.id());
  }
  return ids;
}

CollectQueue::Taken Answer(CollectQueue& queue, const std::string& rater, const std::string& task,
                           v1::Preference preference) {
  v1::Answer answer;
  answer.set_job_id("job");
  answer.set_task_id(task);
  answer.set_preference(preference);
  return queue.Take(rater, answer, kNow);
}

TEST(CollectQueueTest, OverlapAsksDifferentRaters) {
  CollectQueue queue("default", Spec(2, 2));
  queue.Add(Task("a"));
  queue.Add(Task("b"));
  EXPECT_THAT(Get(queue, "r1", 10), ElementsAre("a", "b"));
  EXPECT_THAT(Get(queue, "r1", 10), ElementsAre());
  EXPECT_THAT(Get(queue, "r2", 1), ElementsAre("a"));
  EXPECT_THAT(Get(queue, "r3", 10), ElementsAre("b"));
  EXPECT_TRUE(Answer(queue, "r1", "a", v1::FIRST).fresh);
  EXPECT_FALSE(Answer(queue, "r1", "a", v1::SECOND).fresh) << "the first answer counts";
  EXPECT_FALSE(queue.finished());
  const auto second = Answer(queue, "r2", "a", v1::SECOND);
  EXPECT_TRUE(second.task_changed);
  EXPECT_EQ(second.task.state(), v1::TASK_ANSWERED);
  EXPECT_EQ(Answer(queue, "r9", "a", v1::FIRST).problem, "already answered");
  Answer(queue, "r1", "b", v1::TIE);
  Answer(queue, "r3", "b", v1::TIE);
  EXPECT_TRUE(queue.finished());
}

TEST(CollectQueueTest, LateTasksGoBackSkippedOnesToOthersAndOldOnesExpire) {
  v1::CollectSpec spec = Spec(2);
  spec.set_max_skips(2);
  spec.set_task_expiry_seconds(3600);
  CollectQueue queue("default", spec);
  for (const char* id : {"a", "b"}) {
    v1::FeedbackTask task = Task(id);
    task.mutable_created_at()->set_seconds(absl::ToUnixSeconds(kNow));
    queue.Add(task);
  }
  EXPECT_THAT(Get(queue, "r1", 1, absl::Seconds(0)), ElementsAre("a"));
  EXPECT_THAT(Get(queue, "r2", 1, absl::Seconds(1)), ElementsAre("b"));
  queue.TakeBackLate(absl::Seconds(60));
  EXPECT_THAT(Get(queue, "r3", 2, absl::Seconds(60)), ElementsAre());
  queue.TakeBackLate(absl::Seconds(60.5));
  EXPECT_THAT(Get(queue, "r3", 2, absl::Seconds(61)), ElementsAre("a"));
  v1::FeedbackTask changed;
  EXPECT_TRUE(absl::IsFailedPrecondition(queue.Skip("r1", "a", &changed))) << "it was taken back";
  ASSERT_TRUE(queue.Skip("r3", "a", &changed).ok());
  EXPECT_EQ(changed.state(), v1::TASK_OPEN);
  EXPECT_THAT(Get(queue, "r3", 1, absl::Seconds(62)), ElementsAre()) << "b is with r2, a was skipped";
  EXPECT_THAT(Get(queue, "r4", 1, absl::Seconds(62)), ElementsAre("a"));
  ASSERT_TRUE(queue.Skip("r4", "a", &changed).ok());
  EXPECT_EQ(changed.state(), v1::TASK_SKIPPED);
  EXPECT_EQ(Answer(queue, "r1", "a", v1::FIRST).problem, "this task was skipped");
  EXPECT_FALSE(queue.finished());
  EXPECT_TRUE(queue.Expire(absl::Seconds(3600)).empty());
  const auto expired = queue.Expire(absl::Seconds(3601));
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].id(), "b");
  EXPECT_TRUE(queue.finished());
  EXPECT_EQ(queue.Stats().skipped(), 1);
  EXPECT_EQ(queue.Stats().expired(), 1);
}

TEST(CollectQueueTest, OnlyWhoWasHandedATaskMayAnswerIt) {
  CollectQueue queue("default", Spec(2));
  queue.Add(Task("a"));
  queue.Add(Task("b"));
  EXPECT_THAT(Answer(queue, "picky", "b", v1::FIRST).problem, HasSubstr("not handed to you"));
  EXPECT_THAT(Get(queue, "r1", 1, absl::Seconds(0)), ElementsAre("a"));
  EXPECT_THAT(Answer(queue, "r1", "b", v1::FIRST).problem, HasSubstr("not handed to you"));
  EXPECT_EQ(queue.Stats().by_rater().size(), 0u) << "nothing was taken";
  queue.TakeBackLate(absl::Seconds(61));
  CollectQueue again("default", Spec(2));  // as when somebody was forgotten
  again.Add(Task("a"));
  again.Add(Task("b"));
  again.TakeOverHolders(queue);
  EXPECT_TRUE(Answer(again, "r1", "a", v1::FIRST).fresh) << "late, but nobody else has answered";
  EXPECT_THAT(Get(again, "picky", 2, absl::Seconds(62)), ElementsAre("b"));
  EXPECT_TRUE(Answer(again, "picky", "b", v1::FIRST).fresh);
}

TEST(CollectQueueTest, AnAnswerToWhatWasInHandAtARestartIsTaken) {
  CollectQueue queue("default", Spec(2));
  queue.Add(Task("a"));
  queue.Add(Task("b"));
  queue.Restarted(absl::Seconds(100));
  queue.TakeBackLate(absl::Seconds(160));
  EXPECT_TRUE(Answer(queue, "r1", "a", v1::FIRST).fresh) << "r1 has had it in hand all the time";
  queue.TakeBackLate(absl::Seconds(161));
  EXPECT_THAT(Answer(queue, "r1", "b", v1::FIRST).problem, HasSubstr("not handed to you"));
}

TEST(CollectQueueTest, PlantedQuestionsComeInTheirShareAndToEveryRater) {
  v1::CollectSpec spec = Spec(40, 2);
  spec.set_planted_fraction(0.25);
  CollectQueue queue("default", spec);
  for (int i = 0; i < 40; ++i) queue.Add(Task(absl::StrCat("t", 100 + i)));
  for (int i = 0; i < 20; ++i) {
    v1::FeedbackTask task = Task(absl::StrCat("p", 100 + i));
    task.set_planted(true);
    task.set_known(v1::SECOND);
    queue.Add(task);
  }
  for (const char* rater : {"r1", "r2"}) {
    int planted = 0, all = 0;
    while (true) {
      const std::vector<std::string> ids = Get(queue, rater, 1);
      if (ids.empty()) break;
      const auto taken = Answer(queue, rater, ids[0], v1::FIRST);
      ASSERT_TRUE(taken.fresh) << taken.problem;
      EXPECT_EQ(taken.comparison.planted(), ids[0][0] == 'p');
      planted += ids[0][0] == 'p' ? 1 : 0;
      ++all;
    }
    EXPECT_EQ(all - planted, 40);
    EXPECT_GE(planted, 9);
    EXPECT_LE(planted, 11);
  }
  EXPECT_TRUE(queue.finished());
  EXPECT_EQ(queue.Stats().answered(), 40) << "planted answers are not among them";
}

TEST(CollectQueueTest, RatingsAndEditsAreCheckedAndKept) {
  CollectQueue queue("default", Spec(2));
  v1::FeedbackTask rating = Task("r", v1::FEEDBACK_RATING);
  rating.add_criteria("helpful");
  rating.add_criteria("honest");
  queue.Add(rating);
  queue.Add(Task("e", v1::FEEDBACK_EDIT));
  EXPECT_THAT(Get(queue, "x", 10), ElementsAre("r", "e"));
  v1::Answer answer;
  answer.set_task_id("r");
  (*answer.mutable_first_ratings())["helpful"] = 4;
  EXPECT_THAT(queue.Take("x", answer, kNow).problem, HasSubstr("expected one for each of helpful, honest"));
  (*answer.mutable_first_ratings())["funny"] = 4;
  EXPECT_THAT(queue.Take("x", answer, kNow).problem, HasSubstr("found \"funny\""));
  answer.mutable_first_ratings()->erase("funny");
  (*answer.mutable_first_ratings())["honest"] = 11;
  EXPECT_THAT(queue.Take("x", answer, kNow).problem, HasSubstr("expected 0 to 10, found 11"));
  (*answer.mutable_first_ratings())["honest"] = 2;
  EXPECT_TRUE(queue.Take("x", answer, kNow).fresh);
  v1::Answer edit;
  edit.set_task_id("e");
  EXPECT_THAT(queue.Take("x", edit, kNow).problem, HasSubstr("better version"));
  edit.set_written("one");
  EXPECT_THAT(queue.Take("x", edit, kNow).problem, HasSubstr("the same text"));
  edit.set_written("one, rightly");
  const auto taken = queue.Take("x", edit, kNow);
  ASSERT_TRUE(taken.fresh) << taken.problem;
  EXPECT_EQ(taken.comparison.preference(), v1::SECOND);
  EXPECT_EQ(taken.comparison.second().source(), "edited");
  EXPECT_EQ(SftLine(taken.comparison), R"({"prompt":"Q e","response":"one, rightly"})");
  EXPECT_EQ(ComparisonLine(taken.comparison), R"({"prompt":"Q e","chosen":"one, rightly","rejected":"one"})");
}

artifact::SampleRecord Sample(const std::string& prompt, int index, double r0, double r1) {
  artifact::SampleRecord sample;
  sample.id = prompt;
  sample.prompt = prompt;
  sample.index = index;
  sample.response = absl::StrCat(prompt, " answer ", index);
  sample.components = {{"ensemble", (r0 + r1) / 2}, {"ensemble/0", r0}, {"ensemble/1", r1}};
  return sample;
}

TEST(CollectTasksTest, TheMostDisputedPairsAreAskedAbout) {
  TaskSources sources;
  // Members agree about a (both say 0 wins by 2), and disagree about b.
  sources.samples = {Sample("a", 0, 1, 1), Sample("a", 1, -1, -1), Sample("b", 0, 2, -2), Sample("b", 1, -2, 2)};
  EXPECT_EQ(Disagreement(sources.samples[0], sources.samples[1]), 0);
  const double win = 1 / (1 + std::exp(-4.0));
  EXPECT_NEAR(Disagreement(sources.samples[2], sources.samples[3]), (2 * win - 1) / std::sqrt(2.0), 1e-12);
  v1::CollectSpec spec = Spec(1);
  spec.set_pairs(v1::PAIRS_DISAGREEMENT);
  auto tasks = MakeTasks(sources, spec, 3, "job", "default");
  ASSERT_TRUE(tasks.ok()) << tasks.status();
  ASSERT_EQ(tasks->size(), 1u);
  EXPECT_EQ((*tasks)[0].prompt().text(), "b");
  EXPECT_GT((*tasks)[0].disagreement(), 0.6);
  for (auto& sample : sources.samples) sample.components.clear();
  EXPECT_THAT(std::string(MakeTasks(sources, spec, 3, "job", "default").status().message()), HasSubstr("ensemble"));
}

TEST(CollectTasksTest, TwoPoliciesAreComparedPairByPair) {
  TaskSources sources;
  for (int p = 0; p < 20; ++p) {
    sources.samples.push_back(Sample(absl::StrCat("q", p), 0, 0, 0));
    sources.against.push_back(Sample(absl::StrCat("q", p), 7, 0, 0));
  }
  v1::CollectSpec spec = Spec(20);
  spec.set_against("other");
  const auto tasks = MakeTasks(sources, spec, 1, "job", "default");
  ASSERT_TRUE(tasks.ok()) << tasks.status();
  int other_first = 0;
  std::vector<v1::Comparison> answers;
  for (const auto& task : *tasks) {
    EXPECT_NE(task.first().source() == "against", task.second().source() == "against");
    other_first += task.first().source() == "against" ? 1 : 0;
    v1::Comparison& c = answers.emplace_back();
    *c.mutable_prompt() = task.prompt();
    *c.mutable_first() = task.first();
    *c.mutable_second() = task.second();
    c.set_rater("r");
    // The new policy wins three in four.
    const bool ours_wins = answers.size() % 4 != 0;
    c.set_preference((task.first().source() == "against") == ours_wins ? v1::SECOND : v1::FIRST);
  }
  EXPECT_GT(other_first, 4);
  EXPECT_LT(other_first, 16);
  const auto metrics = CollectMetrics(answers, spec);
  EXPECT_DOUBLE_EQ(metrics.at("win_rate").value(), 0.75);
  EXPECT_LT(metrics.at("win_rate").low(), 0.75);
  EXPECT_GT(metrics.at("win_rate").high(), 0.75);

  // Ten raters who say the same of each prompt know no more than one: the interval is the same, over prompts.
  std::vector<v1::Comparison> many;
  for (const v1::Comparison& c : answers) many.insert(many.end(), 10, c);
  const v1::Metric of_many = CollectMetrics(many, spec).at("win_rate");
  EXPECT_EQ(of_many.n(), 200);
  EXPECT_DOUBLE_EQ(of_many.value(), 0.75);
  EXPECT_NEAR(of_many.low(), metrics.at("win_rate").low(), 1e-12);
  EXPECT_NEAR(of_many.high(), metrics.at("win_rate").high(), 1e-12);
  // As the normal approximation has it: 0.75 ± 1.96·√(0.75·0.25/20).
  EXPECT_NEAR(of_many.low(), 0.75 - 0.19, 0.06);
  EXPECT_NEAR(of_many.high(), 0.75 + 0.19, 0.06);
  // One prompt says nothing about others; where everything was won the interval still has a width.
  EXPECT_FALSE(CollectMetrics({answers[0]}, spec).at("win_rate").has_low());
  for (v1::Comparison& c : answers) c.set_preference(c.first().source() == "against" ? v1::SECOND : v1::FIRST);
  const v1::Metric all = CollectMetrics(answers, spec).at("win_rate");
  EXPECT_DOUBLE_EQ(all.value(), 1);
  EXPECT_LT(all.low(), 0.9);
}

// Names of the fields that are set, those of messages in it and a map's keys too.
void FieldsOf(const google::protobuf::Message& message, const std::string& prefix, std::set<std::string>* names) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const auto* field : fields) {
    const std::string name = absl::StrCat(prefix, field->name());
    names->insert(name);
    if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE && !field->is_repeated())
      FieldsOf(message.GetReflection()->GetMessage(message, field), name + ".", names);
  }
}

TEST(CollectTasksTest, ARaterCannotTellPlantedQuestionsByIdsOrFields) {
  TaskSources sources;
  for (int p = 0; p < 40; ++p) {
    for (int i = 0; i < 2; ++i) {
      artifact::SampleRecord& sample = sources.samples.emplace_back(Sample(absl::StrCat("q", p), i, 0, 0));
      sample.reference = "right";
      sample.category = "known";
      sample.tags = {{"template", "3"}};
    }
  }
  for (int p = 0; p < 20; ++p) {
    artifact::ComparisonRecord& record = sources.planted.emplace_back();
    record.prompt = absl::StrCat("planted ", p);
    record.chosen = "yes";
    record.rejected = "no";
    record.category = "known";  // as the samples have; a reference and tags are the samples' alone
  }
  v1::CollectSpec spec = Spec(40);
  spec.set_planted("planted");
  spec.set_planted_fraction(0.5);
  const auto tasks = MakeTasks(sources, spec, 3, "job", "default");
  ASSERT_TRUE(tasks.ok()) << tasks.status();
  ASSERT_EQ(tasks->size(), 60u);
  CollectQueue queue("default", spec);
  std::set<std::string> ids, planted_ids;
  for (v1::FeedbackTask task : *tasks) {
    ids.insert(task.id());
    if (task.planted()) planted_ids.insert(task.id());
    task.mutable_created_at()->set_seconds(1 + static_cast<int64_t>(ids.size()));
    queue.Add(std::move(task));
  }
  EXPECT_EQ(ids.size(), 60u);
  EXPECT_EQ(*ids.begin(), "t0000000");
  EXPECT_EQ(*ids.rbegin(), "t0000059") << "one series";
  EXPECT_LT(*planted_ids.begin(), "t0000020");
  EXPECT_GT(*planted_ids.rbegin(), "t0000040");
  v1::NextTasksResponse response;
  queue.HandOut("r", 60, absl::ZeroDuration(), &response);
  std::set<std::string> of_planted, of_others;
  int planted = 0;
  for (const v1::FeedbackTask& task : response.tasks()) {
    const bool is_planted = planted_ids.count(task.id()) > 0;
    planted += is_planted ? 1 : 0;
    std::set<std::string> names;
    FieldsOf(task, "", &names);
    std::set<std::string>& known = is_planted ? of_planted : of_others;
    if (known.empty()) known = names;
    EXPECT_EQ(names, known) << task.ShortDebugString();
    EXPECT_EQ(task.first().source(), "sample");
  }
  EXPECT_EQ(planted, 20);
  EXPECT_EQ(of_planted, of_others);
  EXPECT_EQ(of_others.count("prompt.category"), 1u) << "all have one";
  EXPECT_EQ(of_others.count("prompt.reference"), 0u);
}

TEST(CollectQueueTest, WhichPolicyAnsweredIsNotShown) {
  CollectQueue queue("default", Spec(1));
  v1::FeedbackTask task = Task("a");
  task.mutable_first()->set_source("against");
  task.mutable_first()->set_sample("7/0");
  task.mutable_second()->set_source("sample");
  queue.Add(task);
  v1::NextTasksResponse response;
  queue.HandOut("r", 1, absl::ZeroDuration(), &response);
  ASSERT_EQ(response.tasks_size(), 1);
  EXPECT_EQ(response.tasks(0).first().source(), response.tasks(0).second().source());
  EXPECT_EQ(response.tasks(0).first().sample(), "");
  EXPECT_EQ(Answer(queue, "r", "a", v1::FIRST).comparison.first().source(), "against") << "what is kept has it";
}

TEST(AgreementTest, MatchesScikitLearnAndKrippendorff) {
  const auto golden = Golden("agreement.json");
  ASSERT_FALSE(golden["cases"].empty());
  for (const auto& one : golden["cases"]) {
    const auto& table = one["table"];
    std::vector<Judgements> items(table[0].size());
    for (size_t r = 0; r < table.size(); ++r) {
      for (size_t i = 0; i < items.size(); ++i) {
        if (!table[r][i].is_null()) items[i][absl::StrCat("r", r)] = table[r][i].get<double>();
      }
    }
    EXPECT_NEAR(KrippendorffAlpha(items, MeasurementLevel::kNominal), one["alpha_nominal"].get<double>(), 1e-12);
    EXPECT_NEAR(KrippendorffAlpha(items, MeasurementLevel::kInterval), one["alpha_interval"].get<double>(), 1e-12);
    for (const auto& pair : one["pairs"]) {
      std::vector<std::pair<double, double>> both;
      for (const Judgements& item : items) {
        const auto a = item.find(absl::StrCat("r", pair["a"].get<int>()));
        const auto b = item.find(absl::StrCat("r", pair["b"].get<int>()));
        if (a != item.end() && b != item.end()) both.emplace_back(a->second, b->second);
      }
      EXPECT_EQ(both.size(), pair["common"].get<size_t>());
      if (pair["kappa"].is_null()) continue;
      EXPECT_NEAR(CohenKappa(both), pair["kappa"].get<double>(), 1e-12);
    }
  }
  EXPECT_TRUE(std::isnan(KrippendorffAlpha({{{"a", 1}, {"b", 1}}}, MeasurementLevel::kNominal)));
  EXPECT_TRUE(std::isnan(CohenKappa({})));
}

v1::Comparison Judged(const std::string& rater, int item, bool first_better, bool swapped) {
  v1::Comparison c;
  c.set_rater(rater);
  c.mutable_prompt()->set_text(absl::StrCat("Q", item));
  c.mutable_first()->set_text(swapped ? "b" : "a");
  c.mutable_second()->set_text(swapped ? "a" : "b");
  c.set_preference(first_better != swapped ? v1::FIRST : v1::SECOND);
  return c;
}

TEST(AgreementTest, TheOrderOnTheScreenDoesNotMatterAndARaterFarOffIsFlagged) {
  std::vector<v1::Comparison> all;
  for (int i = 0; i < 60; ++i) {
    const bool truth = i % 3 != 0;
    for (int r = 0; r < 3; ++r) all.push_back(Judged(absl::StrCat("good", r), i, truth, (i + r) % 2 == 0));
    all.push_back(Judged("random", i, (i * 7919 / 13) % 2 == 0, false));
    v1::Comparison planted = Judged("random", 1000 + i, true, false);
    planted.set_planted(true);
    planted.set_known(i % 2 == 0 ? v1::FIRST : v1::SECOND);
    all.push_back(planted);
  }
  const v1::AgreementReport report = MeasureAgreement(all);
  EXPECT_EQ(report.preference().items(), 60);
  EXPECT_GT(report.preference().krippendorff_alpha(), 0.2);
  for (const auto& rater : report.raters()) {
    EXPECT_EQ(rater.flagged(), rater.rater() == "random") << rater.rater() << ": " << rater.why();
    if (rater.rater() == "random") {
      EXPECT_THAT(rater.why(), HasSubstr("agrees with the others"));
      EXPECT_DOUBLE_EQ(rater.planted().value(), 0.5);
    }
  }
  EXPECT_THAT(RatersBelow(all, 0.6), ElementsAre("random"));
  EXPECT_THAT(RatersBelow(all, 0.4), ElementsAre());
}

TEST(ComparisonSetTest, ASetLeavesOutRatersAndPlantedQuestionsAndHasADigest) {
  std::vector<v1::Comparison> all = {Judged("a", 1, true, false), Judged("b", 2, true, false),
                                     Judged("c", 3, true, false), Judged("c", 4, true, false)};
  all[2].set_preference(v1::TIE);
  all[3].set_planted(true);
  const auto build = [&](std::set<std::string> excluded, std::string* lines) {
    std::ostringstream out;
    SetBuilder builder(&out, std::move(excluded));
    for (const auto& c : all) builder.Add(c);
    *lines = out.str();
    return builder.Finish();
  };
  std::string lines, again;
  const auto whole = build({}, &lines);
  EXPECT_EQ(whole.comparisons(), 3);
  EXPECT_EQ(whole.ties(), 1);
  EXPECT_EQ(lines,
            "{\"prompt\":\"Q1\",\"chosen\":\"a\",\"rejected\":\"b\"}\n{\"prompt\":\"Q2\",\"chosen\":\"a\",\"rejected\":"
            "\"b\"}\n{\"prompt\":\"Q3\",\"chosen\":\"a\",\"rejected\":\"b\",\"tie\":true}\n");
  EXPECT_EQ(build({}, &again).content_sha256(), whole.content_sha256());
  const auto without = build({"b"}, &again);
  EXPECT_EQ(without.comparisons(), 2);
  EXPECT_NE(without.content_sha256(), whole.content_sha256());
  EXPECT_THAT(without.excluded_raters(), ElementsAre("b"));

  EdgeMemoryStore store;
  auto table = SetTable::Load(&store);
  ASSERT_TRUE(table.ok());
  WriteBatch batch;
  for (v1::ComparisonSet set : {whole, without}) {
    set.set_project("default");
    set.set_name("human/v");
    set.set_digest("sha256:" + set.content_sha256());
    table->Add(&set, &batch);
  }
  store.Commit(std::move(batch), [](absl::Status) {});
  table = SetTable::Load(&store);
  ASSERT_EQ(table->List("default", "human/v").size(), 2u);
  EXPECT_EQ(table->List("default", "human/v")[1].version(), 2);
  EXPECT_TRUE(table->List("default", "human").empty());
  WriteBatch forgotten;
  EXPECT_EQ(table->Forget("b", &forgotten).size(), 1u);
  EXPECT_TRUE(table->List("default", "")[0].forgotten());
}

TEST(ComparisonSetTest, ASetThatCannotStandIsMadeFromTheStoreAgain) {
  EdgeMemoryStore store;
  auto table = SetTable::Load(&store);
  ASSERT_TRUE(table.ok());
  WriteBatch batch;
  const auto add = [&](const std::string& name, const std::string& digest, const std::string& made_by,
                       const std::vector<std::string>& raters, const std::string& previous) {
    v1::ComparisonSet set;
    set.set_project("default");
    set.set_name(name);
    set.set_digest(digest);
    set.set_made_by(made_by);
    set.set_previous(previous);
    for (const std::string& rater : raters) (*set.mutable_raters())[rater] = 1;
    table->Add(&set, &batch);
  };
  add("human", "h1", "eva", {"carl"}, "");
  add("job1", "s1", "job1", {"carl", "anna"}, "h1");
  add("job2", "s2", "job2", {"carl", "anna", "ben"}, "s1");
  const auto parts = [&](const std::string& digest, const std::set<std::string>& excluded) {
    std::string all;
    const auto made = PartsOfSet(*table, digest, excluded, [](const std::string& id) { return id != "gone"; });
    if (!made.ok()) return std::string(made.status().message());
    for (const SetPart& part : *made) absl::StrAppend(&all, part.job_id, part.lines.digest(), " ");
    return all;
  };
  EXPECT_EQ(parts("s2", {}), "s2 ") << "nobody is to be left out";
  EXPECT_EQ(parts("of-a-file", {"anna"}), "of-a-file ");
  EXPECT_EQ(parts("s2", {"ben"}), "s1 job2 ");
  EXPECT_EQ(parts("s2", {"anna"}), "h1 job1 job2 ");
  EXPECT_EQ(parts("h1", {"carl"}), "h1 ") << "a frozen set stands as it was frozen";
  EXPECT_EQ(table->Forget("carl", &batch).size(), 3u);
  EXPECT_THAT(parts("s2", {}), HasSubstr("set human version 1 (h1) has judgements of a rater who was forgotten"));
  add("human", "h2", "coordinator", {"dora"}, "");
  EXPECT_EQ(parts("s2", {}), "h2 job1 job2 ") << "the newest version without the forgotten";

  // Who was left out of what a set begins with is named as left out of it.
  std::ostringstream out;
  SetBuilder builder(&out, {"ben"});
  v1::ComparisonSet previous;
  previous.add_excluded_raters("anna");
  builder.Begin(previous);
  builder.Add(Judged("anna", 1, true, false));
  const v1::ComparisonSet made = builder.Finish();
  EXPECT_THAT(made.excluded_raters(), ElementsAre("anna", "ben"));
  EXPECT_EQ(made.comparisons(), 0);
}

v1::Comparison Rated(const std::string& rater, const std::string& prompt, const std::string& answer, double helpful,
                     double honest) {
  v1::Comparison c;
  c.set_id(absl::StrCat(rater, prompt, answer));
  c.set_kind(v1::FEEDBACK_RATING);
  c.set_rater(rater);
  c.mutable_prompt()->set_text(prompt);
  c.mutable_first()->set_text(answer);
  (*c.mutable_first_ratings())["helpful"] = helpful;
  (*c.mutable_first_ratings())["honest"] = honest;
  return c;
}

TEST(ComparisonSetTest, ARatersRatingsOfAPromptsAnswersBecomeComparisons) {
  std::vector<v1::Comparison> all = {Rated("a", "Q", "one", 2, 5),   Rated("a", "Q", "two", 9, 5),
                                     Rated("b", "Q", "three", 0, 0), Rated("a", "P", "four", 1, 1),
                                     Rated("a", "Q", "one", 7, 7),   Rated("b", "Q", "two", 1, 0)};
  all[4].set_planted(true);
  all[3].mutable_first_ratings()->erase("honest");
  all.push_back(Rated("a", "P", "five", 1, 3));
  const auto build = [&](bool pair_ratings, std::set<std::string> excluded, std::string* lines) {
    std::ostringstream out;
    SetBuilder builder(&out, std::move(excluded), SetBuilder::Kind::kComparisons, pair_ratings);
    for (const auto& c : all) builder.Add(c);
    const v1::ComparisonSet set = builder.Finish();
    *lines = out.str();
    return set;
  };
  std::string lines;
  EXPECT_EQ(build(false, {}, &lines).comparisons(), 0) << "by default ratings alone train nothing";
  const v1::ComparisonSet paired = build(true, {}, &lines);
  EXPECT_EQ(
      lines,
      "{\"prompt\":\"P\",\"chosen\":\"four\",\"rejected\":\"five\",\"tie\":true,\"ratings\":{\"helpful\":[1.0,1.0]}}\n"
      "{\"prompt\":\"Q\",\"chosen\":\"two\",\"rejected\":\"one\",\"ratings\":{\"helpful\":[9.0,2.0],\"honest\":[5.0,5."
      "0]}}"
      "\n"
      "{\"prompt\":\"Q\",\"chosen\":\"two\",\"rejected\":\"three\",\"ratings\":{\"helpful\":[1.0,0.0],\"honest\":[0.0,"
      "0.0]}}"
      "\n");
  EXPECT_EQ(paired.comparisons(), 3);
  EXPECT_EQ(paired.ties(), 1);
  EXPECT_EQ(paired.raters().at("a"), 2);
  EXPECT_EQ(build(true, {"b"}, &lines).comparisons(), 2);
  EXPECT_FALSE(PairOfRatings(all[0], all[0])) << "the same answer twice";

  // The verdict stays, a rating changes: another set.
  (*all[1].mutable_first_ratings())["helpful"] = 8;
  const v1::ComparisonSet other = build(true, {}, &lines);
  EXPECT_EQ(other.comparisons(), paired.comparisons());
  EXPECT_NE(other.content_sha256(), paired.content_sha256());
  v1::Comparison judged = Judged("a", 1, true, false);
  const std::string unrated = ComparisonDigest(judged);
  (*judged.mutable_first_ratings())["helpful"] = 3;
  const std::string of_first = ComparisonDigest(judged);
  EXPECT_NE(of_first, unrated);
  judged.mutable_first_ratings()->swap(*judged.mutable_second_ratings());
  EXPECT_NE(ComparisonDigest(judged), of_first);
}

TEST(CollectTasksTest, RatingsThatArePairedComeInTwosOfAPrompt) {
  TaskSources sources;
  for (const char* prompt : {"a", "b", "c", "d"}) {
    for (int i = 0; i < 3; ++i) sources.samples.push_back(Sample(prompt, i, 0, 0));
  }
  v1::CollectSpec spec = Spec(8);
  spec.set_rating_fraction(1);
  spec.add_criteria("helpful");
  spec.set_pair_ratings(true);
  const auto tasks = MakeTasks(sources, spec, 3, "job", "default");
  ASSERT_TRUE(tasks.ok()) << tasks.status();
  ASSERT_EQ(tasks->size(), 8u);
  for (size_t i = 0; i < 8; i += 2) {
    EXPECT_EQ((*tasks)[i].prompt().text(), (*tasks)[i + 1].prompt().text());
    EXPECT_NE((*tasks)[i].first().text(), (*tasks)[i + 1].first().text());
  }
}

TEST(CollectTasksTest, SharesAreOfTasksAlsoWhereRatingsComeInTwos) {
  TaskSources sources;
  for (int prompt = 0; prompt < 1000; ++prompt) {
    for (int i = 0; i < 4; ++i) sources.samples.push_back(Sample(absl::StrCat("p", prompt), i, 0, 0));
  }
  v1::CollectSpec spec = Spec(1000);
  spec.set_rating_fraction(0.3);
  spec.set_edit_fraction(0.2);
  spec.add_criteria("helpful");
  for (const bool paired : {false, true}) {
    spec.set_pair_ratings(paired);
    const auto tasks = MakeTasks(sources, spec, 3, "job", "default");
    ASSERT_TRUE(tasks.ok()) << tasks.status();
    std::map<v1::FeedbackKind, double> share;
    for (const v1::FeedbackTask& task : *tasks) share[task.kind()] += 1.0 / static_cast<double>(tasks->size());
    EXPECT_NEAR(share[v1::FEEDBACK_RATING], 0.3, 0.05) << paired;
    EXPECT_NEAR(share[v1::FEEDBACK_EDIT], 0.2, 0.05) << paired;
    EXPECT_NEAR(share[v1::FEEDBACK_COMPARISON], 0.5, 0.05) << paired;
  }
}

TEST(ComparisonSetTest, ChatsWithoutATextDifferByTheirMessages) {
  const auto chat = [](const std::string& question) {
    v1::Comparison c = Judged("a", 1, true, false);
    c.mutable_prompt()->clear_text();
    v1::ChatMessage& message = *c.mutable_prompt()->add_messages();
    message.set_role("user");
    message.set_content(question);
    return c;
  };
  EXPECT_EQ(ComparisonDigest(chat("Who?")), ComparisonDigest(chat("Who?")));
  EXPECT_NE(ComparisonDigest(chat("Who?")), ComparisonDigest(chat("Why?"))) << "no duplicate of the other";
  // As sets that were made before have it.
  EXPECT_EQ(ComparisonDigest(Judged("a", 1, true, false)), "bcb8a36ad836ec2daaff18cfbe1ae4db");
}

TEST(ImportLogTest, OnlyWhatWasAcknowledgedIsRead) {
  ScratchDir dir;
  const std::string path = dir.File("logs/one");
  uint64_t length = 0;
  {
    auto writer = ImportLogWriter::Open(path, 0);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Append(Judged("a", 1, true, false)).ok());
    const auto synced = (*writer)->Sync();
    ASSERT_TRUE(synced.ok());
    length = *synced;
    ASSERT_TRUE((*writer)->Append(Judged("a", 2, true, false)).ok());
    ASSERT_TRUE((*writer)->Sync().ok());
  }
  const auto read = [&](uint64_t until) {
    std::vector<std::string> prompts;
    auto reader = ImportLogReader::Open(path, until);
    EXPECT_TRUE(reader.ok());
    v1::Comparison c;
    while (true) {
      const auto more = (*reader)->Next(&c);
      if (!more.ok()) prompts.push_back(std::string(absl::StatusCodeToString(more.status().code())));
      if (!more.ok() || !*more) return prompts;
      prompts.push_back(c.prompt().text());
    }
  };
  EXPECT_THAT(read(length), ElementsAre("Q1"));
  EXPECT_THAT(read(length + 3), ElementsAre("Q1", "DATA_LOSS"));
  ASSERT_TRUE(ImportLogWriter::Open(path, length).ok()) << "cuts what was not acknowledged";
  EXPECT_TRUE(absl::IsDataLoss(ImportLogWriter::Open(path, length + 1).status()));
}

}  // namespace
}  // namespace rlhf::coordinator
