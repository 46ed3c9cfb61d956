// A forward pass that keeps each layer's input alone has the gradients of one that keeps everything.
#include "model/gradient_checkpointing.h"

#include <gtest/gtest.h>

#include "model/log_probs.h"
#include "tests/model/family_models.h"
#include "tests/testing/tensor_memory.h"

namespace rlhf::model {
namespace {

using Gradients = std::map<std::string, torch::Tensor>;

// Two sequences of unequal lengths: all rows of one model, some of the other.
torch::Tensor LossOf(const Transformer& model) {
  const PackedBatch batch = PackedBatch::FromSequences({{3, 14, 15, 9, 26, 5, 35}, {8, 9, 7, 9}});
  if (model.head() == HeadKind::kScalar) return model.Scalar(model.Hidden(batch)).square().mean();
  const ResponseIndex index = IndexResponses(batch, {2, 1});
  return -ChunkedLogProbs(model, model.Hidden(batch, index.rows), index.targets, 0.9).log_probs.mean();
}

Gradients GradientsOf(Transformer* model, bool checkpointed) {
  model->SetGradientCheckpointing(checkpointed);
  for (const auto& [name, parameter] : model->trained_parameters()) torch::Tensor(parameter).requires_grad_(true);
  LossOf(*model).backward();
  Gradients gradients;
  for (const auto& [name, parameter] : model->trained_parameters()) {
    EXPECT_TRUE(parameter.grad().defined()) << name;
    if (parameter.grad().defined()) gradients[name] = parameter.grad().clone();
    torch::Tensor(parameter).mutable_grad().reset();
  }
  return gradients;
}

void ExpectSameGradients(Transformer* model, const std::string& what) {
  const Gradients plain = GradientsOf(model, false), checkpointed = GradientsOf(model, true);
  ASSERT_EQ(plain.size(), checkpointed.size()) << what;
  for (const auto& [name, gradient] : plain)
    EXPECT_TRUE(torch::equal(gradient, checkpointed.at(name)))
        << what << ": " << name << " differs by up to "
        << (gradient.to(torch::kFloat64) - checkpointed.at(name).to(torch::kFloat64)).abs().max().item<double>();
}

std::vector<std::string> NamesOfFamilies() {
  std::vector<std::string> names;
  const nlohmann::json models = Golden("families.json")["models"];
  for (const auto& [name, row] : models.items()) names.push_back(name);
  return names;
}

class GradientCheckpointingTest : public testing::TestWithParam<std::string> {
 protected:
  nlohmann::json golden_ = Golden("families.json")["models"][GetParam()];
};
INSTANTIATE_TEST_SUITE_P(Families, GradientCheckpointingTest, testing::ValuesIn(NamesOfFamilies()),
                         [](const auto& info) { return info.param; });

TEST_P(GradientCheckpointingTest, GradientsAreTheSameBytes) {
  const auto model = FamilyModel(golden_);
  ASSERT_NE(model, nullptr);
  ExpectSameGradients(model.get(), "float32");
  ASSERT_TRUE(model->SetDeterministic(true).ok());
  ExpectSameGradients(model.get(), "deterministic");
  ExpectSameGradients(FamilyModel(golden_, HeadKind::kLm, torch::kBFloat16).get(), "bfloat16");
  ExpectSameGradients(FamilyModel(golden_, HeadKind::kScalar).get(), "a scalar head");
}

TEST_P(GradientCheckpointingTest, GradientsOfAdaptersAreTheSameBytes) {
  const auto model = FamilyModel(golden_);
  ASSERT_NE(model, nullptr);
  ASSERT_TRUE(model->AttachLora({.rank = 2, .alpha = 4}, 1).ok());
  for (const auto& [name, adapter] : model->trained_parameters()) {
    if (name.find("lora_B") != std::string::npos) torch::Tensor(adapter).fill_(0.05);  // zero would hide A's gradients
  }
  ExpectSameGradients(model.get(), "adapters");
}

// What sums gradients over ranks counts on it: each parameter's hook comes once in a backward, last layers first.
TEST_P(GradientCheckpointingTest, AParametersHookComesOnce) {
  const auto model = FamilyModel(golden_);
  ASSERT_NE(model, nullptr);
  model->SetGradientCheckpointing(true);
  std::map<std::string, int> calls;
  std::vector<std::string> order;
  for (const auto& [name, parameter] : model->trained_parameters()) {
    torch::Tensor leaf = parameter;
    leaf.requires_grad_(true);
    leaf.register_hook([&calls, &order, name = name](const torch::Tensor&) {
      ++calls[name];
      order.push_back(name);
    });
  }
  LossOf(*model).backward();
  for (const auto& [name, parameter] : model->trained_parameters()) EXPECT_EQ(calls[name], 1) << name;
  const auto layer_of = [](const std::string& name) {
    const size_t digit = name.find_first_of("0123456789");
    return digit == std::string::npos || name[digit - 1] != '.' ? -1 : std::atoi(name.c_str() + digit);
  };
  int lowest = 1 << 20;
  for (const std::string& name : order) {
    const int layer = layer_of(name);
    if (layer < 0) continue;
    EXPECT_LE(layer, lowest) << name;
    lowest = std::min(lowest, layer);
  }
  EXPECT_EQ(lowest, 0);
}

TEST_P(GradientCheckpointingTest, NothingIsLeftBehind) {
  const auto memory = std::make_shared<TensorMemory>();
  const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, memory);
  const auto model = FamilyModel(golden_);
  ASSERT_NE(model, nullptr);
  GradientsOf(model.get(), true);  // makes the tables of positions
  const int64_t before = memory->live();
  GradientsOf(model.get(), true);
  EXPECT_EQ(memory->live(), before);
  LossOf(*model);  // a graph that nobody runs backward
  EXPECT_EQ(memory->live(), before);
}

TEST(CheckpointTest, ASegmentRunsAgainInBackwardAndIsDroppedWithTheGraph) {
  int runs = 0;
  const auto witness = std::make_shared<int>(0);
  const std::weak_ptr<int> alive = witness;
  torch::Tensor w = torch::full({3}, 2.0, torch::requires_grad()), x = torch::arange(3.0);
  {
    torch::Tensor y;
    {
      const Segment segment = [&runs, witness](const torch::Tensor& input, const std::vector<torch::Tensor>& trained) {
        ++runs;
        return (input * trained[0]).exp();
      };
      y = Checkpoint(segment, x, {w});
    }
    EXPECT_EQ(runs, 1);
    EXPECT_TRUE(y.requires_grad());
    // As torch.autograd.grad asks: the leaf's own gradient stays as it is.
    const auto gradient = torch::autograd::grad({y.sum()}, {w});
    EXPECT_EQ(runs, 2);
    EXPECT_FALSE(w.grad().defined());
    EXPECT_TRUE(torch::allclose(gradient[0], x * (2 * x).exp()));
  }
  EXPECT_EQ(witness.use_count(), 1);
  {
    const torch::NoGradGuard no_grad;
    EXPECT_FALSE(Checkpoint([](const auto& input, const auto&) { return input + 1; }, x, {w}).requires_grad());
  }
}

// Weights that changed since the forward pass would give the gradients of another function.
TEST(CheckpointTest, WeightsThatChangedBeforeBackwardAreNoticed) {
  torch::Tensor w = torch::full({3}, 2.0, torch::requires_grad());
  const torch::Tensor y =
      Checkpoint([](const auto& input, const auto& trained) { return input * trained[0]; }, torch::arange(3.0), {w});
  {
    const torch::NoGradGuard no_grad;
    w.add_(1);
  }
  EXPECT_THROW(y.sum().backward(), c10::Error);
}

TEST(CheckpointTest, AdaptersMustBeAsTheyWere) {
  const auto model = FamilyModel(Golden("families.json")["models"][NamesOfFamilies()[0]]);
  ASSERT_NE(model, nullptr);
  ASSERT_TRUE(model->AttachLora({.rank = 2, .alpha = 4}, 1).ok());
  for (const auto& [name, adapter] : model->trained_parameters()) torch::Tensor(adapter).requires_grad_(true);
  model->SetGradientCheckpointing(true);
  const torch::Tensor loss = LossOf(*model);
  model->SetAdaptersActive(false);
  EXPECT_THROW(loss.backward(), c10::Error);
}

}  // namespace
}  // namespace rlhf::model
