// Every family against transformers (recorded by tests/golden/generate_families.py): logits, generation, rewards,
// gradients; and the ways to compute a number against one another, to rounding and, in deterministic mode, to the bit.
#include <cmath>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "model/kernels/cpu_kernels.h"
#include "model/kv_cache.h"
#include "model/log_probs.h"
#include "model/sampler.h"
#include "tests/model/family_models.h"

namespace rlhf::model {
namespace {

constexpr double kRelative = 2e-5;

std::vector<int32_t> Slice(const std::vector<int32_t>& ids, size_t begin, size_t end) {
  return {ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end)};
}

torch::Tensor LogProbsOf(const Transformer& model, const std::vector<std::vector<int32_t>>& sequences) {
  const PackedBatch batch = PackedBatch::FromSequences(sequences);
  const ResponseIndex index = IndexResponses(batch, std::vector<int64_t>(sequences.size(), 1));
  return ChunkedLogProbs(model, model.Hidden(batch, index.rows), index.targets, 1.0, false, 7).log_probs;
}

void ExpectClose(const torch::Tensor& found, const std::vector<double>& expected, const std::string& what,
                 double relative = kRelative) {
  ASSERT_EQ(found.numel(), static_cast<int64_t>(expected.size())) << what;
  double largest = 1, worst = 0;
  const torch::Tensor flat = found.detach().to(torch::kFloat64).contiguous().view({-1});
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(flat[static_cast<int64_t>(i)].item<double>() - expected[i]));
  }
  EXPECT_LE(worst, relative * largest) << what;
}

// Decodes with the cache, the greediest token each time, beside another sequence that stays one token behind.
std::vector<int32_t> Greedy(const Transformer& model, const std::vector<int32_t>& prompt, size_t count) {
  const int room = static_cast<int>(prompt.size() + count) + 1;
  KvCache cache(model.config(), 2, room, model.dtype(), torch::kCPU);
  torch::Tensor hidden =
      model.Extend(PackedBatch::FromSequences({prompt, Slice(prompt, 1, prompt.size())}), {1, 0}, cache);
  std::vector<int32_t> out;
  while (out.size() < count) {
    const auto drawn = Sample(model.Logits(hidden.narrow(0, 0, 1)), {{.temperature = 0}}, {{}}, {0});
    out.push_back(drawn[0].id);
    PackedBatch step = PackedBatch::FromSequences({{out.back()}, {out.back()}});
    step.position_ids = torch::tensor({cache.length(1), cache.length(0)}, torch::kInt64);
    hidden = model.Extend(step, {1, 0}, cache);
  }
  return out;
}

class FamiliesTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const nlohmann::json all = Golden("families.json");
    golden_ = all["models"][GetParam()];
    ids_ = all["ids"].get<std::vector<int32_t>>();
    short_ = Slice(ids_, 0, all["short"].get<size_t>());
    model_ = FamilyModel(golden_);
    ASSERT_NE(model_, nullptr);
  }
  std::vector<double> Doubles(const char* key) const { return golden_[key].get<std::vector<double>>(); }
  nlohmann::json golden_;
  std::vector<int32_t> ids_, short_;
  std::unique_ptr<Transformer> model_;
};

