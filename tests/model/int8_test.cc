// Int8 projections against doubles and against the float model: their bound, their scales, and that a row's bytes
// depend on that row alone.
#include "model/int8_linear.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/kernels/cpu_kernels.h"
#include "model/kv_cache.h"
#include "model/log_probs.h"
#include "model/weights_io.h"
#include "tests/model/family_models.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tensor_memory.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::model {
namespace {

torch::Tensor Normal(std::vector<int64_t> shape, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return torch::empty(shape, torch::kFloat32).normal_(0, 1, generator);
}

Int8Weight Quantized(const torch::Tensor& weight) {
  Int8Weight out(weight.size(0), weight.size(1));
  out.SetRows(0, weight);
  return out;
}

TEST(Int8LinearTest, EveryChannelHasItsOwnScale) {
  torch::Tensor weight = Normal({5, 40}, 1);
  weight[1].mul_(1000);
  weight[2].mul_(1e-6);
  weight[3].zero_();
  const Int8Weight quantized = Quantized(weight);
  for (int64_t j = 0; j < 5; ++j) {
    const double scale = quantized.scales[j].item<double>();
    EXPECT_NEAR(scale, weight[j].abs().max().item<double>() / 127, 1e-6 * scale);
    const torch::Tensor values = quantized.values[j].to(torch::kFloat64);
    EXPECT_EQ(values.abs().max().item<double>(), j == 3 ? 0 : 127);
    EXPECT_LE((values * scale - weight[j].to(torch::kFloat64)).abs().max().item<double>(), scale * 0.50001);
  }
  // Some rows anew, the others as they were.
  Int8Weight changed = Quantized(weight);
  const torch::Tensor rows = Normal({2, 40}, 2);
  changed.SetRows(1, rows.to(torch::kBFloat16));
  EXPECT_TRUE(
      torch::equal(changed.values.narrow(0, 1, 2), Quantized(rows.to(torch::kBFloat16).to(torch::kFloat32)).values));
  for (const int64_t j : {0, 3, 4}) EXPECT_TRUE(torch::equal(changed.values[j], quantized.values[j]));
}

TEST(Int8LinearTest, IsWithinItsBoundOfDoubles) {
  for (const int64_t inner : {1, 2, 15, 64, 77}) {
    for (const int64_t rows : {0, 1, 3, 33}) {
      for (const int64_t columns : {1, 4, 37}) {
        const torch::Tensor x = Normal({rows, inner}, 3), w = Normal({columns, inner}, 4), b = Normal({columns}, 5);
        const torch::Tensor y = Int8Linear(x, Quantized(w), b);
        ASSERT_EQ(y.sizes(), (c10::IntArrayRef{rows, columns}));
        if (rows == 0) continue;
        const torch::Tensor xd = x.to(torch::kFloat64), wd = w.to(torch::kFloat64);
        const torch::Tensor e = xd.abs().amax(1, true), f = wd.abs().amax(1, true);
        const torch::Tensor bound = (xd.abs().sum(1, true).matmul(f.t()) + e.matmul(wd.abs().sum(1, true).t())) / 254 +
                                    static_cast<double>(inner) * e.matmul(f.t()) / (254.0 * 254.0) + 1e-5;
        const torch::Tensor error = (y.to(torch::kFloat64) - (xd.matmul(wd.t()) + b)).abs();
        EXPECT_LE((error / bound).max().item<double>(), 1) << inner << " " << rows << " " << columns;
      }
    }
  }
}

// The library's products, where it is used, against the plain loops: the same bytes.
TEST(Int8LinearTest, TheFastProductsAreThePlainOnes) {
  for (const int64_t inner : {2, 17, 288}) {
    for (const int64_t rows : {1, 5, 64}) {
      const int64_t columns = 48;
      torch::Tensor x = Normal({rows, inner}, 6), w = Normal({columns, inner}, 7);
      // Sums that 16 bits do not hold.
      x[0].fill_(1);
      w[0].fill_(1);
      w[1].fill_(-1);
      const Int8Weight weight = Quantized(w);
      const torch::Tensor q = torch::empty({rows, inner}, torch::kInt8), scales = torch::empty({rows}),
                          products = torch::empty({rows, columns}, torch::kInt32),
                          expected = torch::empty({rows, columns});
      kernels::QuantizeRows(x.data_ptr<float>(), inner, rows, inner, q.data_ptr<int8_t>(), scales.data_ptr<float>());
      kernels::Int8MatmulNT(q.data_ptr<int8_t>(), weight.values.data_ptr<int8_t>(), rows, columns, inner,
                            products.data_ptr<int32_t>());
      kernels::Dequantize(products.data_ptr<int32_t>(), scales.data_ptr<float>(), weight.scales.data_ptr<float>(),
                          nullptr, rows, columns, expected.data_ptr<float>());
      EXPECT_EQ(products[0][1].item<int32_t>(), -127 * 127 * inner);
      EXPECT_TRUE(torch::equal(Int8Linear(x, weight, {}), expected)) << inner << " " << rows;
    }
  }
}

TEST(Int8LinearTest, ARowDoesNotDependOnItsNeighboursNorOnThreads) {
  const int64_t inner = 301, columns = 95, rows = 70;
  torch::Tensor x = Normal({rows, inner}, 8);
  x[11].mul_(1e4);  // one scale for all rows would drown the others
  const Int8Weight weight = Quantized(Normal({columns, inner}, 9));
  const int threads = torch::get_num_threads();
  const torch::Tensor all = Int8Linear(x, weight, {});
  torch::set_num_threads(3);
  EXPECT_TRUE(torch::equal(Int8Linear(x, weight, {}), all));
  torch::set_num_threads(threads);
  for (const int64_t count : {1, 2, 9}) {
    for (int64_t begin = 0; begin + count <= rows; begin += 7)
      ASSERT_TRUE(torch::equal(Int8Linear(x.narrow(0, begin, count), weight, {}), all.narrow(0, begin, count)));
  }
}

TEST(Int8LinearTest, ZerosAndWhatIsNotFiniteStayWhatTheyAre) {
  torch::Tensor x = Normal({4, 20}, 10);
  x[0].zero_();
  x[1][7] = std::numeric_limits<float>::infinity();
  x[2][3] = std::nanf("");
  torch::Tensor w = Normal({3, 20}, 11);
  const torch::Tensor b = Normal({3}, 12);
  const torch::Tensor y = Int8Linear(x, Quantized(w), b);
  EXPECT_TRUE(torch::equal(y[0], b));
  for (const int64_t row : {1, 2}) EXPECT_TRUE(y[row].isnan().all().item<bool>());
  EXPECT_TRUE(y[3].isfinite().all().item<bool>());
  w[1][0] = std::nanf("");
  const torch::Tensor poisoned = Int8Linear(x, Quantized(w), b);
  EXPECT_TRUE(poisoned[3][1].isnan().item<bool>());
  EXPECT_EQ(poisoned[3][0].item<float>(), y[3][0].item<float>());
}

class Int8FamiliesTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const nlohmann::json all = Golden("families.json");
    ids_ = all["ids"].get<std::vector<int32_t>>();
    ids_.resize(all["short"].get<size_t>());
    plain_ = FamilyModel(all["models"][GetParam()]);
    ASSERT_NE(plain_, nullptr);
    int8_ = Int8Of(*plain_);
  }
  static std::unique_ptr<Transformer> Int8Of(const Transformer& plain) {
    auto model = std::make_unique<Transformer>(plain.config(), HeadKind::kLm, torch::kFloat32, torch::kCPU);
    const absl::Status status = model->UseInt8();
    EXPECT_TRUE(status.ok()) << status;
    model->CopyFrom(plain);
    return model;
  }
  torch::Tensor LogitsOf(const Transformer& model) const {
    return model.Logits(model.Hidden(PackedBatch::FromSequences({ids_})));
  }
  std::vector<int32_t> ids_;
  std::unique_ptr<Transformer> plain_, int8_;
};

