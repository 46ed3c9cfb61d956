// The questions a collect job asks, and what its result says about the answers.
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/feedback/collect_queue.h"
#include "coordinator/jobs/collect_metrics.h"
#include "coordinator/jobs/collect_tasks.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

v1::CollectSpec Wanted(int comparisons, int overlap = 1) {
  v1::CollectSpec spec;
  spec.set_comparisons(comparisons);
  spec.set_overlap(overlap);
  spec.set_task_timeout_seconds(60);
  return spec;
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
  v1::CollectSpec spec = Wanted(1);
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
  v1::CollectSpec spec = Wanted(20);
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

  // Ten raters who say the same of each prompt know no more than one: the interval is of twenty prompts, which are few.
  std::vector<v1::Comparison> many;
  for (const v1::Comparison& c : answers) many.insert(many.end(), 10, c);
  const v1::Metric of_many = CollectMetrics(many, spec).at("win_rate");
  EXPECT_EQ(of_many.n(), 200);
  EXPECT_DOUBLE_EQ(of_many.value(), 0.75);
  const v1::Metric of_one = metrics.at("win_rate");
  EXPECT_LT(of_many.low(), of_one.low());
  EXPECT_GT(of_many.high(), of_one.high());
  EXPECT_NEAR(of_many.high() - of_many.low(), of_one.high() - of_one.low(), 0.04);
  // As the normal approximation has it: 0.75 ± 1.96·√(0.75·0.25/20).
  EXPECT_NEAR(of_many.low(), 0.75 - 0.19, 0.06);
  EXPECT_NEAR(of_many.high(), 0.75 + 0.19, 0.06);
  // One prompt says nothing about others; where everything was won the interval still has a width.
  EXPECT_FALSE(CollectMetrics(std::vector<v1::Comparison>(10, answers[0]), spec).at("win_rate").has_low());
  EXPECT_LT(CollectMetrics({answers[0]}, spec).at("win_rate").low(), 0.21);  // Wilson's of 1 in 1
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
  v1::CollectSpec spec = Wanted(40);
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

TEST(CollectTasksTest, RatingsThatArePairedComeInTwosOfAPrompt) {
  TaskSources sources;
  for (const char* prompt : {"a", "b", "c", "d"}) {
    for (int i = 0; i < 3; ++i) sources.samples.push_back(Sample(prompt, i, 0, 0));
  }
  v1::CollectSpec spec = Wanted(8);
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
  v1::CollectSpec spec = Wanted(1000);
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

}  // namespace
}  // namespace rlhf::coordinator