std::vector<std::string> Names() {
  std::vector<std::string> names;
  const nlohmann::json models = Golden("families.json")["models"];
  for (const auto& [name, row] : models.items()) names.push_back(name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, FamiliesTest, testing::ValuesIn(Names()), [](const auto& info) { return info.param; });

TEST_P(FamiliesTest, LogitsAgree) {
  const torch::NoGradGuard no_grad;
  for (const bool deterministic : {false, true}) {
    ASSERT_TRUE(model_->SetDeterministic(deterministic).ok());
    const torch::Tensor hidden = model_->Hidden(PackedBatch::FromSequences({short_}));
    ExpectClose(model_->Logits(hidden.narrow(0, hidden.size(0) - 1, 1)), Doubles("last_logits"), "last logits");
    ExpectClose(LogProbsOf(*model_, {short_}), Doubles("log_probs"), "log-probabilities");
    // Beyond the trained length, beside a short sequence whose ropes are others.
    const torch::Tensor both = LogProbsOf(*model_, {short_, ids_});
    ExpectClose(both.narrow(0, 0, static_cast<int64_t>(short_.size()) - 1), Doubles("log_probs"), "packed");
    ExpectClose(both.narrow(0, both.size(0) - 12, 12), Doubles("long_log_probs"), "long log-probabilities");
  }
}

// What the last layer leaves out for rows that nobody asked for changes nothing of the others.
TEST_P(FamiliesTest, RowsAskedForAreThoseOfTheWhole) {
  const PackedBatch batch = PackedBatch::FromSequences({Slice(ids_, 3, 9), short_, Slice(ids_, 0, 5)});
  ASSERT_TRUE(model_->SetDeterministic(true).ok());
  for (const auto& rows : {torch::tensor({2, 5, 6}, torch::kInt64), batch.LastRows(), torch::empty({0}, torch::kInt64)})
    EXPECT_TRUE(torch::equal(model_->Hidden(batch, rows), model_->Hidden(batch).index_select(0, rows))) << rows;
}

// In float64 no kernel of ours serves: what is computed is what a GPU computes.
TEST_P(FamiliesTest, PlainOperationsGiveTheKernelsNumbers) {
  const auto plain = FamilyModel(golden_, HeadKind::kLm, torch::kFloat64);
  const PackedBatch batch = PackedBatch::FromSequences({Slice(ids_, 40, 52), short_});
  {
    const torch::NoGradGuard no_grad;
    const torch::Tensor expected = model_->Hidden(batch);
    EXPECT_TRUE(torch::allclose(plain->Hidden(batch).to(torch::kFloat32), expected, 1e-4, 1e-4));
    KvCache cache(plain->config(), 2, 40, torch::kFloat64, torch::kCPU);
    const torch::Tensor prefilled = plain->Extend(batch, {1, 0}, cache);
    EXPECT_TRUE(torch::allclose(prefilled.to(torch::kFloat32), expected.index_select(0, batch.LastRows()), 1e-4, 1e-4));
    KvCache token_by_token(plain->config(), 1, 40, torch::kFloat64, torch::kCPU);
    torch::Tensor decoded;
    for (size_t t = 0; t < short_.size(); ++t) {
      PackedBatch step = PackedBatch::FromSequences({{short_[t]}});
      step.position_ids = torch::tensor({static_cast<int64_t>(t)}, torch::kInt64);
      decoded = plain->Extend(step, {0}, token_by_token);
    }
    EXPECT_TRUE(torch::allclose(decoded[0], prefilled[1], 1e-5, 1e-5));
  }
  // Rows that are gathered once a pass are those of each layer; a checkpointed layer's second pass has them too.
  torch::Tensor weight = plain->named_parameters().front().second;
  weight.requires_grad_(true);
  std::vector<torch::Tensor> gradients;
  for (const bool checkpointing : {false, true}) {
    plain->SetGradientCheckpointing(checkpointing);
    gradients.push_back(torch::autograd::grad({plain->Hidden(batch).square().sum()}, {weight})[0]);
  }
  EXPECT_TRUE(torch::equal(gradients[0], gradients[1]));
}

// Query, key and value, and gate and up, as rows of one tensor: one product instead of three, and of two.
TEST_P(FamiliesTest, JoinedProjectionsGiveTheSameNumbers) {
  const PackedBatch batch = PackedBatch::FromSequences({Slice(ids_, 40, 52), short_});
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kFloat64, torch::kBFloat16}) {
    const auto apart = FamilyModel(golden_, HeadKind::kLm, dtype);
    Transformer joined(apart->config(), HeadKind::kLm, dtype, torch::kCPU);
    joined.JoinProjections();
    joined.CopyFrom(*apart);
    const auto expect_equal = [&](const std::string& when) {
      const torch::NoGradGuard no_grad;
      for (size_t i = 0; i < apart->named_parameters().size(); ++i) {
        const auto& [name, mine] = joined.named_parameters()[i];
        EXPECT_EQ(name, apart->named_parameters()[i].first);
        EXPECT_TRUE(mine.is_contiguous() && torch::equal(mine, apart->named_parameters()[i].second)) << name;
      }
      EXPECT_EQ(joined.ParameterLayers(), apart->ParameterLayers());
      EXPECT_TRUE(torch::equal(joined.Hidden(batch), apart->Hidden(batch))) << when;
      KvCache one(apart->config(), 2, 40, dtype, torch::kCPU), two(apart->config(), 2, 40, dtype, torch::kCPU);
      EXPECT_TRUE(torch::equal(joined.Extend(batch, {1, 0}, one), apart->Extend(batch, {1, 0}, two))) << when;
      PackedBatch step = PackedBatch::FromSequences({{3}, {5}});
      step.position_ids = torch::tensor({one.length(1), one.length(0)}, torch::kInt64);
      EXPECT_TRUE(torch::equal(joined.Extend(step, {1, 0}, one), apart->Extend(step, {1, 0}, two))) << when;
    };
    expect_equal("copied");
    for (const auto& [name, parameter] : apart->named_parameters()) {  // as a version arrives
      const torch::Tensor next = (parameter.detach() * 1.25).contiguous();
      for (Transformer* model : {apart.get(), &joined}) model->SetParameter(name, next);
    }
    expect_equal("replaced");
    if (dtype == torch::kFloat32) {
      for (Transformer* model : {apart.get(), &joined}) ASSERT_TRUE(model->SetDeterministic(true).ok());
      expect_equal("deterministic");
      for (Transformer* model : {apart.get(), &joined}) ASSERT_TRUE(model->SetDeterministic(false).ok());
    }
    // Trained, they are as before.
    const auto gradients = [&](const Transformer& model) {
      std::vector<torch::Tensor> leaves;
      for (const auto& [name, parameter] : model.named_parameters())
        leaves.push_back(torch::Tensor(parameter).requires_grad_(true));
      const auto out = torch::autograd::grad({model.Logits(model.Hidden(batch)).square().mean()}, leaves);
      for (torch::Tensor& leaf : leaves) leaf.requires_grad_(false);
      return out;
    };
    const auto found = gradients(joined), expected = gradients(*apart);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(torch::equal(found[i], expected[i])) << i;
    for (Transformer* model : {apart.get(), &joined}) {
      ASSERT_TRUE(model->AttachLora({.rank = 3, .alpha = 6}, 5).ok());
      for (const auto& [name, adapter] : model->trained_parameters())
        model->SetParameter(name, torch::full_like(adapter, 0.01));
    }
    expect_equal("with adapters");
  }
}

