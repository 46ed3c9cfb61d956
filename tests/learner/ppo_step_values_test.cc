// What a PPO step finds, number by number, against the same by hand.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <gtest/gtest.h>

#include "learner/checkpoint.h"
#include "learner/losses.h"
#include "learner/ppo_batch.h"
#include "learner/trainable.h"
#include "model/lora.h"
#include "tests/learner/given_samples.h"

namespace rlhf::learner {
namespace {

constexpr double kClipLow = 0.1, kClipHigh = 0.3, kDualClip = 1.2, kValueClip = 0.05, kValueCoefficient = 0.3;
constexpr double kGamma = 0.97, kLambda = 0.9, kBeta = 0.1, kEosPenalty = 0.5;

double MeanOf(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double VarianceOf(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += (value - MeanOf(values)) * (value - MeanOf(values));
  return squares / static_cast<double>(values.size() - 1);
}

std::vector<double> Standardized(std::vector<double> values, bool keep_mean) {
  const double mean = MeanOf(values), deviation = std::sqrt(VarianceOf(values) + 1e-8);
  for (double& value : values) value = (value - mean) / deviation + (keep_mean ? mean : 0);
  return values;
}

std::vector<double> NumbersOf(const torch::Tensor& tensor) {
  const torch::Tensor wide = tensor.detach().to(torch::kFloat64).contiguous();
  return {wide.data_ptr<double>(), wide.data_ptr<double>() + wide.numel()};
}

// A policy and a critic as a step finds them, or as a checkpoint after an update has them.
struct Models {
  std::unique_ptr<Trainable> policy, critic;
};

// One update's numbers; counts are of response tokens.
struct UpdateByHand {
  double policy_loss = 0, value_loss = 0, policy_norm = 0, critic_norm = 0, approx_kl = 0;
  int low = 0, high = 0, dual = 0, values = 0;  // where each bound holds
};

// What is known before the first update.
struct BatchByHand {
  std::vector<double> old_log_probs, values, advantages, returns, weights;
  double kl = 0, explained_variance = 0;
};

class PpoStepValuesTest : public TinyJobTest {
 protected:
  static v1::JobSpec Job(bool whiten_rewards) {
    v1::JobSpec job = PpoJob(12, 20);
    job.set_seed(5);  // of the critic's new head
    v1::PpoSpec* spec = job.mutable_ppo();
    spec->set_epochs(1);
    spec->set_minibatch_size(0);
    spec->set_gamma(kGamma);
    spec->set_lambda(kLambda);
    spec->set_whiten_rewards(whiten_rewards);
    spec->set_clip_range(kClipLow);
    spec->set_clip_range_high(kClipHigh);
    spec->set_dual_clip(kDualClip);
    spec->set_value_clip_range(kValueClip);
    spec->set_value_coefficient(kValueCoefficient);
    spec->set_missing_eos_penalty(kEosPenalty);
    spec->mutable_kl()->set_coefficient(kBeta);
    return job;
  }
  // The sampler's and the reference's log-probabilities are near the policy's; one answer was cut. Two answers were
  // given twice and scored unlike: where the better score wins, the other's tokens become likelier against their
  // advantage, which dual_clip bounds.
  std::vector<v1::Sample> Batch() {
    std::vector<v1::Sample> samples = Samples({1, 2, 3, 4, 2, 3, 1, 4, 3, 2, 4, 1});
    for (const auto& [better, worse] : {std::pair<size_t, size_t>{1, 9}, {2, 8}}) {
      *samples[worse].mutable_prompt_tokens() = samples[better].prompt_tokens();
      *samples[worse].mutable_response_tokens() = samples[better].response_tokens();
      *samples[worse].mutable_behaviour_log_probs() = samples[better].behaviour_log_probs();
      *samples[worse].mutable_score() = samples[better].score();
      samples[better].mutable_score()->set_total(2);
      samples[worse].mutable_score()->set_total(-0.5);
    }
    samples[3].set_finish_reason(v1::MAX_TOKENS);
    int row = 0;
    for (v1::Sample& sample : samples) {
      for (int t = 0; t < sample.response_tokens_size(); ++t, ++row) {
        *sample.mutable_behaviour_log_probs()->Mutable(t) += 0.2F * static_cast<float>(row % 3 - 1);
        *sample.mutable_score()->mutable_reference_log_probs()->Mutable(t) += 0.5F * static_cast<float>(row % 5 - 2);
      }
    }
    samples[5].set_behaviour_log_probs(0, samples[5].behaviour_log_probs(0) - 5);  // its weight is cut to 2
    return samples;
  }
  Models Load(const v1::JobSpec& job) {
    model::LoadOptions scalar;
    scalar.head = model::HeadKind::kScalar;
    scalar.init_missing_scalar_head = true;
    scalar.head_seed = job.seed();
    auto policy = model::LoadModel(dir_.File("model")), critic = model::LoadModel(dir_.File("model"), scalar);
    EXPECT_TRUE(policy.ok() && critic.ok()) << policy.status() << critic.status();
    return {std::make_unique<Trainable>(*std::move(policy), job.ppo().policy_optimizer(), 1),
            std::make_unique<Trainable>(*std::move(critic), job.ppo().critic_optimizer(), 1)};
  }
  Models FromCheckpoint(const v1::JobSpec& job, const std::string& checkpoint) {
    Models models = Load(job);
    State state;
    models.policy->AppendState("policy", &state);
    models.critic->AppendState("critic", &state);
    nlohmann::json numbers;
    const absl::Status read = ReadCheckpoint(checkpoint, state, &numbers);
    EXPECT_TRUE(read.ok()) << read;
    return models;
  }

  static BatchByHand Before(const Models& models, const std::vector<v1::Sample>& samples, bool whiten_rewards) {
    const torch::NoGradGuard no_grad;
    BatchByHand batch;
    batch.old_log_probs = NumbersOf(LogProbsByHand(models.policy->model(), samples));
    batch.values = NumbersOf(ValuesByHand(models.critic->model(), samples));
    std::vector<double> rewards;
    for (const v1::Sample& sample : samples) {
      for (int t = 0; t < sample.response_tokens_size(); ++t) {
        const double old = batch.old_log_probs[rewards.size()];
        const double distance = old - sample.score().reference_log_probs(t);
        batch.weights.push_back(std::min(2.0, std::exp(old - sample.behaviour_log_probs(t))));
        batch.kl += distance / static_cast<double>(samples.size());
        rewards.push_back(-kBeta * distance);
      }
      rewards.back() += sample.score().total() - (sample.finish_reason() == v1::MAX_TOKENS ? kEosPenalty : 0);
    }
    if (whiten_rewards) rewards = Standardized(rewards, /*keep_mean=*/true);
    // Σ over what follows of (γλ)^k δ, written out.
    size_t begin = 0;
    for (const v1::Sample& sample : samples) {
      const size_t end = begin + static_cast<size_t>(sample.response_tokens_size());
      for (size_t t = begin; t < end; ++t) {
        double advantage = 0;
        for (size_t k = t; k < end; ++k) {
          const double next = k + 1 < end ? batch.values[k + 1] : 0;
          advantage += std::pow(kGamma * kLambda, k - t) * (rewards[k] + kGamma * next - batch.values[k]);
        }
        batch.advantages.push_back(advantage);
        batch.returns.push_back(advantage + batch.values[t]);
      }
      begin = end;
    }
    batch.explained_variance = 1 - VarianceOf(batch.advantages) / VarianceOf(batch.returns);  // A = R − V
    batch.advantages = Standardized(batch.advantages, /*keep_mean=*/false);
    return batch;
  }

  static UpdateByHand Update(const Models& models, const std::vector<v1::Sample>& samples, const BatchByHand& batch) {
    UpdateByHand update;
    const torch::Tensor log_probs = LogProbsByHand(models.policy->model(), samples).to(torch::kFloat64);
    const torch::Tensor values = ValuesByHand(models.critic->model(), samples).to(torch::kFloat64);
    torch::Tensor policy_loss = torch::zeros({}, torch::kFloat64), value_loss = policy_loss.clone();
    const size_t n = batch.advantages.size();
    for (size_t i = 0; i < n; ++i) {
      const auto row = static_cast<int64_t>(i);
      const double a = batch.advantages[i], old_value = batch.values[i];
      const torch::Tensor ratio = torch::exp(log_probs[row] - batch.old_log_probs[i]);
      const double r = ratio.item<double>(), v = values[row].item<double>();
      update.approx_kl += (r - 1 - std::log(r)) / static_cast<double>(n);
      // Where a bound holds nothing is left to learn from the token.
      torch::Tensor objective = a * ratio;
      if (a > 0 && r > 1 + kClipHigh) objective = torch::full_like(ratio, a * (1 + kClipHigh));
      if (a < 0 && r < 1 - kClipLow) objective = torch::full_like(ratio, a * (1 - kClipLow));
      if (a < 0 && r > kDualClip) objective = torch::full_like(ratio, a * kDualClip);
      update.high += a > 0 && r > 1 + kClipHigh ? 1 : 0;
      update.low += a < 0 && r < 1 - kClipLow ? 1 : 0;
      update.dual += a < 0 && r > kDualClip ? 1 : 0;
      policy_loss = policy_loss - batch.weights[i] * objective;
      torch::Tensor error = values[row] - batch.returns[i];
      const double moved = old_value + std::clamp(v - old_value, -kValueClip, kValueClip);
      if (std::abs(moved - batch.returns[i]) > std::abs(v - batch.returns[i])) {
        error = torch::full_like(error, moved - batch.returns[i]);
        ++update.values;
      }
      value_loss = value_loss + 0.5 * error * error;
    }
    policy_loss = policy_loss / static_cast<double>(n);
    value_loss = value_loss / static_cast<double>(n);
    update.policy_loss = policy_loss.item<double>();
    update.value_loss = value_loss.item<double>();
    update.policy_norm = GradientNorm(policy_loss, models.policy->model());
    update.critic_norm = GradientNorm(kValueCoefficient * value_loss, models.critic->model());
    return update;
  }
};

TEST_F(PpoStepValuesTest, TwoUpdatesWithACriticAreTheFormulas) {
  for (const bool whiten_rewards : {false, true}) {
    SCOPED_TRACE(whiten_rewards);
    v1::JobSpec job = Job(whiten_rewards);
    job.mutable_ppo()->mutable_policy_optimizer()->set_learning_rate(1e-2);
    const std::vector<v1::Sample> samples = Batch();
    const Models start = Load(job);
    const BatchByHand batch = Before(start, samples, whiten_rewards);
    const UpdateByHand first = Update(start, samples, batch);
    auto once = Make(job);
    ASSERT_TRUE(once.ok()) << once.status();
    const auto one = (*once)->RunStep(1, samples);
    ASSERT_TRUE(one.ok()) << one.status();
    ASSERT_TRUE(one->trained) << one->refusal;
    EXPECT_NEAR(one->metrics.at("kl"), batch.kl, 1e-4);
    EXPECT_NEAR(one->metrics.at("explained_variance"), batch.explained_variance, 1e-4);
    EXPECT_NEAR(one->metrics.at("importance_weight/mean"), MeanOf(batch.weights), 1e-4);
    EXPECT_NEAR(one->metrics.at("loss/policy"), first.policy_loss, 1e-4);
    EXPECT_NEAR(one->metrics.at("loss/value"), first.value_loss, 1e-4);
    EXPECT_NEAR(one->metrics.at("grad_norm/policy"), first.policy_norm, 1e-3 * first.policy_norm);
    EXPECT_NEAR(one->metrics.at("grad_norm/critic"), first.critic_norm, 1e-3 * first.critic_norm);
    EXPECT_EQ(one->metrics.at("clip_ratio"), 0);

    // A second update of the same step meets the bounds; the first one's checkpoint is where it begins.
    const std::string checkpoint = dir_.File(whiten_rewards ? "whitened" : "plain");
    ASSERT_TRUE(MakeDirs(checkpoint).ok());
    ASSERT_TRUE((*once)->SaveCheckpoint(checkpoint).ok());
    const UpdateByHand second = Update(FromCheckpoint(job, checkpoint), samples, batch);
    for (const int held : {second.low, second.high, second.dual, second.values}) EXPECT_GT(held, 0);
    job.mutable_ppo()->set_epochs(2);
    auto twice = Make(job);
    ASSERT_TRUE(twice.ok()) << twice.status();
    const auto two = (*twice)->RunStep(1, samples);
    ASSERT_TRUE(two.ok()) << two.status();
    const auto n = static_cast<double>(batch.advantages.size());
    const auto of_second = [&](const char* name) { return 2 * two->metrics.at(name) - one->metrics.at(name); };
    EXPECT_NEAR(of_second("loss/policy"), second.policy_loss, 1e-4);
    EXPECT_NEAR(of_second("loss/value"), second.value_loss, 1e-4);
    EXPECT_NEAR(of_second("grad_norm/policy"), second.policy_norm, 1e-3 * second.policy_norm);
    EXPECT_NEAR(of_second("grad_norm/critic"), second.critic_norm, 1e-3 * second.critic_norm);
    EXPECT_NEAR(of_second("approx_kl"), second.approx_kl, 1e-4);
    EXPECT_NEAR(of_second("clip_ratio"), (second.low + second.high) / n, 1e-6);
    EXPECT_EQ(two->metrics.at("explained_variance"), one->metrics.at("explained_variance"));
  }
}

TEST_F(PpoStepValuesTest, OnlyAnAnswerThatWasCutLosesTheEndsPenalty) {
  std::vector<v1::Sample> samples = Samples({2, 2, 2});
  samples[0].set_finish_reason(v1::END_OF_TEXT);
  samples[1].set_finish_reason(v1::STOP_TEXT);
  samples[2].set_finish_reason(v1::MAX_TOKENS);
  for (v1::Sample& sample : samples) sample.mutable_score()->set_total(0.25);
  v1::PpoSpec spec;
  spec.set_missing_eos_penalty(1.5);
  const auto batch = PpoBatch::FromSamples(samples, spec, 64);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->scores, (std::vector<double>{0.25, 0.25, 0.25 - 1.5}));
}

// Fresh adapters are the base, whose log-probabilities are at the sampling's temperature like the policy's own.
TEST_F(PpoStepValuesTest, TheReferenceOfALoraPolicyHasTheSamplingsTemperature) {
  v1::JobSpec job = PpoJob(4);
  v1::PpoSpec* spec = job.mutable_ppo();
  spec->mutable_sampling()->set_temperature(0.7);
  spec->mutable_lora()->set_rank(4);
  spec->mutable_lora()->set_alpha(8);
  spec->mutable_policy_optimizer()->set_learning_rate(1e-2);
  auto trainer = Make(job);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  std::vector<v1::Sample> samples = Samples({1, 2, 3, 4}, 0.7);
  for (v1::Sample& sample : samples) sample.mutable_score()->clear_reference_log_probs();
  const auto first = (*trainer)->RunStep(1, samples);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_NEAR(first->metrics.at("kl"), 0, 1e-5);
  EXPECT_NEAR(first->metrics.at("mismatch_kl"), 0, 1e-9);
  // Trained ones are not.
  const auto base = model::LoadModel(dir_.File("model"));
  ASSERT_TRUE(base.ok()) << base.status();
  const torch::Tensor distance =
      LogProbsByHand((*trainer)->model(), samples, 0.7) - LogProbsByHand(**base, samples, 0.7);
  const double kl = distance.sum().item<double>() / 4;
  EXPECT_GT(std::abs(kl), 1e-2);
  const auto second = (*trainer)->RunStep(2, samples);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_NEAR(second->metrics.at("kl"), kl, 1e-4);
}

TEST(PolicyLossTest, BelowAndAboveOneHaveTheirOwnBounds) {
  struct Case {
    double ratio, advantage, loss, clipped;
  };
  PolicyLossOptions options;
  options.clip_low = 0.1;
  options.clip_high = 0.3;
  for (const Case& c : {Case{0.8, 2, -1.6, 0}, Case{0.8, -2, 1.8, 1}, Case{1.2, 2, -2.4, 0}, Case{1.2, -2, 2.4, 0},
                        Case{1.4, 2, -2.6, 1}, Case{1.4, -2, 2.8, 0}}) {
    const torch::Tensor old = torch::tensor({-1.5F}), fresh = old + std::log(c.ratio);
    const PolicyLossSums sums = PolicyLoss(fresh, old, torch::tensor({static_cast<float>(c.advantage)}), {}, options);
    EXPECT_NEAR(sums.loss.item<double>(), c.loss, 1e-5) << c.ratio << " " << c.advantage;
    EXPECT_EQ(sums.clipped.item<double>(), c.clipped) << c.ratio << " " << c.advantage;
    // Weights are of the whole term.
    const PolicyLossSums weighted =
        PolicyLoss(fresh, old, torch::tensor({static_cast<float>(c.advantage)}), torch::tensor({0.5F}), options);
    EXPECT_NEAR(weighted.loss.item<double>(), 0.5 * c.loss, 1e-5);
  }
}

}  // namespace
}  // namespace rlhf::learner
