// Who is handed which of a collect job's tasks, and which answers count.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/comparison_line.h"
#include "coordinator/feedback/collect_queue.h"

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

TEST(CollectQueueTest, LongTasksAreHandedOutFewAtATime) {
  CollectQueue queue("default", Spec(5));
  for (const char* id : {"a", "b", "c", "d", "e"}) {
    v1::FeedbackTask task = Task(id);
    task.mutable_first()->set_text(std::string(7 << 20, 'x'));
    queue.Add(std::move(task));
  }
  for (const std::vector<std::string>& page :
       std::vector<std::vector<std::string>>{{"a", "b"}, {"c", "d"}, {"e"}, {}}) {
    EXPECT_EQ(Get(queue, "r1", 10), page);
    EXPECT_EQ(Get(queue, "r1", 10), page) << "what is in hand too";
    for (const std::string& id : page) EXPECT_TRUE(Answer(queue, "r1", id, v1::FIRST).fresh);
  }
}

TEST(CollectQueueTest, WhoAsksAgainGetsWhatTheyHaveInHandInTheSameOrderAndForAsLongAgain) {
  v1::CollectSpec spec = Spec(4);
  spec.set_planted_fraction(0.5);
  CollectQueue queue("default", spec);
  for (const char* id : {"d", "c", "b", "a"}) queue.Add(Task(id));
  v1::FeedbackTask planted = Task("p");
  planted.set_planted(true);
  planted.set_known(v1::FIRST);
  queue.Add(planted);
  const std::vector<std::string> handed = Get(queue, "r1", 3, absl::Seconds(0));
  EXPECT_THAT(handed, ElementsAre("p", "d", "c"));
  EXPECT_EQ(Get(queue, "r1", 3, absl::Seconds(50)), handed) << "where the planted one stands does not tell it";
  EXPECT_THAT(Get(queue, "r1", 1, absl::Seconds(50)), ElementsAre("p"));
  queue.TakeBackLate(absl::Seconds(70));
  EXPECT_THAT(Get(queue, "r2", 4, absl::Seconds(70)), ElementsAre("p", "b", "a")) << "r1 has d and c still";
  EXPECT_TRUE(Answer(queue, "r1", "d", v1::FIRST).fresh);
  EXPECT_THAT(Get(queue, "r1", 3, absl::Seconds(70)), ElementsAre("p", "c"));
  v1::FeedbackTask changed;
  ASSERT_TRUE(queue.Skip("r1", "c", &changed).ok());
  EXPECT_THAT(Get(queue, "r1", 3, absl::Seconds(70)), ElementsAre("p"));
  CollectQueue again("default", spec);
  for (const char* id : {"d", "c", "b", "a"}) again.Add(Task(id));
  again.Add(planted);
  again.TakeOverHolders(queue);
  EXPECT_THAT(Get(again, "r2", 4, absl::Seconds(70)), ElementsAre("p", "b", "a", "d")) << "after somebody is forgotten";
}

TEST(CollectQueueTest, WhichOfTwoGivenAnswersWasShownFirstIsKept) {
  CollectQueue queue("default", Spec(3));
  queue.Add(Task("a"));
  queue.Add(Task("e", v1::FEEDBACK_EDIT));
  v1::FeedbackTask writes = Task("w");
  writes.mutable_second()->set_source("written");
  writes.mutable_second()->clear_text();
  queue.Add(writes);
  EXPECT_THAT(Get(queue, "r", 3), ElementsAre("a", "e", "w"));
  const auto take = [&](const std::string& task, v1::Preference preference, const std::string& written) {
    v1::Answer answer;
    answer.set_task_id(task);
    answer.set_preference(preference);
    answer.set_written(written);
    answer.set_second_shown_first(true);
    const auto taken = queue.Take("r", answer, kNow);
    EXPECT_TRUE(taken.fresh) << taken.problem;
    return taken.comparison;
  };
  EXPECT_TRUE(take("a", v1::SECOND, "").second_shown_first());
  EXPECT_FALSE(take("e", v1::SECOND, "better").has_second_shown_first());
  EXPECT_FALSE(take("w", v1::FIRST, "mine").has_second_shown_first());
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

}  // namespace
}  // namespace rlhf::coordinator