std::vector<std::string> FamilyNames() {
  std::vector<std::string> names;
  const nlohmann::json models = Golden("families.json")["models"];
  for (const auto& [name, row] : models.items()) names.push_back(name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, Int8FamiliesTest, testing::ValuesIn(FamilyNames()),
                         [](const auto& info) { return info.param; });

TEST_P(Int8FamiliesTest, LogitsAreCloseToTheFloatModels) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor expected = LogitsOf(*plain_), found = LogitsOf(*int8_);
  const double error = ((found - expected).norm() / expected.norm()).item<double>();
  EXPECT_GT(error, 1e-5) << "nothing is int8";
  EXPECT_LT(error, 0.1);
}

// Sampling, teacher forcing and any batch: the same bytes, so that behaviour log-probabilities are the int8 policy's.
TEST_P(Int8FamiliesTest, PrefillDecodeAndWholeSequencesAreEqualToTheBit) {
  const torch::NoGradGuard no_grad;
  ASSERT_TRUE(int8_->SetDeterministic(true).ok());
  const torch::Tensor whole = LogitsOf(*int8_);
  KvCache cache(int8_->config(), 2, 64, torch::kFloat32, torch::kCPU);
  const size_t prompt = 4;
  ASSERT_GT(ids_.size(), prompt + 2);
  ASSERT_LT(ids_.size(), 64u);
  torch::Tensor hidden =
      int8_->Extend(PackedBatch::FromSequences({{5, 8}, {ids_.begin(), ids_.begin() + prompt}}), {0, 1}, cache);
  EXPECT_TRUE(torch::equal(int8_->Logits(hidden)[1], whole[prompt - 1]));
  for (size_t t = prompt; t < ids_.size(); ++t) {
    PackedBatch step = PackedBatch::FromSequences({{ids_[t]}});
    step.position_ids.fill_(static_cast<int64_t>(t));
    hidden = int8_->Extend(step, {1}, cache);
    ASSERT_TRUE(torch::equal(int8_->Logits(hidden)[0], whole[static_cast<int64_t>(t)])) << t;
  }
}

