// Generation on the device.
#include "rollout_worker/engine.h"

#include <gtest/gtest.h>

#include "model/log_probs.h"
#include "tests/gpu/gpu_test.h"
#include "tests/rollout_worker/engine_runs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

class GpuEngineTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    MakeTinyModel(dir_.File("model"), 1);
  }
  Samples Generate(torch::Dtype dtype, bool cuda_graphs, const model::SamplingParams& sampling = {}) {
    auto policy = model::LoadModel(dir_.File("model"), {.dtype = dtype, .device = device_, .join_projections = true});
    auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
    EXPECT_TRUE(policy.ok() && tokenizer.ok());
    EngineOptions options;
    options.slots = 6;
    options.cuda_graphs = cuda_graphs;
    Engine engine(*std::move(policy), *std::move(tokenizer), v1::PolicyVersion(), options);
    for (int ordinal = 0; ordinal < 5; ++ordinal) {
      v1::PromptLease lease =
          LeaseOf(std::string("the cat sat on the mat and the dog ").substr(0, 8 + 5 * ordinal), ordinal,
                  /*samples=*/3, /*max_new=*/8 + 2 * ordinal);
      lease.mutable_sampling()->set_temperature(sampling.temperature);
      lease.mutable_sampling()->set_top_p(sampling.top_p);
      lease.mutable_sampling()->set_top_k(sampling.top_k);
      EXPECT_TRUE(engine.Add(lease).ok());
    }
    Samples out;
    RunAll(engine, &out);
    if (cuda_graphs) {
      EXPECT_NE(engine.decode_graphs(), nullptr);
      if (engine.decode_graphs() != nullptr) {
        EXPECT_EQ(engine.decode_graphs()->failure(), "");
        EXPECT_GT(engine.decode_graphs()->counters().replayed, 0);
      }
    } else {
      EXPECT_EQ(engine.decode_graphs(), nullptr);
    }
    EXPECT_EQ(out.size(), 15U);
    return out;
  }
  // Of the response's tokens, by one pass over the whole sequence.
  torch::Tensor TeacherForced(const v1::Sample& sample, const model::Transformer& policy) {
    const torch::NoGradGuard no_grad;
    std::vector<int32_t> tokens(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
    tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
    const auto batch = model::PackedBatch::FromSequences({tokens}, policy.device());
    const auto index = model::IndexResponses(batch, {sample.prompt_tokens_size()});
    return model::ChunkedLogProbs(policy, policy.Hidden(batch).index_select(0, index.rows), index.targets, 1.0)
        .log_probs.to(torch::kCPU);
  }
  void ExpectTeacherForced(const Samples& samples, torch::Dtype dtype, torch::Device device, double tolerance) {
    const auto policy = model::LoadModel(dir_.File("model"), {.dtype = dtype, .device = device});
    ASSERT_TRUE(policy.ok()) << policy.status();
    for (const auto& [key, sample] : samples) {
      const torch::Tensor expected = TeacherForced(sample, **policy);
      for (int t = 0; t < sample.response_tokens_size(); ++t) {
        ASSERT_NEAR(sample.behaviour_log_probs(t), expected[t].item<float>(), tolerance)
            << "prompt " << key.first << ", sample " << key.second << ", token " << t;
      }
    }
  }
  ScratchDir dir_;
};

TEST_F(GpuEngineTest, LogProbabilitiesAreATeacherForcedPasses) {
  const Samples samples = Generate(torch::kFloat32, true);
  ExpectTeacherForced(samples, torch::kFloat32, device_, 1e-4);
  ExpectTeacherForced(samples, torch::kFloat32, torch::kCPU, 1e-4);
  ExpectTeacherForced(Generate(torch::kFloat32, true, {.temperature = 1, .top_p = 0.8, .top_k = 50}), torch::kFloat32,
                      device_, 1e-4);
}

TEST_F(GpuEngineTest, Bfloat16LogProbabilitiesAreNear) {
  ExpectTeacherForced(Generate(torch::kBFloat16, true), torch::kBFloat16, device_, 0.1);
}

TEST_F(GpuEngineTest, RecordedStepsGenerateWhatPlainOnesDo) {
  const Samples recorded = Generate(torch::kFloat32, true), plain = Generate(torch::kFloat32, false);
  int other = 0;  // a batch of another size rounds otherwise, and the noise may fall on a border
  for (const auto& [key, sample] : plain) {
    const v1::Sample& found = recorded.at(key);
    other += !std::equal(sample.response_tokens().begin(), sample.response_tokens().end(),
                         found.response_tokens().begin(), found.response_tokens().end());
  }
  EXPECT_LE(other, 1) << "of " << plain.size();
}

}  // namespace
}  // namespace rlhf::rollout
