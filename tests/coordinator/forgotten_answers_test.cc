// The ids of answers when one of them is forgotten: planted questions are answered by every rater, whatever the
// overlap.
#include "coordinator/feedback/collect_queue.h"

#include <string>

#include <gtest/gtest.h>

namespace rlhf::coordinator {
namespace {

class ForgottenAnswersTest : public testing::Test {
 protected:
  ForgottenAnswersTest() {
    question_.set_id("t0");
    question_.mutable_first()->set_text("yes");
    question_.mutable_second()->set_text("no");
    question_.set_state(v1::TASK_OPEN);
    planted_ = question_;
    planted_.set_id("t1");
    planted_.set_planted(true);
    Fill(&queue_);
  }
  void Fill(CollectQueue* queue) const {
    queue->Add(question_);
    queue->Add(planted_);
  }
  v1::Comparison AnswerPlanted(CollectQueue* queue, const std::string& rater) {
    v1::NextTasksResponse handed;
    queue->HandOut(rater, 2, absl::ZeroDuration(), &handed);
    v1::Answer answer;
    answer.set_task_id("t1");
    answer.set_preference(v1::FIRST);
    const CollectQueue::Taken taken = queue->Take(rater, answer, absl::UnixEpoch());
    EXPECT_TRUE(taken.fresh) << rater << ": " << taken.problem;
    return taken.comparison;
  }

  static v1::CollectSpec Asks() {
    v1::CollectSpec spec;
    spec.set_comparisons(1);
    spec.set_overlap(3);
    spec.set_planted_fraction(1);
    return spec;
  }

  v1::FeedbackTask question_, planted_;
  CollectQueue queue_{"default", Asks()};
};

TEST_F(ForgottenAnswersTest, NoIdIsGivenTwice) {
  (void)AnswerPlanted(&queue_, "anna");
  const v1::Comparison bens = AnswerPlanted(&queue_, "ben");
  // anna is forgotten: what the store holds is ben's.
  CollectQueue again("default", Asks());
  Fill(&again);
  again.Restore(bens);
  EXPECT_NE(AnswerPlanted(&again, "carl").id(), bens.id());
  EXPECT_EQ(again.Stats().planted(), 2);
}

// The answer was taken by the queue that is replaced, and is not in the store yet.
TEST_F(ForgottenAnswersTest, NorThatOfAnAnswerOnItsWayToTheStore) {
  const v1::Comparison bens = AnswerPlanted(&queue_, "ben");
  CollectQueue again("default", Asks());
  Fill(&again);
  again.TakeOverHolders(queue_);
  EXPECT_NE(AnswerPlanted(&again, "carl").id(), bens.id());
}

}  // namespace
}  // namespace rlhf::coordinator
