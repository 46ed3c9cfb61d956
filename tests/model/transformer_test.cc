// Both families against transformers, and the three ways to compute a log-probability against one another.
#include "model/transformer.h"

#include <gtest/gtest.h>

#include "artifact/tokenizer.h"
#include "model/kv_cache.h"
#include "model/linear.h"
#include "model/log_probs.h"
#include "model/weights_io.h"
#include "tests/model/family_models.h"
#include "tests/model/formula_model.h"
#include "tests/testing/tensor_memory.h"

namespace rlhf::model {
namespace {

constexpr double kTolerance = 1e-4;

void ExpectNear(const torch::Tensor& found, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(found.numel(), static_cast<int64_t>(expected.size()));
  const torch::Tensor flat = found.detach().to(torch::kFloat64).contiguous().view({-1});
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), expected[i], tolerance) << "at " << i;
}

torch::Tensor LogProbsOf(const Transformer& model, const std::vector<int32_t>& ids) {
  const PackedBatch batch = PackedBatch::FromSequences({ids});
  const ResponseIndex index = IndexResponses(batch, {1});
  return ChunkedLogProbs(model, model.Hidden(batch).index_select(0, index.rows), index.targets, 1.0, false, 4)
      .log_probs;
}

void ExpectGolden(const Transformer& model, const nlohmann::json& golden, const std::vector<int32_t>& ids) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor hidden = model.Hidden(PackedBatch::FromSequences({ids}));
  ExpectNear(model.Logits(hidden.narrow(0, hidden.size(0) - 1, 1)), golden["last_logits"].get<std::vector<double>>(),
             kTolerance);
  ExpectNear(LogProbsOf(model, ids), golden["log_probs"].get<std::vector<double>>(), kTolerance);
}

class FamilyTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const nlohmann::json all = Golden("model.json");
    golden_ = all["models"][GetParam()];
    ids_ = all["ids"].get<std::vector<int32_t>>();
    model_ = FormulaModel(golden_);
    ASSERT_NE(model_, nullptr);
  }
  nlohmann::json golden_;
  std::vector<int32_t> ids_;
  std::unique_ptr<Transformer> model_;
};
INSTANTIATE_TEST_SUITE_P(Families, FamilyTest, testing::Values("llama", "llama_grouped_untied", "gpt2"));

TEST_P(FamilyTest, AgreesWithTransformers) {
  ExpectGolden(*model_, golden_, ids_);
}

TEST_P(FamilyTest, PrefillAndDecodeAgreeWithTraining) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor trained = LogProbsOf(*model_, ids_);
  KvCache cache(model_->config(), 3, 32, torch::kFloat32, torch::kCPU);
  const size_t prompt = 4;
  // Beside another sequence of another length, in slots out of order.
  const std::vector<int32_t> other{7, 9};
  torch::Tensor hidden =
      model_->Extend(PackedBatch::FromSequences({{ids_.begin(), ids_.begin() + prompt}, other}), {2, 0}, cache);
  cache.CopyPrefix(2, 1, static_cast<int64_t>(prompt));
  cache.SetLength(1, static_cast<int64_t>(prompt));
  for (size_t t = prompt; t < ids_.size(); ++t) {
    const torch::Tensor logits = model_->Logits(hidden.narrow(0, 0, 1));
    const double found = torch::log_softmax(logits, -1)[0][ids_[t]].item<double>();
    EXPECT_NEAR(found, trained[static_cast<int64_t>(t) - 1].item<double>(), kTolerance) << "token " << t;
    PackedBatch step = PackedBatch::FromSequences({{ids_[t]}, {ids_[t]}});
    step.position_ids = torch::full({2}, static_cast<int64_t>(t), torch::kInt64);
    hidden = model_->Extend(step, {2, 1}, cache);  // slot 1 shares slot 2's prefix
    EXPECT_TRUE(torch::allclose(hidden[0], hidden[1], 1e-5, 1e-6));
  }
}

