// What must hold of the learner's formulas whatever the split over ranks and rows, and AdamW within 1e-7.
#include <cmath>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "learner/advantage/interface.h"
#include "learner/collective.h"
#include "learner/losses.h"
#include "learner/optimizer.h"
#include "learner/rewards.h"
#include "tests/testing/golden.h"

namespace rlhf::learner {
namespace {

using nlohmann::json;

torch::Tensor T(const json& values) {
  return torch::tensor(values.get<std::vector<float>>(), torch::kFloat32);
}

void ExpectNear(const torch::Tensor& found, const torch::Tensor& expected, double tolerance) {
  ASSERT_EQ(found.sizes(), expected.sizes());
  const double worst =
      (found.detach().to(torch::kFloat64) - expected.detach().to(torch::kFloat64)).abs().max().item<double>();
  EXPECT_LE(worst, tolerance);
}

// Stands for two ranks: each sum gains what the other rank would have added. Its values are known, so no thread is
// needed.
class WithAnotherRank final : public Collective {
 public:
  explicit WithAnotherRank(torch::Tensor other) : other_(other.to(torch::kFloat64)) {}
  int rank() const override { return 0; }
  int world_size() const override { return 2; }
  absl::Status AllReduceSum(torch::Tensor tensor) override {
    if (calls_++ == 0) {
      tensor[0] += other_.sum();
      tensor[1] += static_cast<double>(other_.numel());
      mean_ = tensor[0].item<double>() / tensor[1].item<double>();
    } else {
      tensor += (other_ - mean_).square().sum();
    }
    return absl::OkStatus();
  }
  absl::Status Broadcast(torch::Tensor, int) override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllReduceSum(torch::Tensor) override {
    return absl::UnimplementedError("moments do not overlap with anything");
  }
  absl::StatusOr<bool> Vote(bool ok) override { return ok; }
  void Abort() override {}

