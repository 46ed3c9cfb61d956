// Requests that are computed together: each reply has the scores of its own samples, in their order.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
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

// Batches as the batcher makes them of requests that came while the first one was computed.
class BatchesTest : public testing::Test {
 protected:
  void Start(const BatcherOptions& options) {
    batcher_ = std::make_unique<Batcher>(
        [this](const v1::ScoreRequest& request) {
          if (!begun_.HasBeenNotified()) begun_.Notify();
          go_.WaitForNotification();
          v1::ScoreResponse response;
          std::vector<int>& batch = batches_.emplace_back();
          for (const v1::Sample& sample : request.samples()) {
            batch.push_back(sample.id().ordinal());
            response.add_scores();
          }
          return response;
        },
        options, [](int, absl::Duration) {});
    Submit(RequestOf(0));
    begun_.WaitForNotification();
  }
  // Of one sample of so many tokens.
  static v1::ScoreRequest RequestOf(int ordinal, int tokens = 0) {
    v1::ScoreRequest request;
    request.set_job_id("job");
    v1::Sample* sample = request.add_samples();
    sample->mutable_id()->set_ordinal(ordinal);
    for (int t = 0; t < tokens; ++t) (t % 2 == 0 ? sample->add_prompt_tokens(7) : sample->add_response_tokens(7));
    return request;
  }
  void Submit(v1::ScoreRequest request) {
    batcher_->Submit(std::move(request), [this](const absl::StatusOr<v1::ScoreResponse>& response) {
      absl::MutexLock lock(&mu_);
      codes_.push_back(response.status().code());
    });
  }
  // What was computed together, by the samples' ordinals, when all is done; without the first.
  std::vector<std::vector<int>> Batches() {
    go_.Notify();
    batcher_->Stop();
    batches_.erase(batches_.begin());
    return batches_;
  }
  absl::Notification begun_, go_;
  std::vector<std::vector<int>> batches_;  // of the batcher's thread
  absl::Mutex mu_;
  std::vector<absl::StatusCode> codes_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<Batcher> batcher_;
};

TEST_F(BatchesTest, ABatchHoldsItsBudgetOfTokensOrOneRequestThatIsLarger) {
  BatcherOptions options;
  options.batch_tokens = 10;
  Start(options);
  Submit(RequestOf(1, 25));
  Submit(RequestOf(2, 6));
  Submit(RequestOf(3, 5));
  Submit(RequestOf(4, 4));
  EXPECT_THAT(Batches(), ElementsAre(ElementsAre(1), ElementsAre(2, 4), ElementsAre(3)));
  absl::MutexLock lock(&mu_);
  EXPECT_EQ(codes_, std::vector<absl::StatusCode>(5, absl::StatusCode::kOk));
}

TEST_F(BatchesTest, WhatIsToBeComputedOtherwiseIsNotComputedTogether) {
  Start({});
  int ordinal = 0;
  const auto submit = [&](const std::function<void(v1::ScoreRequest*)>& change) {
    v1::ScoreRequest request = RequestOf(++ordinal);
    change(&request);
    Submit(std::move(request));
  };
  submit([](v1::ScoreRequest*) {});
  submit([](v1::ScoreRequest* request) { request->set_job_id("another"); });
  submit([](v1::ScoreRequest* request) { request->mutable_scorer()->add_components()->set_name("other"); });
  submit([](v1::ScoreRequest* request) { request->mutable_gold()->add_components()->set_name("other"); });
  submit([](v1::ScoreRequest* request) { request->set_reference_policy("sha256:other"); });
  submit([](v1::ScoreRequest* request) { request->set_tokenizer("sha256:other"); });
  submit([](v1::ScoreRequest* request) { request->set_temperature(0.5); });
  submit([](v1::ScoreRequest* request) { request->set_deterministic(true); });
  submit([](v1::ScoreRequest*) {});
  EXPECT_THAT(Batches(), ElementsAre(ElementsAre(1, 9), ElementsAre(2), ElementsAre(3), ElementsAre(4), ElementsAre(5),
                                     ElementsAre(6), ElementsAre(7), ElementsAre(8)));
}

TEST_F(BatchesTest, AQueueThatIsFullRefusesAtOnce) {
  BatcherOptions options;
  options.max_queued_requests = 2;
  Start(options);
  for (int i = 1; i <= 3; ++i) Submit(RequestOf(i));
  {
    absl::MutexLock lock(&mu_);
    EXPECT_THAT(codes_, ElementsAre(absl::StatusCode::kResourceExhausted));
  }
  EXPECT_THAT(Batches(), ElementsAre(ElementsAre(1, 2)));
  Submit(RequestOf(4));
  absl::MutexLock lock(&mu_);
  EXPECT_EQ(codes_.back(), absl::StatusCode::kResourceExhausted) << "it has stopped";
}

}  // namespace
}  // namespace rlhf::reward