TEST_P(FamilyTest, PackingDoesNotMixSequences) {
  const torch::NoGradGuard no_grad;
  const std::vector<int32_t> other{5, 8, 13, 21};
  const torch::Tensor together = model_->Hidden(PackedBatch::FromSequences({other, ids_}));
  const torch::Tensor alone = model_->Hidden(PackedBatch::FromSequences({ids_}));
  EXPECT_TRUE(torch::allclose(together.narrow(0, 4, alone.size(0)), alone, 1e-5, 1e-6));
}

TEST_P(FamilyTest, ChunkedLogProbsHaveTheGradientOfPlainOnes) {
  for (const auto& [name, parameter] : model_->named_parameters()) {
    torch::Tensor leaf = parameter;
    leaf.requires_grad_(true);
  }
  const auto gradients = [&](const torch::Tensor& loss, bool again = false) {
    loss.backward({}, /*retain_graph=*/again);
    std::vector<torch::Tensor> out;
    for (const auto& [name, parameter] : model_->named_parameters()) {
      torch::Tensor leaf = parameter;
      out.push_back(leaf.grad().clone());
      leaf.mutable_grad().reset();
    }
    return out;
  };
  const PackedBatch batch = PackedBatch::FromSequences({ids_});
  const ResponseIndex index = IndexResponses(batch, {1});
  const torch::Tensor weights = torch::linspace(0.5, 2, index.targets.size(0));
  // The first backward has the logits that were kept; a second one computes them again.
  const torch::Tensor loss = (LogProbsOf(*model_, ids_) * weights).sum();
  const auto chunked = gradients(loss, /*again=*/true), computed_again = gradients(loss);
  const torch::Tensor plain = torch::log_softmax(model_->Logits(model_->Hidden(batch).index_select(0, index.rows)), -1)
                                  .gather(1, index.targets.unsqueeze(1))
                                  .squeeze(1);
  const auto expected = gradients((plain * weights).sum());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(torch::allclose(chunked[i], expected[i], 1e-4, 1e-5)) << model_->named_parameters()[i].first;
    EXPECT_TRUE(torch::equal(chunked[i], computed_again[i])) << model_->named_parameters()[i].first;
  }
}

// With a soft cap of the logits (gemma2), tied and untied heads, a temperature, several chunks.
TEST(LogProbsTest, TheEntropyHasTheGradientOfThePlainFormula) {
  const nlohmann::json families = Golden("families.json");
  const auto ids = families["ids"].get<std::vector<int32_t>>();
  for (const char* name : {"llama", "llama_grouped", "gemma2"}) {
    for (const bool deterministic : {false, true}) {
      const auto model = FamilyModel(families["models"][name]);
      ASSERT_TRUE(model->SetDeterministic(deterministic).ok());
      const PackedBatch batch = PackedBatch::FromSequences({{ids.begin(), ids.begin() + 24}});
      const ResponseIndex index = IndexResponses(batch, {1});
      torch::Tensor hidden, head = model->head_weight();
      {
        const torch::NoGradGuard no_grad;
        hidden = model->Hidden(batch, index.rows);
      }
      hidden.requires_grad_(true);
      head.requires_grad_(true);
      const int64_t rows = index.targets.size(0);
      const torch::Tensor to_log_probs = torch::linspace(-1, 2, rows), to_entropy = torch::linspace(1.5, -0.5, rows);
      const auto gradients = [&](const torch::Tensor& loss, bool again = false) {
        return torch::autograd::grad({loss}, {hidden, head}, {}, again);
      };
      const torch::Tensor plain = torch::log_softmax(model->Logits(hidden).to(torch::kFloat64) / 0.7, -1);
      const torch::Tensor log_probs = plain.gather(1, index.targets.unsqueeze(1)).squeeze(1);
      const torch::Tensor entropy = -(plain.exp() * plain).sum(-1);
      const LogProbs found = ChunkedLogProbs(*model, hidden, index.targets, 0.7, true, 4);
      EXPECT_TRUE(torch::allclose(found.log_probs.to(torch::kFloat64), log_probs, 1e-5, 1e-5)) << name;
      EXPECT_TRUE(torch::allclose(found.entropy.to(torch::kFloat64), entropy, 1e-5, 1e-5)) << name;
      // The first backward has the logits that were kept; a second one computes them again.
      const torch::Tensor loss = (found.log_probs * to_log_probs).sum() + (found.entropy * to_entropy).sum();
      const auto chunked = gradients(loss, /*again=*/true), computed_again = gradients(loss, /*again=*/true);
      const auto expected = gradients((log_probs * to_log_probs).sum() + (entropy * to_entropy).sum(), /*again=*/true);
      const auto alone = gradients(found.entropy.sum(), /*again=*/true),
                 expected_alone = gradients(entropy.sum(), /*again=*/true);
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_TRUE(torch::allclose(chunked[i], expected[i], 1e-4, 1e-5)) << name << deterministic << i;
        EXPECT_TRUE(torch::equal(chunked[i], computed_again[i])) << name << deterministic << i;
        EXPECT_TRUE(torch::allclose(alone[i], expected_alone[i], 1e-4, 1e-5)) << name << deterministic << i;
      }
    }
  }
}