 private:
  torch::Tensor other_;
  int calls_ = 0;
  double mean_ = 0;
};

TEST(MomentsTest, RanksTogetherHaveTheMomentsOfTheWhole) {
  torch::manual_seed(3);
  const torch::Tensor whole = torch::randn({40}) * 0.01 + 1000;  // a far mean: one pass in float32 would cancel
  const double mean = whole.to(torch::kFloat64).mean().item<double>();
  const double variance = whole.to(torch::kFloat64).var(/*unbiased=*/true).item<double>();
  for (const int64_t first : {0, 1, 17, 40}) {  // a rank may have no rows
    WithAnotherRank ranks(whole.narrow(0, first, 40 - first));
    const auto moments = GlobalMoments(whole.narrow(0, 0, first), &ranks);
    ASSERT_TRUE(moments.ok());
    EXPECT_EQ(moments->count, 40);
    EXPECT_NEAR(moments->mean, mean, 1e-9);
    EXPECT_NEAR(moments->variance, variance, 1e-12);
  }
}

TEST(MomentsTest, OneValueOrNoneWhitensToFiniteNumbers) {
  for (const int64_t count : {0, 1}) {
    const auto alone = MakeSingleRank();
    const torch::Tensor values = torch::full({count}, 3.0F);
    const auto moments = GlobalMoments(values, alone.get());
    ASSERT_TRUE(moments.ok());
    EXPECT_EQ(moments->variance, 0);
    EXPECT_TRUE(torch::isfinite(Whiten(values, *moments)).all().item<bool>());
  }
}

TEST(PolicyLossTest, AtTheFirstMinibatchTheRatioIsOneAndTheGradientIsThePolicyGradient) {
  const json golden = Golden("learner.json")["ppo"];
  torch::Tensor fresh = T(golden["old"]).requires_grad_(true);
  const torch::Tensor advantages = T(golden["advantages"]);
  const PolicyLossSums sums = PolicyLoss(fresh, T(golden["old"]), advantages, {}, {});
  sums.loss.backward();
  EXPECT_EQ(sums.ratio_error.item<double>(), 0);
  EXPECT_EQ(sums.approx_kl.item<double>(), 0);
  EXPECT_EQ(sums.clipped.item<double>(), 0);
  ExpectNear(fresh.grad(), -advantages, 1e-7);
}

TEST(PolicyLossTest, WeightsScaleRowsAndCarryNoGradient) {
  const json golden = Golden("learner.json")["ppo"];
  const torch::Tensor old = T(golden["old"]), advantages = T(golden["advantages"]);
  torch::Tensor fresh = T(golden["new"]).requires_grad_(true), behaviour = (old - 0.3).requires_grad_(true);
  const torch::Tensor weights = ImportanceWeights(old, behaviour, 2.0);
  EXPECT_FALSE(weights.requires_grad());
  PolicyLoss(fresh, old, advantages, weights, {}).loss.backward();
  ExpectNear(fresh.grad(), T(golden["policy_gradient"]) * (12 * std::exp(0.3)), 1e-4);
  EXPECT_FALSE(behaviour.grad().defined());
}

TEST(PolicyLossTest, TheUpperClipIsItsOwn) {
  PolicyLossOptions options;
  options.clip_high = 0.4;
  torch::Tensor fresh = torch::log(torch::tensor({1.3F, 1.5F, 0.7F})).requires_grad_(true);
  const PolicyLossSums sums = PolicyLoss(fresh, torch::zeros({3}), torch::tensor({1.0F, 1.0F, -1.0F}), {}, options);
  sums.loss.backward();
  EXPECT_NEAR(sums.loss.item<double>(), -1.3 - 1.4 + 0.8, 1e-6);
  EXPECT_EQ(sums.clipped.item<double>(), 2);
  EXPECT_NEAR(sums.ratio_error.item<double>(), 0.5, 1e-6);
  EXPECT_NEAR(sums.approx_kl.item<double>(), 0.3 - std::log(1.3) + 0.5 - std::log(1.5) - 0.3 - std::log(0.7), 1e-6);
  ExpectNear(fresh.grad(), torch::tensor({-1.3F, 0.0F, 0.0F}), 1e-6);
}

TEST(PolicyLossTest, NoRowsAreALossOfZero) {
  torch::Tensor none = torch::zeros({0}).requires_grad_(true);
  const PolicyLossSums policy = PolicyLoss(none, torch::zeros({0}), torch::zeros({0}), {}, {});
  const ValueLossSums value = ValueLoss(none, torch::zeros({0}), torch::zeros({0}), 0.2);
  (policy.loss + value.loss).backward();
  EXPECT_EQ(policy.loss.item<double>(), 0);
  EXPECT_EQ(policy.ratio_error.item<double>(), 0);
}

TEST(BradleyTerryTest, RejectedMovesAgainstChosenAndExtremesStayFinite) {
  const json golden = Golden("learner.json")["bradley_terry"];
  torch::Tensor rejected = T(golden["rejected"]).requires_grad_(true);
  const torch::Tensor none = torch::zeros({6}, torch::kBool);
  BradleyTerry(T(golden["chosen"]), rejected, T(golden["margins"]), none).sum().backward();
  ExpectNear(rejected.grad(), -T(golden["gradient"]), 1e-6);
  torch::Tensor extreme = torch::tensor({-500.0F, 500.0F}).requires_grad_(true);
  const torch::Tensor zero = torch::zeros({2});
  const torch::Tensor losses = BradleyTerry(extreme, zero, zero, torch::tensor({false, true}));
  losses.sum().backward();
  ExpectNear(losses, torch::tensor({500.0F, 250.0F}), 1e-3);
  ExpectNear(extreme.grad(), torch::tensor({-1.0F, 0.5F}), 1e-6);
}

// A rank that holds samples 5 and 2 of a batch of two groups, several tokens each.
TEST(AdvantageTest, ARanksShareEqualsItsRowsOfTheWhole) {
  AdvantageInputs whole, share;
  whole.batch_returns = share.batch_returns = {1, 4, -2, 0.5, 3, 7};
  whole.samples_per_prompt = share.samples_per_prompt = 3;
  for (size_t i = 0; i < 6; ++i) {
    whole.samples.push_back(i);
    whole.counts.push_back(1);
  }
  whole.rewards = torch::zeros({6});
  share.samples = {5, 2};
  share.counts = {2, 3};
  share.rewards = torch::zeros({5});
  for (const auto which : {v1::RLOO, v1::GRPO, v1::GRPO_NO_STD, v1::REINFORCE_BASELINE}) {
    const auto estimator = MakeAdvantageEstimator(which);
    const torch::Tensor all = estimator->Compute(whole).advantages;
    const Advantages own = estimator->Compute(share);
    EXPECT_FALSE(own.returns.defined());
    ExpectNear(own.advantages, all.index_select(0, torch::tensor({5, 5, 2, 2, 2})), 0);
  }
  EXPECT_NEAR(MakeAdvantageEstimator(v1::RLOO)->Compute(whole).advantages[0].item<double>(), 1 - (4 - 2) / 2.0, 1e-6);
}

TEST(AdamWTest, ThreeStepsEqualPyTorchWithin1e7) {
  const json golden = Golden("learner.json")["adamw"];
  torch::Tensor matrix = T(golden["matrix"]).view({3, 4}), vector = T(golden["vector"]);
  v1::OptimizerSpec spec;
  spec.set_learning_rate(0.01);
  spec.set_beta1(0.9);
  spec.set_beta2(0.95);
  spec.set_epsilon(1e-8);
  spec.set_weight_decay(0.1);
  AdamW optimizer({{"matrix", matrix}, {"vector", vector}}, spec, 3);
  for (const json& step : golden["steps"]) {
    const std::vector<torch::Tensor> gradients{T(step["matrix_gradient"]).view({3, 4}), T(step["vector_gradient"])};
    optimizer.Step(gradients, AdamW::Norm(gradients));
    ExpectNear(matrix, T(step["matrix"]).view({3, 4}), 1e-7);
    ExpectNear(vector, T(step["vector"]), 1e-7);
  }
}

}  // namespace
}  // namespace rlhf::learner
