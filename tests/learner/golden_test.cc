// The learner's formulas against values recorded from PyTorch and trl (tests/golden/generate_learner.py).
#include <gtest/gtest.h>

#include "learner/advantage/interface.h"
#include "learner/gradient_buckets.h"
#include "learner/kl/interface.h"
#include "learner/kl/loss.h"
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

void ExpectNear(const torch::Tensor& found, const json& expected, double tolerance) {
  const auto values = expected.get<std::vector<double>>();
  ASSERT_EQ(found.numel(), static_cast<int64_t>(values.size()));
  const torch::Tensor flat = found.detach().to(torch::kFloat64).contiguous().view({-1});
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), values[i], tolerance) << "at " << i;
}

TEST(GoldenTest, GaeAndWhitening) {
  const json golden = Golden("learner.json")["gae"];
  AdvantageInputs inputs;
  inputs.rewards = T(golden["rewards"]);
  inputs.values = T(golden["values"]);
  inputs.counts = golden["counts"].get<std::vector<int64_t>>();
  inputs.gamma = golden["gamma"];
  inputs.lambda = golden["lambda"];
  const Advantages found = MakeAdvantageEstimator(v1::GAE)->Compute(inputs);
  ExpectNear(found.advantages, golden["advantages"], 1e-5);
  ExpectNear(found.returns, golden["returns"], 1e-5);
  const Moments moments = MomentsOf(found.advantages);
  ExpectNear(Whiten(found.advantages, moments), golden["whitened"], 1e-5);
  ExpectNear(Whiten(found.advantages, moments, false), golden["whitened_keeping_mean"], 1e-5);
}

TEST(GoldenTest, PpoLossesAndTheirGradients) {
  const json golden = Golden("learner.json")["ppo"];
  torch::Tensor fresh = T(golden["new"]).requires_grad_(true), values = T(golden["values"]).requires_grad_(true);
  const double n = 12;
  const PolicyLossSums policy = PolicyLoss(fresh, T(golden["old"]), T(golden["advantages"]), {}, {});
  const ValueLossSums value = ValueLoss(values, T(golden["old_values"]), T(golden["returns"]), 0.2);
  (policy.loss / n + value.loss / n).backward();
  EXPECT_NEAR(policy.loss.item<double>() / n, golden["policy_loss"].get<double>(), 1e-5);
  EXPECT_NEAR(value.loss.item<double>() / n, golden["value_loss"].get<double>(), 1e-5);
  EXPECT_EQ(policy.clipped.item<double>(), golden["policy_clipped"].get<double>());
  EXPECT_EQ(value.clipped.item<double>(), golden["value_clipped"].get<double>());
  ExpectNear(fresh.grad(), golden["policy_gradient"], 1e-5);
  ExpectNear(values.grad(), golden["value_gradient"], 1e-5);
}

TEST(GoldenTest, BradleyTerry) {
  const json golden = Golden("learner.json")["bradley_terry"];
  torch::Tensor chosen = T(golden["chosen"]).requires_grad_(true);
  const torch::Tensor none = torch::zeros({6}, torch::kBool);
  const torch::Tensor losses = BradleyTerry(chosen, T(golden["rejected"]), T(golden["margins"]), none);
  losses.sum().backward();
  ExpectNear(losses, golden["losses"], 1e-5);
  ExpectNear(chosen.grad(), golden["gradient"], 1e-5);
  // A tie is least costly where both are alike.
  const torch::Tensor tie = torch::ones({2}, torch::kBool), zero = torch::zeros({2});
  const torch::Tensor tied = BradleyTerry(torch::tensor({0.0F, 1.0F}), zero, zero, tie);
  EXPECT_NEAR(tied[0].item<double>(), std::log(2.0), 1e-6);
  EXPECT_GT(tied[1].item<double>(), tied[0].item<double>());
  // By the plain formula, −½·log σ(d) − ½·log σ(−d), whose slope is σ(d) − ½; a margin says nothing about a tie.
  torch::Tensor first = torch::tensor({2.0F, -1.5F, 0.25F}).requires_grad_(true);
  const torch::Tensor half = BradleyTerry(first, torch::tensor({0.5F, 1.0F, 0.25F}), torch::tensor({0.0F, 1.0F, 3.0F}),
                                          torch::ones({3}, torch::kBool));
  half.sum().backward();
  const double differences[] = {1.5, -2.5, 0};
  for (int i = 0; i < 3; ++i) {
    const double p = 1 / (1 + std::exp(-differences[i]));
    EXPECT_NEAR(half[i].item<double>(), -0.5 * std::log(p) - 0.5 * std::log(1 - p), 1e-6);
    EXPECT_NEAR(first.grad()[i].item<double>(), p - 0.5, 1e-6);
  }
}

