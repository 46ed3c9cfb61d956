// Order of data, schedules, snapshots, checkpoints, gradient sums.
#include <atomic>
#include <memory>
#include <optional>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/clock.h"
#include "common/durable_file.h"
#include "learner/batching.h"
#include "learner/checkpoint.h"
#include "learner/gradient_buckets.h"
#include "learner/optimizer.h"
#include "learner/share.h"
#include "learner/wakeups.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tensor_memory.h"

namespace rlhf::learner {
namespace {

using testing::HasSubstr;

TEST(BatchingTest, EveryEpochIsAPermutationOfItsOwn) {
  const std::vector<size_t> two_epochs = ItemsOf(10, 1, 2, 0, 20);
  const std::set<size_t> first(two_epochs.begin(), two_epochs.begin() + 10),
      second(two_epochs.begin() + 10, two_epochs.end());
  EXPECT_EQ(first.size(), 10u);
  EXPECT_EQ(second.size(), 10u);
  EXPECT_NE(std::vector<size_t>(two_epochs.begin(), two_epochs.begin() + 10),
            std::vector<size_t>(two_epochs.begin() + 10, two_epochs.end()));
  // A cursor continues where a longer read would be.
  EXPECT_EQ(ItemsOf(10, 1, 2, 7, 6), std::vector<size_t>(two_epochs.begin() + 7, two_epochs.begin() + 13));
  EXPECT_NE(ItemsOf(10, 1, 3, 0, 10), ItemsOf(10, 1, 2, 0, 10));
}

TEST(BatchingTest, SharesAndMicroBatchesKeepEverythingInOrder) {
  const std::vector<size_t> items{5, 3, 8, 1, 9};
  std::vector<size_t> joined;
  for (int rank = 0; rank < 3; ++rank) {
    const auto share = RankShare(items, rank, 3);
    joined.insert(joined.end(), share.begin(), share.end());
  }
  EXPECT_EQ(joined, items);
  std::vector<int64_t> lengths(10, 4);
  lengths[8] = 100;
  const auto groups = MicroBatches(items, lengths, 8);
  EXPECT_EQ(groups, (std::vector<std::vector<size_t>>{{5, 3}, {8}, {1, 9}}));
  EXPECT_TRUE(MicroBatches({}, lengths, 8).empty());
}

v1::OptimizerSpec Spec() {
  v1::OptimizerSpec spec;
  spec.set_learning_rate(1.0);
  spec.set_beta1(0.9);
  spec.set_beta2(0.95);
  spec.set_epsilon(1e-8);
  return spec;
}

TEST(OptimizerTest, SchedulesStartWarmAndEndWhereTheySay) {
  v1::OptimizerSpec spec = Spec();
  spec.set_warmup_steps(4);
  spec.set_final_learning_rate_ratio(0.1);
  EXPECT_DOUBLE_EQ(LearningRateAt(spec, 0, 100), 0.25);
  EXPECT_DOUBLE_EQ(LearningRateAt(spec, 50, 100), 1.0);
  for (const auto schedule : {v1::LINEAR, v1::COSINE}) {
    spec.set_schedule(schedule);
    EXPECT_DOUBLE_EQ(LearningRateAt(spec, 4, 100), 1.0);
    EXPECT_NEAR(LearningRateAt(spec, 99, 100), 0.1, 1e-12);
    EXPECT_NEAR(LearningRateAt(spec, 500, 100), 0.1, 1e-12);
    EXPECT_GT(LearningRateAt(spec, 30, 100), LearningRateAt(spec, 60, 100));
  }
}

TEST(OptimizerTest, ASnapshotBringsEverythingBack) {
  torch::manual_seed(0);
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    torch::Tensor weight = torch::randn({4, 4}).to(dtype);
    AdamW optimizer({{"w", weight}}, Spec(), 10);
    const auto step = [&] {
      const std::vector<torch::Tensor> gradients{torch::ones({4, 4})};
      optimizer.Step(gradients, AdamW::Norm(gradients));
    };
    step();
    optimizer.TakeSnapshot();
    const torch::Tensor before = weight.clone();
    step();
    const torch::Tensor after = weight.clone();
    EXPECT_FALSE(torch::equal(before, after));
    optimizer.RestoreSnapshot();
    EXPECT_TRUE(torch::equal(weight, before));
    EXPECT_EQ(optimizer.updates(), 1);
    step();
    EXPECT_TRUE(torch::equal(weight, after));
  }
}

TEST(OptimizerTest, GradientsAreClippedByTheirNorm) {
  v1::OptimizerSpec spec = Spec();
  spec.set_max_grad_norm(1.0);
  torch::Tensor weight = torch::zeros({2, 2});
  AdamW optimizer({{"w", weight}}, spec, 10);
  std::vector<torch::Tensor> gradients{torch::full({2, 2}, 10.0F)};
  EXPECT_NEAR(AdamW::Norm(gradients), 20, 1e-9);
  optimizer.Step(gradients, 20);
  EXPECT_NEAR(gradients[0].norm().item<double>(), 1, 1e-5);
}

// Three parameters, one of which is larger than a bucket may be, as a model of this dtype would have them.
NamedTensors ForShares(torch::Dtype dtype) {
  torch::manual_seed(4);
  return {{"table", torch::randn({500, 8}).to(dtype)},
          {"norm", torch::randn({33}).to(dtype)},
          {"matrix", torch::randn({31, 17}).to(dtype)}};
}

std::vector<torch::Tensor> TensorsOf(const NamedTensors& named) {
  std::vector<torch::Tensor> tensors;
  for (const auto& [name, tensor] : named) tensors.push_back(tensor);
  return tensors;
}

TEST(ShareTest, EveryElementIsInOneShare) {
  const NamedTensors parameters = ForShares(torch::kFloat32);
  const std::vector<Bucket> buckets = BucketsOf(TensorsOf(parameters), BucketSizes::Of(4096));
  ASSERT_EQ(buckets.size(), 2);  // norm and matrix together, the table alone
  for (const int count : {1, 2, 3, 7, 5000}) {
    std::vector<std::vector<int>> times;
    for (const auto& [name, tensor] : parameters) times.emplace_back(tensor.numel(), 0);
    for (const Bucket& bucket : buckets) {
      for (int index = 0; index < count; ++index) {
        int64_t size = 0;
        for (const Segment& segment : SegmentsOf(bucket, {index, count})) {
          EXPECT_GE(segment.at, index * ShareSize(bucket, count));
          EXPECT_LE(segment.at + segment.size, (index + 1) * ShareSize(bucket, count));
          size += segment.size;
          for (int64_t i = 0; i < segment.size; ++i) ++times[segment.parameter][segment.begin + i];
        }
        EXPECT_LE(size, ShareSize(bucket, count));
      }
    }
    for (const std::vector<int>& of : times) EXPECT_EQ(of, std::vector<int>(of.size(), 1)) << count << " shares";
  }
}

TEST(ShareTest, OnGpusTheFirstBucketIsSmallAndTheOthersAreLarge) {
  const std::vector<torch::Tensor> parameters(100, torch::empty({1 << 18}, torch::kBFloat16));  // 1 MiB of float32 each
  const auto counts = [&](torch::Device device) {
    std::vector<size_t> out;
    for (const Bucket& bucket : BucketsOf(parameters, BucketSizes::For(device)))
      out.push_back(bucket.parameters.size());
    return out;
  };
  EXPECT_EQ(counts(torch::kCPU), std::vector<size_t>(25, 4));
  EXPECT_EQ(counts(torch::kCUDA), std::vector<size_t>({1, 25, 25, 25, 24}));
  // One that is larger has its own, also where it comes first.
  std::vector<torch::Tensor> large = {parameters[0], parameters[0], torch::empty({3 << 18})};
  EXPECT_EQ(BucketsOf(large, BucketSizes::For(torch::kCUDA)).size(), 2);
}

TEST(WakeupsTest, WhoWaitsIsWokenAndNoWakeupIsLost) {
  const absl::Duration deadline = Clock::Real()->Now() + absl::Seconds(60);
  Wakeups wakeups;
  for (int i = 0; i < 2000; ++i) {
    std::atomic<bool> over = false;
    std::thread other([&] {
      over = true;
      wakeups.Wake();
    });
    // Nothing but the other thread ends this in time.
    EXPECT_TRUE(wakeups.Await([&] { return over.load(); }, absl::Hours(1), *Clock::Real(), deadline));
    other.join();
  }
}

TEST(WakeupsTest, WhatNobodyTellsIsSeenInASliceAndADeadlinePasses) {
  const Clock& clock = *Clock::Real();
  Wakeups wakeups;
  int asked = 0;
  const auto third = [&] { return ++asked == 3; };
  EXPECT_TRUE(wakeups.Await(third, absl::Milliseconds(1), clock, clock.Now() + absl::Seconds(60)));
  EXPECT_FALSE(wakeups.Await([] { return false; }, absl::Hours(1), clock, clock.Now() + absl::Milliseconds(20)));
  EXPECT_FALSE(wakeups.Await([] { return false; }, absl::Hours(1), clock, clock.Now() - absl::Seconds(1)));
  EXPECT_TRUE(wakeups.Await([] { return true; }, absl::Hours(1), clock, clock.Now() - absl::Seconds(1)));
}

TEST(ShareTest, OwnersHoldAllSharesOfOneDivision) {
  using Held = std::vector<std::optional<Share>>;
  const std::optional<Share> none;
  EXPECT_EQ(OwnersOf(Held{none, Share{0, 1}, Share{0, 1}}), std::vector<int>({1}));
  EXPECT_EQ(OwnersOf(Held{Share{1, 2}, none, Share{0, 2}}), std::vector<int>({2, 0}));
  EXPECT_EQ(OwnersOf(Held{Share{1, 2}, Share{0, 1}, none}), std::vector<int>({1}));
  EXPECT_TRUE(OwnersOf(Held{Share{1, 2}, Share{1, 2}, none}).empty());
  EXPECT_TRUE(OwnersOf(Held{Share{0, 2}, Share{1, 3}, Share{2, 3}}).empty());
  EXPECT_TRUE(OwnersOf(Held{none, none}).empty());
}

// Masters of bfloat16 parameters and the moments are 12 bytes a parameter; a share's are a share of that, and so is its
// snapshot.
TEST(ShareTest, AShareOfTheStateTakesAShareOfTheMemory) {
  const NamedTensors parameters = ForShares(torch::kBFloat16);
  int64_t elements = 0;
  for (const auto& [name, tensor] : parameters) elements += tensor.numel();
  const auto bytes = [&](int count, bool snapshot) {
    const auto memory = std::make_shared<TensorMemory>();
    const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
    AdamW optimizer(parameters, BucketsOf(TensorsOf(parameters), BucketSizes::Of(4096)), Spec(), 10);
    optimizer.TakeShare({0, count});
    if (snapshot) optimizer.TakeSnapshot();
    return static_cast<double>(memory->live());
  };
  EXPECT_NEAR(bytes(1, false), 12.0 * static_cast<double>(elements), 512);
  for (const int count : {2, 3, 8}) {
    EXPECT_NEAR(bytes(count, false), 12.0 * static_cast<double>(elements) / count, 512) << count;
    EXPECT_NEAR(bytes(count, true), 24.0 * static_cast<double>(elements) / count, 2048) << count;
  }
}

TEST(CheckpointTest, ComesBackBitForBitOrNotAtAll) {
  ScratchDir dir;
  torch::manual_seed(1);
  torch::Tensor a = torch::randn({3, 5}), b = torch::randn({7}).to(torch::kBFloat16);
  const State whole = WholeState({{"a", a}, {"b", b}});
  ASSERT_TRUE(WriteCheckpoint(dir.path(), whole, HeldHere(whole), {{"updates", 12}}).ok());
  torch::Tensor a2 = torch::zeros({3, 5}), b2 = torch::zeros({7}, torch::kBFloat16);
  nlohmann::json state;
  ASSERT_TRUE(ReadCheckpoint(dir.path(), WholeState({{"a", a2}, {"b", b2}}), &state).ok());
  EXPECT_TRUE(torch::equal(a, a2));
  EXPECT_TRUE(torch::equal(b, b2));
  EXPECT_EQ(state["updates"], 12);
  const auto problem = [&](const NamedTensors& tensors) {
    const absl::Status status = ReadCheckpoint(dir.path(), WholeState(tensors), &state);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    return std::string(status.message());
  };
  EXPECT_THAT(problem({{"a", a2}}), HasSubstr("\"b\""));
  EXPECT_THAT(problem({{"a", a2}, {"b", b2}, {"c", b2}}), HasSubstr("\"c\" is missing"));
  EXPECT_THAT(problem({{"a", torch::zeros({5, 3})}, {"b", b2}}), HasSubstr("expected F32 [5, 3], found F32 [3, 5]"));
  const auto bytes = ReadFile(dir.File("state.safetensors"));
  ASSERT_TRUE(WriteFileDurably(dir.File("state.safetensors"), bytes->substr(0, bytes->size() - 3)).ok());
  problem({{"a", a2}, {"b", b2}});
}

TEST(GradientBucketsTest, MicroBatchesSumToTheWhole) {
  torch::manual_seed(2);
  const torch::Tensor data = torch::randn({12, 6});
  std::vector<torch::Tensor> parameters{torch::randn({6, 8}), torch::randn({8}), torch::randn({8, 1}),
                                        torch::randn({5})};
  for (torch::Tensor& parameter : parameters) parameter.requires_grad_(true);
  const auto loss = [&](int64_t begin, int64_t count) {
    return (torch::tanh(data.narrow(0, begin, count).matmul(parameters[0]) + parameters[1]).matmul(parameters[2]))
               .square()
               .sum() /
           12;
  };
  const auto alone = MakeSingleRank();
  GradientBuckets buckets(parameters, BucketSizes::Of(64));  // several buckets
  buckets.Begin();
  ASSERT_TRUE(buckets.Backward(loss(0, 12), true, alone.get()).ok());
  ASSERT_TRUE(buckets.Wait().ok());
  std::vector<torch::Tensor> whole;
  for (const torch::Tensor& gradient : buckets.gradients()) whole.push_back(gradient.clone());
  EXPECT_EQ(whole[3].abs().sum().item<double>(), 0);  // the loss does not reach it
  buckets.Begin();
  for (int64_t begin = 0; begin < 12; begin += 4)
    ASSERT_TRUE(buckets.Backward(loss(begin, 4), begin == 8, alone.get()).ok());
  ASSERT_TRUE(buckets.Wait().ok());
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_TRUE(torch::allclose(buckets.gradients()[i], whole[i], 1e-5, 1e-6));
  for (const torch::Tensor& parameter : parameters) EXPECT_FALSE(parameter.grad().defined());
}

TEST(GradientBucketsTest, AGradientIsFreedAsSoonAsItIsInItsBucket) {
  torch::manual_seed(3);
  std::vector<torch::Tensor> parameters{torch::randn({4, 4}), torch::randn({4, 4}), torch::randn({4, 4})};
  for (torch::Tensor& parameter : parameters) parameter.requires_grad_(true);
  const auto alone = MakeSingleRank();
  GradientBuckets buckets(parameters, BucketSizes::Of(64));
  int held = 0, asked = 0;
  // Backward makes the last one's first.
  parameters[0].register_hook([&](const torch::Tensor&) {
    for (const size_t i : {size_t{1}, size_t{2}}) held += parameters[i].grad().defined() ? 1 : 0;
    ++asked;
  });
  buckets.Begin();
  const torch::Tensor x = torch::ones({2, 4});
  ASSERT_TRUE(buckets
                  .Backward(x.matmul(parameters[0]).tanh().matmul(parameters[1]).tanh().matmul(parameters[2]).sum(),
                            true, alone.get())
                  .ok());
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(held, 0);
  for (const torch::Tensor& gradient : buckets.gradients()) EXPECT_GT(gradient.abs().sum().item<double>(), 0);
}

}  // namespace
}  // namespace rlhf::learner