// Prompts that begin in one pass are attended to together, beside one that goes on and one that adds a token.
TEST_P(FamiliesTest, PromptsOfOnePassAreThoseOfPassesOfTheirOwn) {
  const torch::NoGradGuard no_grad;
  const std::vector<std::vector<int32_t>> parts = {
      {3}, Slice(ids_, 2, 8), Slice(ids_, 8, 17), {4}, Slice(ids_, 1, 12), Slice(ids_, 20, 23), {7, 9, 2, 5}, {6}};
  const std::vector<int> slots = {0, 5, 2, 3, 7, 1, 6, 4};
  for (const bool deterministic : {true, false}) {
    // By the plain operations: adapters whose sums have a fixed order, and float64, which no kernel of ours takes.
    const torch::Dtype dtype = deterministic ? torch::kFloat32 : torch::kFloat64;
    const auto model = FamilyModel(golden_, HeadKind::kLm, dtype);
    ASSERT_TRUE(model->AttachLora({.rank = 2, .alpha = 4}, 1).ok());
    for (const auto& [name, adapter] : model->trained_parameters())
      model->SetParameter(name, torch::full_like(adapter, 0.02));
    if (deterministic) {
      ASSERT_TRUE(model->SetDeterministic(true).ok());
    }
    KvCache together(model->config(), 8, 24, dtype, torch::kCPU), alone(model->config(), 8, 24, dtype, torch::kCPU);
    const auto extend = [&](KvCache& cache, std::vector<size_t> which) {
      std::vector<std::vector<int32_t>> sequences;
      std::vector<int> where;
      std::vector<int64_t> positions;
      for (const size_t i : which) {
        sequences.push_back(parts[i]);
        where.push_back(slots[i]);
        for (size_t t = 0; t < parts[i].size(); ++t)
          positions.push_back(cache.length(slots[i]) + static_cast<int64_t>(t));
      }
      PackedBatch batch = PackedBatch::FromSequences(sequences);
      batch.position_ids = torch::tensor(positions, torch::kInt64);
      return model->Extend(batch, where, cache);
    };
    for (KvCache* cache : {&together, &alone}) {  // the first two go on, and so does the fourth
      for (const size_t i : {0, 1, 3}) extend(*cache, {i});
    }
    const torch::Tensor found = extend(together, {0, 1, 2, 3, 4, 5, 6, 7});
    for (size_t i = 0; i < parts.size(); ++i) {
      const torch::Tensor expected = extend(alone, {i})[0];
      EXPECT_TRUE(deterministic ? torch::equal(found[static_cast<int64_t>(i)], expected)
                                : torch::allclose(found[static_cast<int64_t>(i)], expected, 1e-5, 1e-5))
          << "sequence " << i << ", deterministic " << deterministic;
      EXPECT_EQ(together.length(slots[i]), alone.length(slots[i]));
      for (int l = 0; l < static_cast<int>(model->config().num_layers); ++l) {
        const int64_t length = alone.length(slots[i]);
        EXPECT_TRUE(torch::allclose(together.keys(l, slots[i]).narrow(1, 0, length),
                                    alone.keys(l, slots[i]).narrow(1, 0, length), 1e-5, 1e-5));
        EXPECT_TRUE(torch::allclose(together.values(l, slots[i]).narrow(1, 0, length),
                                    alone.values(l, slots[i]).narrow(1, 0, length), 1e-5, 1e-5));
      }
    }
  }
}