TEST(GoldenTest, AdamW) {
  const json golden = Golden("learner.json")["adamw"];
  torch::Tensor matrix = T(golden["matrix"]).view({3, 4}), vector = T(golden["vector"]);
  v1::OptimizerSpec spec;
  spec.set_learning_rate(0.01);
  spec.set_beta1(0.9);
  spec.set_beta2(0.95);
  spec.set_epsilon(1e-8);
  spec.set_weight_decay(0.1);
  spec.set_max_grad_norm(0);
  AdamW optimizer({{"matrix", matrix}, {"vector", vector}}, spec, 3);
  for (const json& step : golden["steps"]) {
    const std::vector<torch::Tensor> gradients{T(step["matrix_gradient"]).view({3, 4}), T(step["vector_gradient"])};
    optimizer.Step(gradients, AdamW::Norm(gradients));
    ExpectNear(matrix, step["matrix"], 1e-7);
    ExpectNear(vector, step["vector"], 1e-7);
  }
}

TEST(GoldenTest, FiveStepLossCurve) {
  const json golden = Golden("learner.json")["loss_curve"];
  const auto tokens = golden["tokens"].get<std::vector<int64_t>>();
  std::vector<float> start;
  for (int i = 0; i < 36; ++i) start.push_back(static_cast<float>(0.5 * std::sin(0.9 * i)));
  torch::Tensor table = torch::tensor(start).view({6, 6}).requires_grad_(true);
  v1::OptimizerSpec spec;
  spec.set_learning_rate(0.05);
  spec.set_beta1(0.9);
  spec.set_beta2(0.95);
  spec.set_epsilon(1e-8);
  spec.set_max_grad_norm(1.0);
  AdamW optimizer({{"table", table}}, spec, 5);
  GradientBuckets buckets({table});
  const auto alone = MakeSingleRank();
  const torch::Tensor from = torch::tensor(std::vector<int64_t>(tokens.begin(), tokens.end() - 1));
  const torch::Tensor to = torch::tensor(std::vector<int64_t>(tokens.begin() + 1, tokens.end()));
  for (const json& expected : golden["losses"]) {
    buckets.Begin();
    const torch::Tensor loss = torch::nll_loss(torch::log_softmax(table.index_select(0, from), -1), to);
    EXPECT_NEAR(loss.item<double>(), expected.get<double>(), 1e-5);
    ASSERT_TRUE(buckets.Backward(loss, true, alone.get()).ok());
    optimizer.Step(buckets.gradients(), AdamW::Norm(buckets.gradients()));
  }
}

TEST(GoldenTest, EstimatorsWithoutACritic) {
  const json golden = Golden("learner.json")["groups"];
  AdvantageInputs inputs;
  inputs.batch_returns = golden["returns"].get<std::vector<double>>();
  inputs.samples_per_prompt = golden["samples_per_prompt"];
  inputs.rewards = T(golden["returns"]);  // a token each
  inputs.counts.assign(12, 1);
  for (const auto& [which, name] :
       std::map<v1::AdvantageEstimator, std::string>{{v1::RLOO, "rloo"},
                                                     {v1::GRPO, "grpo"},
                                                     {v1::GRPO_NO_STD, "grpo_no_std"},
                                                     {v1::REINFORCE_BASELINE, "reinforce_baseline"}}) {
    const auto estimator = MakeAdvantageEstimator(which);
    EXPECT_FALSE(estimator->needs_critic());
    ExpectNear(estimator->Compute(inputs).advantages, golden[name], 1e-5);
  }
}

