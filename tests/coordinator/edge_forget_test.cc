// What is left of a collect job's answers when one of its raters is forgotten while others go on.
#include <map>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"

namespace rlhf::coordinator {
namespace {

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

}  // namespace
}  // namespace rlhf::coordinator