TEST_P(Int8FamiliesTest, NewWeightsInPlaceAreThoseOfAFreshModel) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor before = LogitsOf(*int8_);
  for (const auto& [name, parameter] : plain_->named_parameters()) torch::Tensor(parameter).mul_(1.1);
  for (const auto& [name, parameter] : plain_->named_parameters()) int8_->SetParameter(name, parameter);
  const torch::Tensor after = LogitsOf(*int8_);
  EXPECT_FALSE(torch::equal(after, before));
  EXPECT_TRUE(torch::equal(after, LogitsOf(*Int8Of(*plain_))));
}

TEST_P(Int8FamiliesTest, AdaptersStayFloat) {
  const torch::NoGradGuard no_grad;
  LoraConfig lora;
  lora.rank = 4;
  lora.alpha = 16;
  const torch::Tensor before = LogitsOf(*plain_);
  for (Transformer* model : {plain_.get(), int8_.get()}) ASSERT_TRUE(model->AttachLora(lora, 3).ok());
  for (size_t i = 1; i < plain_->trained_parameters().size(); i += 2) {
    torch::Tensor b = plain_->trained_parameters()[i].second;
    b.copy_(Normal(b.sizes().vec(), i) * 0.05);
  }
  int8_->CopyFrom(*plain_);
  for (size_t i = 0; i < plain_->trained_parameters().size(); ++i)
    EXPECT_TRUE(torch::equal(int8_->trained_parameters()[i].second, plain_->trained_parameters()[i].second));
  const torch::Tensor expected = LogitsOf(*plain_), found = LogitsOf(*int8_);
  EXPECT_GT((expected - before).norm().item<double>(), 0.01 * before.norm().item<double>()) << "adapters do nothing";
  EXPECT_LT((found - expected).norm().item<double>(), 0.1 * expected.norm().item<double>());
}

TEST(Int8ModelTest, IsLoadedWithoutItsFloatProjections) {
  ScratchDir dir;
  MakeTinyModel(dir.File("model"), 3);
  LoadOptions options;
  options.int8 = true;
  const auto memory = std::make_shared<TensorMemory>();
  int64_t bytes[2];
  std::unique_ptr<Transformer> models[2];
  {
    const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
    for (const bool int8 : {false, true}) {
      options.int8 = int8;
      const int64_t begin = memory->live();
      auto model = LoadModel(dir.File("model"), options);
      ASSERT_TRUE(model.ok()) << model.status();
      models[int8] = *std::move(model);
      bytes[int8] = memory->live() - begin;
    }
  }
  EXPECT_TRUE(models[1]->int8());
  // Two layers of 4 · 32² + 3 · 32 · 64 weights: a byte each instead of four, and a scale a row.
  const int64_t weights = int64_t{2} * (4 * 32 * 32 + 3 * 32 * 64), rows = int64_t{2} * (5 * 32 + 2 * 64);
  EXPECT_NEAR(static_cast<double>(bytes[0] - bytes[1]), static_cast<double>(3 * weights - 4 * rows), 4096);
  const torch::NoGradGuard no_grad;
  const PackedBatch batch = PackedBatch::FromSequences({{1, 5, 9, 200}});
  const torch::Tensor loaded = models[1]->Hidden(batch);
  models[1]->CopyFrom(*models[0]);
  EXPECT_TRUE(torch::equal(models[1]->Hidden(batch), loaded));
}

TEST(Int8ModelTest, RefusesWhatItCannotDo) {
  ScratchDir dir;
  MakeTinyModel(dir.File("model"), 3);
  LoadOptions options;
  options.int8 = true;
  options.dtype = torch::kBFloat16;
  const auto half = LoadModel(dir.File("model"), options);
  EXPECT_EQ(half.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(half.status().message()), testing::HasSubstr("int8 weights need the CPU"));
  options.dtype = torch::kFloat32;
  const auto model = LoadModel(dir.File("model"), options);
  ASSERT_TRUE(model.ok()) << model.status();
  const absl::Status saved = SaveModel(**model, dir.File("out"), "");
  EXPECT_THAT(std::string(saved.message()), testing::HasSubstr("int8 model has no float weights"));
  EXPECT_THROW((*model)->SetParameter("model.layers.0.self_attn.q_proj.weight", torch::zeros({3, 3})), c10::Error);
  EXPECT_THROW((*model)->SetParameter("nothing", torch::zeros({3, 3})), c10::Error);
}

}  // namespace
}  // namespace rlhf::model