TEST(LogProbsTest, TheEntropysGradientNeedsNoLogitsOfAllRows) {
  const auto config = artifact::ParseModelConfig(
      R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":32768,"hidden_size":8,)"
      R"("intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":2,"max_position_embeddings":64,)"
      R"("tie_word_embeddings":true,"rms_norm_eps":1e-5,"bos_token_id":1,"eos_token_id":2,"pad_token_id":0})",
      "test");
  ASSERT_TRUE(config.ok()) << config.status();
  Transformer model(*config, HeadKind::kLm, torch::kFloat32, torch::kCPU);
  model.InitRandom(1);
  const int64_t rows = 2048, all = rows * config->vocab_size * 4;  // 256 MiB
  const torch::Tensor hidden = torch::randn({rows, 8}).requires_grad_(true),
                      targets = torch::arange(rows, torch::kInt64);
  const auto memory = std::make_shared<TensorMemory>();
  const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
  const LogProbs found = ChunkedLogProbs(model, hidden, targets, 0.7, true, 128);
  (found.log_probs.sum() - 0.1 * found.entropy.sum()).backward();
  EXPECT_TRUE(hidden.grad().defined());
  EXPECT_LT(memory->peak(), all / 2);
}

// In bfloat16 neither is rounded to it: what samples and what trains would differ by that.
TEST_P(FamilyTest, LogitsAreWhatLogProbsAreMadeOf) {
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    const auto model = FormulaModel(golden_, dtype);
    const torch::NoGradGuard no_grad;
    torch::manual_seed(4);
    const torch::Tensor hidden = torch::randn({9, model->config().hidden_size}).to(dtype),
                        targets = torch::arange(9) % model->config().vocab_size;
    const torch::Tensor plain =
        torch::log_softmax(model->Logits(hidden), -1).gather(1, targets.unsqueeze(1)).squeeze(1);
    const double apart = (ChunkedLogProbs(*model, hidden, targets).log_probs - plain).abs().max().item<double>();
    const double bound = dtype == torch::kFloat32 || ProductsAreOurs(hidden) ? 1e-5 : 0.1;  // LibTorch's are rounded
    EXPECT_LE(apart, bound) << dtype;
  }
}

TEST(StoriesTest, ARealModelAgreesWithTransformers) {
  if (StoriesModel().empty()) GTEST_SKIP() << "stories260K is not beside the repository";
  const nlohmann::json golden = Golden("model.json")["stories260K"];
  const auto model = LoadModel(StoriesModel());
  ASSERT_TRUE(model.ok()) << model.status();
  const auto tokenizer = artifact::Tokenizer::Load(StoriesModel());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode(golden["text"].get<std::string>());
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, golden["ids"].get<std::vector<int32_t>>());
  ExpectGolden(**model, golden, *ids);
}

}  // namespace
}  // namespace rlhf::model
