#include "coordinator/loop_clock.h"

#include <gtest/gtest.h>

#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {
namespace {

class LoopClockTest : public testing::Test {
 protected:
  FakeClock real_;
  LoopClock clock_{&real_};
};

TEST_F(LoopClockTest, GoesOnWithTheClockWhileTheLoopTurns) {
  const absl::Duration start = clock_.Now();
  for (int i = 0; i < 100; ++i) {
    real_.Advance(absl::Milliseconds(999));
    EXPECT_EQ(clock_.Turn(), absl::ZeroDuration());
  }
  EXPECT_EQ(clock_.Now() - start, absl::Milliseconds(99'900));
  EXPECT_EQ(clock_.Now(), real_.Now());
}

TEST_F(LoopClockTest, LeavesOutWhatTheLoopStoodStillAndNeverJumps) {
  real_.Advance(absl::Milliseconds(100));
  clock_.Turn();
  const absl::Duration before = clock_.Now();
  const absl::Time wall = clock_.WallNow();
  real_.Advance(absl::Hours(1));
  // Also for those who ask before the loop turns again.
  EXPECT_EQ(clock_.Now() - before, LoopClock::kLongestTurn);
  EXPECT_EQ(clock_.Turn(), absl::Hours(1) - LoopClock::kLongestTurn);
  EXPECT_EQ(clock_.Now() - before, LoopClock::kLongestTurn);
  EXPECT_EQ(clock_.WallNow() - wall, absl::Hours(1));
  real_.Advance(absl::Milliseconds(500));
  EXPECT_EQ(clock_.Turn(), absl::ZeroDuration());
  EXPECT_EQ(clock_.Now() - before, LoopClock::kLongestTurn + absl::Milliseconds(500));
}

}  // namespace
}  // namespace rlhf::coordinator