// The joined tensor's product is the three of its rows.
TEST(JoinedProjectionsTest, LieOneBehindTheOther) {
  const nlohmann::json models = Golden("families.json")["models"];
  for (const char* name : {"llama_grouped", "qwen2"}) {
    const auto apart = FamilyModel(models[name]);
    Transformer joined(apart->config(), HeadKind::kLm, torch::kFloat32, torch::kCPU);
    joined.JoinProjections();
    joined.CopyFrom(*apart);
    for (const std::vector<std::string>& parts :
         {std::vector<std::string>{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
          std::vector<std::string>{"mlp.gate_proj", "mlp.up_proj"}}) {
      std::vector<torch::Tensor> products;
      const torch::Tensor first = joined.parameter("model.layers.1." + parts.front() + ".weight");
      torch::manual_seed(1);
      const torch::Tensor x = torch::randn({5, first.size(1)});
      int64_t rows = 0;
      for (const std::string& part : parts) {
        const torch::Tensor weight = joined.parameter("model.layers.1." + part + ".weight");
        EXPECT_EQ(weight.data_ptr<float>(), first.data_ptr<float>() + rows * first.size(1)) << name << " " << part;
        products.push_back(torch::linear(x, apart->parameter("model.layers.1." + part + ".weight")));
        rows += weight.size(0);
      }
      const torch::Tensor all = torch::from_blob(first.data_ptr<float>(), {rows, first.size(1)});
      EXPECT_TRUE(torch::allclose(torch::linear(x, all), torch::cat(products, 1), 1e-5, 1e-6)) << name;
    }
  }
}

// transformers computes positions beyond the trained length by the same formula; only dynamic and longrope have another
// one there, and LogitsAgree goes beyond for them.
TEST_P(FamiliesTest, PositionsBeyondTheTrainedLengthAgree) {
  using Kind = artifact::Rope::Kind;
  const torch::NoGradGuard no_grad;
  const Kind kind = model_->config().rope.kind;
  if (kind == Kind::kNone) {  // learned positions: there are none beyond
    std::vector<int32_t> beyond(static_cast<size_t>(model_->config().max_position_embeddings) + 1, 5);
    EXPECT_THROW(model_->Hidden(PackedBatch::FromSequences({beyond})), c10::Error);
    beyond.pop_back();
    EXPECT_EQ(model_->Hidden(PackedBatch::FromSequences({beyond})).size(0), static_cast<int64_t>(beyond.size()));
    return;
  }
  if (kind == Kind::kDynamic || kind == Kind::kLongRope) {
    EXPECT_LT(model_->config().max_position_embeddings, static_cast<int64_t>(ids_.size()));
    return;
  }
  nlohmann::json golden = golden_;
  golden["config"]["max_position_embeddings"] = 32;
  const auto trained_to_32 = FamilyModel(golden);
  ASSERT_NE(trained_to_32, nullptr);
  const torch::Tensor found = LogProbsOf(*trained_to_32, {ids_});
  ExpectClose(found.narrow(0, found.size(0) - 12, 12), Doubles("long_log_probs"), "beyond the trained length");
}

TEST_P(FamiliesTest, GreedyGenerationAgreesTokenForToken) {
  const auto prompt = golden_["prompt"].get<std::vector<int32_t>>(),
             expected = golden_["greedy"].get<std::vector<int32_t>>();
  // The last step's cache would reach beyond a context that is bounded: the prompt and what follows fill it.
  const size_t count = golden_["context"] == 0 ? expected.size() : expected.size() - 1;
  for (const bool deterministic : {false, true}) {
    ASSERT_TRUE(model_->SetDeterministic(deterministic).ok());
    EXPECT_EQ(Greedy(*model_, prompt, count), Slice(expected, 0, count)) << deterministic;
  }
}

TEST_P(FamiliesTest, RewardsAgree) {
  const torch::NoGradGuard no_grad;
  const auto reward = FamilyModel(golden_, HeadKind::kScalar);
  const torch::Tensor hidden = reward->Hidden(PackedBatch::FromSequences({Slice(ids_, 3, 9), short_}));
  ExpectClose(reward->Scalar(hidden.narrow(0, hidden.size(0) - 1, 1)), {golden_["reward"].get<double>()}, "reward");
}

TEST_P(FamiliesTest, GradientsAgreeForEveryParameter) {
  for (const auto& [name, parameter] : model_->named_parameters()) torch::Tensor(parameter).requires_grad_(true);
  for (const bool deterministic : {false, true}) {
    ASSERT_TRUE(model_->SetDeterministic(deterministic).ok());
    const torch::Tensor loss = -LogProbsOf(*model_, {short_}).mean();
    ExpectClose(loss, {golden_["loss"].get<double>()}, "loss");
    loss.backward();
    std::vector<std::pair<std::string, torch::Tensor>> parameters = model_->named_parameters();
    for (auto& [name, tensor] : parameters) {
      if (name == "embed_out.weight") name = "lm_head.weight";
    }
    std::sort(parameters.begin(), parameters.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    ASSERT_EQ(parameters.size(), golden_["gradients"].size());
    for (size_t k = 0; k < parameters.size(); ++k) {
      auto& [name, tensor] = parameters[k];
      const torch::Tensor grad = tensor.grad().to(torch::kFloat64).contiguous().view({-1});
      double product = 0;
      for (int64_t i = 0; i < grad.numel(); ++i)
        product += grad.data_ptr<double>()[i] * FormulaValue(static_cast<uint64_t>(i), 1000 + k, 1.0);
      const auto expected = golden_["gradients"][name].get<std::vector<double>>();
      EXPECT_NEAR(grad.norm().item<double>(), expected[0], 1e-4 * expected[0] + 1e-6) << name;
      EXPECT_NEAR(product, expected[1], 2e-4 * expected[0] + 1e-6) << name;
      tensor.mutable_grad().reset();
    }
  }
}

TEST_P(FamiliesTest, Bfloat16IsWithinItsRounding) {
  const torch::NoGradGuard no_grad;
  const auto half = FamilyModel(golden_, HeadKind::kLm, torch::kBFloat16);
  const torch::Tensor found = half->Logits(half->Hidden(PackedBatch::FromSequences({short_})));
  const torch::Tensor exact = model_->Logits(model_->Hidden(PackedBatch::FromSequences({short_})));
  EXPECT_LE((found - exact).abs().max().item<double>(), 2 * golden_["bf16_error"].get<double>());
}

// What the sampler records for a token.
float SampledLogProb(const torch::Tensor& logits, int32_t id) {
  const torch::Tensor row = logits.contiguous().view({-1});
  return row[id].item<float>() - kernels::LogSumExp(row.data_ptr<float>(), row.numel(), 1.0F, nullptr, nullptr);
}

TEST_P(FamiliesTest, PrefillDecodeAndTrainingAreOneNumber) {
  const torch::NoGradGuard no_grad;
  const size_t prompt = 5;
  for (const bool deterministic : {false, true}) {
    ASSERT_TRUE(model_->SetDeterministic(deterministic).ok());
    // Trained behind another sequence; generated beside a third, from a prefix that was copied.
    const torch::Tensor trained = LogProbsOf(*model_, {Slice(ids_, 40, 52), short_}).narrow(0, 11, 23).contiguous();
    KvCache cache(model_->config(), 3, 40, torch::kFloat32, torch::kCPU);
    torch::Tensor hidden =
        model_->Extend(PackedBatch::FromSequences({Slice(short_, 0, prompt), {7, 9}}), {2, 0}, cache);
    cache.CopyPrefix(2, 1, static_cast<int64_t>(prompt));
    cache.SetLength(1, static_cast<int64_t>(prompt));
    double worst = 0;
    for (size_t t = prompt; t < short_.size(); ++t) {
      const float found = SampledLogProb(model_->Logits(hidden.narrow(0, 0, 1)), short_[t]);
      const float expected = trained.data_ptr<float>()[t - 1];
      if (deterministic) {
        EXPECT_EQ(found, expected) << "token " << t;
      }
      worst = std::max(worst, static_cast<double>(std::abs(found - expected)));
      PackedBatch step = PackedBatch::FromSequences({{short_[t]}, {short_[t]}});
      step.position_ids = torch::tensor({cache.length(1), cache.length(0)}, torch::kInt64);
      hidden = model_->Extend(step, {1, 0}, cache);
    }
    EXPECT_LE(worst, 3e-5);
  }
}

TEST_P(FamiliesTest, DeterministicNumbersDependOnNeitherBatchNorThreads) {
  ASSERT_TRUE(model_->SetDeterministic(true).ok());
  for (const auto& [name, parameter] : model_->named_parameters()) torch::Tensor(parameter).requires_grad_(true);
  const int threads = at::get_num_threads();
  std::vector<torch::Tensor> first;
  for (const int now : {1, 2}) {
    at::set_num_threads(now);
    const torch::Tensor alone = LogProbsOf(*model_, {short_});
    const torch::Tensor packed = LogProbsOf(*model_, {ids_, {5, 8, 13}, short_, {4, 9}});
    EXPECT_TRUE(torch::equal(alone, packed.narrow(0, 91, 23))) << now;
    std::vector<torch::Tensor> all{alone.detach()};
    alone.mean().backward();
    for (const auto& [name, parameter] : model_->named_parameters()) {
      all.push_back(parameter.grad().clone());
      torch::Tensor(parameter).mutable_grad().reset();
    }
    if (first.empty()) first = all;
    for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(torch::equal(first[i], all[i])) << i;
  }
  at::set_num_threads(threads);
}

}  // namespace
}  // namespace rlhf::model