// Hu et al. 2025, equation 8: the score less the KL from a token on.
TEST(FormulaTest, ReinforcePlusPlusGivesATokenWhatFollowsIt) {
  const torch::Tensor old = torch::tensor({-1.0F, -2.0F, -0.5F, -1.0F, -2.0F}),
                      reference = torch::tensor({-1.5F, -1.0F, -1.5F, -3.0F, -2.5F});
  const std::vector<double> kl{0.5, -1.0, 1.0, 2.0, 0.5}, scores{3.0, -1.0};
  const double beta = 0.1;
  AdvantageInputs inputs;
  inputs.counts = {3, 2};
  inputs.rewards = TokenRewards(old, reference, inputs.counts, scores, beta);
  inputs.batch_returns = {3.0 - beta * 0.5, -1.0 - beta * 2.5};
  const double mean = (inputs.batch_returns[0] + inputs.batch_returns[1]) / 2;
  const std::vector<double> expected{3.0 - beta * (kl[0] + kl[1] + kl[2]) - mean, 3.0 - beta * (kl[1] + kl[2]) - mean,
                                     3.0 - beta * kl[2] - mean, -1.0 - beta * (kl[3] + kl[4]) - mean,
                                     -1.0 - beta * kl[4] - mean};
  ExpectNear(MakeAdvantageEstimator(v1::REINFORCE_BASELINE)->Compute(inputs).advantages, json(expected), 1e-5);
}

TEST(FormulaTest, RewardsAreTheKlOfEachTokenAndTheScoreAtTheLast) {
  const torch::Tensor rewards = TokenRewards(torch::tensor({-1.0F, -2.0F, -0.5F}), torch::tensor({-1.5F, -2.0F, -1.0F}),
                                             {2, 1}, {3.0, -1.0}, 0.1);
  ExpectNear(rewards, json({-0.05, 3.0, -1.05}), 1e-6);
}

TEST(FormulaTest, KlInTheLossHasAGradientTowardsTheReference) {
  const std::vector<double> fresh{-1.0, -2.0, -0.5, -3.0}, reference{-1.5, -2.0, -0.25, -1.0};
  const auto as_tensor = [](const std::vector<double>& values) { return torch::tensor(values).to(torch::kFloat32); };
  for (const v1::KlForm form : {v1::KL_LOSS_K2, v1::KL_LOSS_K3}) {
    torch::Tensor log_probs = as_tensor(fresh).requires_grad_(true), fixed = as_tensor(reference).requires_grad_(true);
    const torch::Tensor sum = KlLossSum(log_probs, fixed, form);
    sum.backward();
    double expected = 0;
    std::vector<double> gradient;
    for (size_t i = 0; i < fresh.size(); ++i) {
      const double d = reference[i] - fresh[i];
      expected += form == v1::KL_LOSS_K2 ? d * d / 2 : std::exp(d) - d - 1;
      gradient.push_back(form == v1::KL_LOSS_K2 ? -d : 1 - std::exp(d));
    }
    EXPECT_NEAR(sum.item<double>(), expected, 1e-5);
    ExpectNear(log_probs.grad(), json(gradient), 1e-5);
    EXPECT_FALSE(fixed.grad().defined());
  }
  // Where little has moved: d²/2 in both, which exp(d) − d − 1 in float32 rounds to 0.
  const torch::Tensor near = torch::tensor({-2.0F}), moved = near + 1.0F / 4096;
  EXPECT_NEAR(KlLossSum(near, moved, v1::KL_LOSS_K3).item<double>() * 2 * 4096 * 4096, 1, 1e-3);
  v1::KlSpec spec;
  EXPECT_FALSE(KlCountsInLoss(spec));
  spec.set_form(v1::KL_REWARD);
  EXPECT_FALSE(KlCountsInLoss(spec));
  spec.set_form(v1::KL_LOSS_K2);
  EXPECT_TRUE(KlCountsInLoss(spec));
}

