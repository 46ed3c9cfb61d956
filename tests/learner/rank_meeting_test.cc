// Ranks are threads here, whose sums are counted: what one rank's work waits for is that the others have met.
#include "learner/service/rank_meeting.h"

#include <array>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"

namespace rlhf::learner {
namespace {

constexpr absl::Duration kEvery = absl::Milliseconds(1);

class TwoThreads {
 public:
  absl::Status Sum(const torch::Tensor& tensor) {
    absl::MutexLock lock(&mu_);
    if (broken_) return Broken();
    const int64_t before = sums_;
    if (++arrived_ == 1) {
      partial_ = tensor.clone();
    } else {
      total_ = partial_ + tensor;
      arrived_ = 0;
      ++sums_;
    }
    const auto met = [this, before]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return sums_ > before || broken_; };
    mu_.Await(absl::Condition(&met));
    if (sums_ == before) return Broken();
    tensor.copy_(total_);
    return absl::OkStatus();
  }
  void AwaitSums(int64_t count) {
    absl::MutexLock lock(&mu_);
    const auto met = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return sums_ >= count; };
    mu_.Await(absl::Condition(&met));
  }
  void AwaitFailures(int64_t count) {
    absl::MutexLock lock(&mu_);
    const auto failed = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return failures_ >= count; };
    mu_.Await(absl::Condition(&failed));
  }
  void Break() {
    absl::MutexLock lock(&mu_);
    broken_ = true;
  }

 private:
  absl::Status Broken() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    ++failures_;
    return absl::UnavailableError("the group broke");
  }

  absl::Mutex mu_;
  int arrived_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t sums_ ABSL_GUARDED_BY(mu_) = 0, failures_ ABSL_GUARDED_BY(mu_) = 0;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  torch::Tensor partial_ ABSL_GUARDED_BY(mu_), total_ ABSL_GUARDED_BY(mu_);
};

class ThreadRank final : public Collective {
 public:
  ThreadRank(int rank, TwoThreads* group) : rank_(rank), group_(group) {}
  int rank() const override { return rank_; }
  int world_size() const override { return 2; }
  absl::Status AllReduceSum(torch::Tensor tensor) override { return group_->Sum(tensor); }
  absl::Status Broadcast(torch::Tensor, int) override { return Unused(); }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllReduceSum(torch::Tensor) override { return Unused(); }
  absl::StatusOr<std::unique_ptr<Pending>> StartReduceScatterSum(torch::Tensor) override { return Unused(); }
  absl::Status AllGather(torch::Tensor) override { return Unused(); }
  absl::StatusOr<bool> Vote(bool) override { return Unused(); }
  void Abort() override { group_->Break(); }
  bool aborted() const override { return false; }

 private:
  static absl::Status Unused() { return absl::UnimplementedError("a meeting sums"); }
  const int rank_;
  TwoThreads* const group_;
};

class RankMeetingTest : public testing::Test {
 protected:
  // Runs `rank` on both, each on a thread of its own.
  template <typename Rank>
  void OnBoth(const Rank& rank) {
    const auto run = [&](int which) {
      ThreadRank collective(which, &group_);
      RankMeeting meeting(torch::kCPU, kEvery);
      meeting.SetCollective(&collective);
      rank(which, meeting);
      EXPECT_FALSE(meeting.working_alone());
    };
    std::thread other([&] { run(1); });
    run(0);
    other.join();
  }

  TwoThreads group_;
};

TEST_F(RankMeetingTest, RanksMeetUntilTheLongestWorkIsDoneAndHearTheSameSums) {
  std::array<absl::StatusOr<std::vector<double>>, 2> sums;
  OnBoth([&](int rank, RankMeeting& meeting) {
    const LogScope about({.job_id = "job", .step = 7});
    sums[rank] = meeting.Sum(2, /*aside=*/rank == 0, [&] {
      EXPECT_TRUE(meeting.working_alone());
      EXPECT_EQ(CurrentLogContext().step, 7) << "rank " << rank;
      if (rank == 0) group_.AwaitSums(5);  // only other ranks that keep meeting it let it go on
      return rank == 0 ? std::vector<double>{1, 20} : std::vector<double>{2, 30};
    });
  });
  for (const auto& found : sums) {
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, std::vector<double>({3, 50}));
  }
}

TEST_F(RankMeetingTest, WorkHasEndedWhenTheGroupBroke) {
  std::array<bool, 2> ended = {false, false};
  OnBoth([&](int rank, RankMeeting& meeting) {
    absl::Status outcome;
    const absl::Status met = meeting.Together(
        [&, rank]() -> absl::Status {
          group_.AwaitSums(1);
          if (rank == 0) group_.Break();
          group_.AwaitFailures(2);  // both ranks know
          ended[rank] = true;
          return absl::DataLossError("a damaged checkpoint");
        },
        &outcome);
    EXPECT_TRUE(ended[rank]) << rank;
    EXPECT_TRUE(absl::IsUnavailable(met)) << met;
    EXPECT_TRUE(absl::IsDataLoss(outcome)) << outcome;
  });
}

TEST_F(RankMeetingTest, OnlyRankZeroCallsAndTheOthersHearThatItCouldNot) {
  std::array<absl::Status, 2> told;
  std::array<int, 2> calls = {0, 0};
  OnBoth([&](int rank, RankMeeting& meeting) {
    for (const bool fails : {false, true}) {
      told[rank] = meeting.ByRankZero("report its steps", [&]() -> absl::Status {
        ++calls[rank];
        return fails ? absl::InvalidArgumentError("refused") : absl::OkStatus();
      });
      EXPECT_EQ(told[rank].ok(), !fails) << rank;
    }
  });
  EXPECT_EQ(calls, (std::array<int, 2>{2, 0}));
  EXPECT_EQ(told[0], absl::InvalidArgumentError("refused"));
  EXPECT_EQ(told[1], absl::AbortedError("rank 0 could not report its steps"));
}

TEST(RankMeetingAloneTest, ASingleRankWorksOnItsOwnThread) {
  const std::unique_ptr<Collective> single = MakeSingleRank();
  RankMeeting meeting(torch::kCPU);
  meeting.SetCollective(single.get());
  std::thread::id worked;
  const auto sums = meeting.Sum(1, /*aside=*/true, [&] {
    worked = std::this_thread::get_id();
    return std::vector<double>{4};
  });
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_EQ(*sums, std::vector<double>({4}));
  EXPECT_EQ(worked, std::this_thread::get_id());
}

}  // namespace
}  // namespace rlhf::learner
