// The simulation of weights on their way to many workers, against what can be worked out by hand.
#include <gtest/gtest.h>

#include "bench/fan_out/simulation.h"

namespace rlhf::bench {
namespace {

constexpr uint64_t kBytes = 1'000'000'000;

FanOutNetwork Network() {
  FanOutNetwork network;
  network.gbit_per_second = 8;  // a gigabyte a second
  network.latency = absl::Milliseconds(1);
  network.verify_gigabyte = absl::Milliseconds(100);
  network.block_bytes = 10'000'000;  // 10 ms on the wire, 1 ms to verify
  return network;
}

TEST(FanOutSimulation, OneWorkerTakesTheStreamItsLatencyAndTheLastBlocksVerification) {
  for (const int degree : {0, 1, 2}) {
    const FanOutTimes times = SimulateFanOut(1, degree, kBytes, Network());
    EXPECT_NEAR(absl::ToDoubleSeconds(times.last), 1 + 0.001 + 0.001, 1e-4);
    EXPECT_EQ(times.learner_bytes, kBytes);
    EXPECT_EQ(times.depth, 1);
  }
}

TEST(FanOutSimulation, TheLearnerAloneSendsToOneAfterTheOther) {
  const FanOutTimes times = SimulateFanOut(64, 0, kBytes, Network());
  EXPECT_NEAR(absl::ToDoubleSeconds(times.last), 64 + 0.002, 1e-4);
  EXPECT_EQ(times.learner_bytes, 64 * kBytes);
}

TEST(FanOutSimulation, AChainCostsABlockAndItsLatencyForEachWorker) {
  const FanOutTimes times = SimulateFanOut(10, 1, kBytes, Network());
  EXPECT_NEAR(absl::ToDoubleSeconds(times.last), 1 + 0.002 + 9 * (0.010 + 0.002), 1e-4);
  EXPECT_EQ(times.depth, 10);
}

// A full tree: each process sends `degree` times the bytes; blocks come down from level to level meanwhile.
TEST(FanOutSimulation, ATreeTakesDegreeTimesTheStreamAndALittleForItsDepth) {
  for (const int degree : {2, 3, 4}) {
    const FanOutTimes times = SimulateFanOut(512, degree, kBytes, Network());
    EXPECT_EQ(times.learner_bytes, static_cast<uint64_t>(degree) * kBytes);
    EXPECT_GE(absl::ToDoubleSeconds(times.last), degree);
    EXPECT_LE(absl::ToDoubleSeconds(times.last), degree + times.depth * (degree * 0.010 + 0.002));
    EXPECT_LE(times.first, times.median);
    EXPECT_LE(times.median, times.last);
  }
}

TEST(FanOutSimulation, VerificationSlowerThanTheLinkIsTheBound) {
  FanOutNetwork network = Network();
  network.verify_gigabyte = absl::Seconds(3);
  EXPECT_NEAR(absl::ToDoubleSeconds(SimulateFanOut(1, 2, kBytes, network).last), 0.010 + 0.001 + 3, 1e-4);
}

}  // namespace
}  // namespace rlhf::bench