TEST(FormulaTest, DualClipBoundsTheLossOfBadActions) {
  PolicyLossOptions options;
  options.dual_clip = 3;
  const PolicyLossSums sums =
      PolicyLoss(torch::tensor({0.0F}), torch::tensor({-3.0F}), torch::tensor({-1.0F}), {}, options);
  EXPECT_NEAR(sums.loss.item<double>(), 3.0, 1e-6);
  const PolicyLossSums unbounded =
      PolicyLoss(torch::tensor({0.0F}), torch::tensor({-3.0F}), torch::tensor({-1.0F}), {}, {});
  EXPECT_NEAR(unbounded.loss.item<double>(), std::exp(3.0), 1e-3);
}

TEST(FormulaTest, TheKlOfASmallUpdateKeepsItsDigits) {
  // Log-probabilities that differ by 2⁻²⁰, which float32 has exactly: r − 1 − log r is ½ · 2⁻⁴⁰, and 0 in float32.
  const torch::Tensor old = torch::full({3}, -1.0F), moved = old + 0x1p-20F;
  const PolicyLossSums sums = PolicyLoss(moved, old, torch::ones({3}), {}, {});
  EXPECT_NEAR(sums.approx_kl.item<double>(), 3 * 0.5 * 0x1p-40, 1e-4 * 0x1p-40);
  EXPECT_EQ(PolicyLoss(old, old, torch::ones({3}), {}, {}).approx_kl.item<double>(), 0);
}

TEST(FormulaTest, ExplainedVarianceOfReturnsThatDoNotVaryIsZero) {
  const torch::Tensor values = torch::tensor({0.5F, -0.25F, 1.5F, 0.75F});
  const torch::Tensor returns = torch::tensor({1.0F, 0.0F, 2.0F, 0.5F});
  EXPECT_NEAR(ExplainedVariance(values, returns), 1 - 0.125 / 0.7291666666666666, 1e-6);  // Python: statistics.variance
  EXPECT_EQ(ExplainedVariance(values, torch::full({4}, 0.3F)), 0);
  // Equal, but for the rounding of sums with values of 1.
  EXPECT_EQ(ExplainedVariance(values, torch::tensor({1e-8F, 0.0F, -6e-8F, 3e-8F})), 0);
  EXPECT_EQ(ExplainedVariance(values.slice(0, 0, 1), returns.slice(0, 0, 1)), 0) << "one does not vary";
  EXPECT_LT(ExplainedVariance(-values, returns), 0) << "worse than the mean";
}

TEST(FormulaTest, KlControllers) {
  v1::KlSpec spec;
  spec.set_coefficient(0.1);
  spec.set_target(6);
  spec.set_horizon(10'000);
  const auto fixed = MakeKlController(spec);
  fixed->Update(100, 256);
  EXPECT_EQ(fixed->coefficient(), 0.1);
  spec.set_adaptive(true);
  const auto adaptive = MakeKlController(spec);
  adaptive->Update(6.6, 256);  // error 0.1
  EXPECT_NEAR(adaptive->coefficient(), 0.1 * (1 + 0.1 * 256 / 10'000), 1e-12);
  adaptive->set_coefficient(0.1);
  adaptive->Update(100, 256);  // clipped to 0.2
  EXPECT_NEAR(adaptive->coefficient(), 0.1 * (1 + 0.2 * 256 / 10'000), 1e-12);
}

TEST(FormulaTest, ImportanceWeightsAreTruncated) {
  ExpectNear(ImportanceWeights(torch::tensor({-1.0F, -1.0F}), torch::tensor({-1.1F, -9.0F}), 2.0),
             json({std::exp(0.1), 2.0}), 1e-6);
}

}  // namespace
}  // namespace rlhf::learner
