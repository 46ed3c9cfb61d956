// Requests that are computed together: each reply has the scores of its own samples, in their order.
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "reward_server/batcher.h"

namespace rlhf::reward {
namespace {

using testing::ElementsAre;

TEST(BatchSplitTest, EachRequestGetsItsOwnScoresBack) {
  absl::Notification begun, go;
  std::vector<int> batches;  // sizes; of the batcher's thread, as the replies are
  std::map<int, std::vector<double>> replies;
  {
    Batcher batcher(
        [&](const v1::ScoreRequest& request) {
          if (!begun.HasBeenNotified()) begun.Notify();
          go.WaitForNotification();
          batches.push_back(request.samples_size());
          v1::ScoreResponse response;
          for (const v1::Sample& sample : request.samples()) {
            v1::SampleScore* score = response.add_scores();
            *score->mutable_id() = sample.id();
            score->mutable_score()->set_total(sample.id().ordinal());
          }
          return response;
        },
        {}, [](int, absl::Duration) {});
    const auto submit = [&](int first, int samples) {
      v1::ScoreRequest request;
      request.set_job_id("job");
      for (int i = 0; i < samples; ++i) {
        v1::Sample* sample = request.add_samples();
        sample->mutable_id()->set_ordinal(first + i);
        sample->set_response_text("text");
      }
      batcher.Submit(std::move(request), [&replies, first](absl::StatusOr<v1::ScoreResponse> response) {
        ASSERT_TRUE(response.ok()) << response.status();
        for (const v1::SampleScore& score : response->scores()) {
          EXPECT_EQ(score.id().ordinal(), score.score().total());
          replies[first].push_back(score.score().total());
        }
      });
    };
    submit(100, 1);
    begun.WaitForNotification();
    submit(10, 1);
    submit(20, 2);
    submit(30, 1);
    go.Notify();
  }
  EXPECT_THAT(batches, ElementsAre(1, 4)) << "three requests in one";
  EXPECT_THAT(replies[100], ElementsAre(100));
  EXPECT_THAT(replies[10], ElementsAre(10));
  EXPECT_THAT(replies[20], ElementsAre(20, 21));
  EXPECT_THAT(replies[30], ElementsAre(30));
}

}  // namespace
}  // namespace rlhf::reward
