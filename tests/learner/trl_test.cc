// Steps of GRPO and RLOO against trl's own trainers (tests/golden/generate_trl.py): advantages, KL, losses, clipping,
// gradients, AdamW. The samples are given; what trl's trainers make of them is recorded.
#include <algorithm>
#include <numeric>

#include <gtest/gtest.h>

#include "artifact/tokenizer.h"
#include "common/durable_file.h"
#include "learner/advantage/interface.h"
#include "learner/trainer.h"
#include "model/weights_io.h"
#include "tests/learner/specs.h"
#include "tests/model/family_models.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::learner {
namespace {

using nlohmann::json;

double Mean(const json& numbers) {
  const auto values = numbers.get<std::vector<double>>();
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

class TrlTest : public testing::Test {
 protected:
  void SetUp() override {
    golden_ = Golden("trl.json");
    for (const json& response : golden_["responses"]) tokens_ += static_cast<double>(response.size());
    const std::string tokenizer = dir_.File("tokenizer"), text = dir_.File("text.txt");
    ASSERT_TRUE(WriteFileDurably(text, "the cat sat on the mat\n").ok());
    ASSERT_TRUE(MakeDirs(tokenizer).ok() && MakeDirs(dir_.File("model")).ok());
    ASSERT_TRUE(artifact::TrainByteLevelBpe({text}, 280, tokenizer).ok());
    const auto model = model::FamilyModel(Golden("families.json")["models"]["llama"]);
    ASSERT_TRUE(model::SaveModel(*model, dir_.File("model"), tokenizer).ok());
    alone_ = MakeSingleRank();
  }

  // As generate_trl.py's SHARED says.
  v1::JobSpec Job(v1::AdvantageEstimator advantage, v1::KlForm form) const {
    const json& settings = golden_["settings"];
    v1::JobSpec job = PpoJob(static_cast<int>(golden_["prompts"].size()), 40);
    v1::PpoSpec* spec = job.mutable_ppo();
    spec->set_samples_per_prompt(golden_["samples_per_prompt"]);
    spec->set_minibatch_size(0);
    spec->mutable_sampling()->set_temperature(golden_["temperature"]);
    spec->set_advantage(advantage);
    spec->set_whiten_advantages(false);
    spec->mutable_kl()->set_form(form);
    spec->mutable_kl()->set_coefficient(golden_["beta"]);
    v1::OptimizerSpec* optimizer = spec->mutable_policy_optimizer();
    optimizer->set_learning_rate(settings["learning_rate"]);
    optimizer->set_beta1(settings["adam_beta1"]);
    optimizer->set_beta2(settings["adam_beta2"]);
    optimizer->set_epsilon(settings["adam_epsilon"]);
    optimizer->set_max_grad_norm(settings["max_grad_norm"]);
    return job;
  }
  std::vector<v1::Sample> Batch() const {
    std::vector<v1::Sample> batch;
    const size_t group = golden_["samples_per_prompt"];
    for (size_t i = 0; i < golden_["responses"].size(); ++i) {
      v1::Sample& sample = batch.emplace_back();
      for (const int token : golden_["prompts"][i / group]) sample.add_prompt_tokens(token);
      for (const int token : golden_["responses"][i]) sample.add_response_tokens(token);
      for (const float value : golden_["old"][i]) sample.add_behaviour_log_probs(value);
      for (const float value : golden_["reference"][i]) sample.mutable_score()->add_reference_log_probs(value);
      sample.set_finish_reason(v1::END_OF_TEXT);
      sample.mutable_score()->set_total(golden_["scores"][i]);
    }
    return batch;
  }
  // A step's metrics, and by how much it moved each parameter.
  std::map<std::string, double> Step(const v1::JobSpec& job, std::map<std::string, torch::Tensor>* moved) {
    TrainerInputs inputs;
    inputs.spec = job;
    inputs.local = {{"model", dir_.File("model")}};
    const auto trainer = Trainer::Create(inputs);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    if (!trainer.ok()) return {};
    (*trainer)->SetCollective(alone_.get());
    moved->clear();
    for (const auto& [name, parameter] : (*trainer)->model().named_parameters())
      (*moved)[name] = -parameter.detach().to(torch::kFloat64);
    const auto result = (*trainer)->RunStep(1, Batch());
    EXPECT_TRUE(result.ok() && result->trained) << result.status();
    if (!result.ok()) return {};
    for (const auto& [name, parameter] : (*trainer)->model().named_parameters())
      (*moved)[name] += parameter.detach().to(torch::kFloat64);
    return result->metrics;
  }
  // One update whose size is the gradient's: AdamW's denominator is its epsilon.
  std::map<std::string, torch::Tensor> Gradients(v1::JobSpec job) {
    v1::OptimizerSpec* optimizer = job.mutable_ppo()->mutable_policy_optimizer();
    optimizer->set_learning_rate(1e6);
    optimizer->set_epsilon(1e6);
    optimizer->set_max_grad_norm(0);
    job.mutable_ppo()->set_epochs(1);
    std::map<std::string, torch::Tensor> moved;
    Step(job, &moved);
    for (auto& [name, tensor] : moved) tensor = -tensor;
    return moved;
  }
  static void ExpectProjections(const std::map<std::string, torch::Tensor>& found, const json& expected, double factor,
                                double tolerance) {
    ASSERT_EQ(found.size(), expected.size());
    uint64_t k = 1000;
    for (const auto& [name, tensor] : found) {  // sorted by name, as the recorded ones
      ASSERT_TRUE(expected.contains(name)) << name;
      const torch::Tensor flat = tensor.contiguous().view({-1});
      double product = 0;
      for (int64_t i = 0; i < flat.numel(); ++i)
        product += flat[i].item<double>() * model::FormulaValue(static_cast<uint64_t>(i), k, 1.0);
      const double norm = expected[name][0].get<double>() * factor;
      EXPECT_NEAR(flat.norm().item<double>(), norm, tolerance * norm) << name;
      EXPECT_NEAR(product, expected[name][1].get<double>() * factor, tolerance * norm) << name;
      ++k;
    }
  }
  void ExpectAdvantages(v1::AdvantageEstimator which, const std::vector<double>& returns, const json& expected) const {
    AdvantageInputs inputs;
    inputs.rewards = torch::zeros({static_cast<int64_t>(returns.size())});
    inputs.batch_returns = returns;
    inputs.samples_per_prompt = golden_["samples_per_prompt"];
    inputs.counts.assign(returns.size(), 1);
    const torch::Tensor found = MakeAdvantageEstimator(which)->Compute(inputs).advantages;
    for (size_t i = 0; i < returns.size(); ++i)
      EXPECT_NEAR(found[static_cast<int64_t>(i)].item<double>(), expected[i].get<double>(), 1e-5) << i;
  }

  json golden_;
  double tokens_ = 0;  // response tokens of the batch
  ScratchDir dir_;
  std::unique_ptr<Collective> alone_;
};

// loss_type "dapo" over two micro-batches, "bnpo" over one: both divide by the batch's tokens, as we do.
TEST_F(TrlTest, TwoUpdatesOfGrpo) {
  struct Case {
    const char* name;
    v1::AdvantageEstimator advantage;
    double entropy_coefficient;
  };
  for (const Case& c :
       {Case{"grpo", v1::GRPO, 0}, Case{"grpo_no_std", v1::GRPO_NO_STD, 0}, Case{"grpo_entropy", v1::GRPO, 0.05}}) {
    SCOPED_TRACE(c.name);
    const json& run = golden_["runs"][c.name];
    ExpectAdvantages(c.advantage, golden_["scores"], run["advantages"]);
    v1::JobSpec job = Job(c.advantage, v1::KL_LOSS_K3);
    job.mutable_ppo()->set_entropy_coefficient(c.entropy_coefficient);
    ExpectProjections(Gradients(job), run["updates"][0]["gradients"], 1, 1e-4);
    std::map<std::string, torch::Tensor> moved;
    const std::map<std::string, double> metrics = Step(job, &moved);
    ExpectProjections(moved, run["moved"], 1, 1e-3);
    double loss = metrics.at("loss/policy") + golden_["beta"].get<double>() * metrics.at("loss/kl");
    if (c.entropy_coefficient != 0) loss -= c.entropy_coefficient * Mean(run["entropy"]);
    const auto losses = run["losses"].get<std::vector<double>>();  // a micro-batch
    EXPECT_NEAR(loss, std::accumulate(losses.begin(), losses.end(), 0.0) / 2, 1e-4);
    EXPECT_NEAR(metrics.at("grad_norm/policy"),
                (run["updates"][0]["norm"].get<double>() + run["updates"][1]["norm"].get<double>()) / 2, 1e-3);
    EXPECT_NEAR(metrics.at("first_minibatch_ratio_error"), 0, 1e-4);
    if (losses.size() > 2) continue;  // trl's metrics of micro-batches are not weighted by their tokens
    EXPECT_NEAR(metrics.at("loss/kl"), Mean(run["kl"]), 1e-4);
    EXPECT_NEAR(metrics.at("clip_ratio"), Mean(run["clip_ratio/region_mean"]), 1e-6);
    EXPECT_GT(metrics.at("clip_ratio"), 0.1);
    EXPECT_NEAR(metrics.at("entropy"), run["entropy"][0].get<double>(), 1e-5);
  }
}

// loss_type "dr_grpo" divides by samples · max_completion_length where we divide by the response tokens.
TEST_F(TrlTest, DrGrpoIsOursButForAConstant) {
  const json& run = golden_["runs"]["dr_grpo"];
  const double most =
      golden_["settings"]["max_completion_length"].get<double>() * static_cast<double>(golden_["responses"].size());
  ExpectAdvantages(v1::GRPO_NO_STD, golden_["scores"], run["advantages"]);
  ExpectProjections(Gradients(Job(v1::GRPO_NO_STD, v1::KL_LOSS_K3)), run["updates"][0]["gradients"], most / tokens_,
                    1e-4);
}

// The KL in the reward. trl's loss is of sequences: its ratio, of which the first is 1 as a token's, and the mean over
// samples where we divide by the response tokens.
TEST_F(TrlTest, RlooIsOursInTheFirstUpdateButForAConstant) {
  const json& run = golden_["runs"]["rloo"];
  std::vector<double> returns;
  double kl = 0;
  for (size_t i = 0; i < golden_["scores"].size(); ++i) {
    double distance = 0;
    for (size_t t = 0; t < golden_["old"][i].size(); ++t)
      distance += golden_["old"][i][t].get<double>() - golden_["reference"][i][t].get<double>();
    kl += distance / tokens_;
    returns.push_back(golden_["scores"][i].get<double>() - golden_["beta"].get<double>() * distance);
  }
  EXPECT_NEAR(kl, run["kl"][0].get<double>(), 1e-5);
  ExpectAdvantages(v1::RLOO, returns, run["advantages"]);
  const auto samples = static_cast<double>(golden_["responses"].size());
  ExpectProjections(Gradients(Job(v1::RLOO, v1::KL_REWARD)), run["updates"][0]["gradients"], samples / tokens_, 1e-4);
}

}  // namespace
}  // namespace rlhf::learner
