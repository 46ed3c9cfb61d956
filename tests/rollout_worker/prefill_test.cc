// A long prompt is computed in parts, while what runs goes on; its samples are those of the plain path.
#include <cmath>
#include <map>
#include <memory>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "rollout_worker/engine.h"
#include "tests/rollout_worker/engine_runs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

class PrefillTest : public testing::Test {
 protected:
  void SetUp() override { MakeTinyModel(dir_.File("model"), 4, 256); }

  std::unique_ptr<Engine> Make(int prefill_tokens, bool deterministic = true) {
    auto model = model::LoadModel(dir_.File("model"));
    auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
    EXPECT_TRUE(model.ok() && tokenizer.ok());
    EXPECT_TRUE((*model)->SetDeterministic(deterministic).ok());
    EngineOptions options;
    options.slots = 8;
    options.prefill_tokens = prefill_tokens;
    options.shared_prefixes = 0;
    return std::make_unique<Engine>(*std::move(model), *std::move(tokenizer), v1::PolicyVersion(), options);
  }
  // `words` words that no other ordinal begins with.
  static v1::PromptLease Prompt(int ordinal, int words, int samples = 1, int max_new = 12) {
    std::string text = absl::StrCat(ordinal, ":");
    for (int i = 0; i < words; ++i) absl::StrAppend(&text, " no", (ordinal + i) % 7);
    return LeaseOf(text, ordinal, samples, max_new);
  }
  ScratchDir dir_;
};

TEST_F(PrefillTest, SamplesAreThoseOfThePlainPath) {
  for (const bool deterministic : {true, false}) {
    Samples all[3];
    int64_t prompt_tokens[3];
    const int parts[3] = {100'000, 1, 7};
    for (int i = 0; i < 3; ++i) {
      const auto engine = Make(parts[i], deterministic);
      for (int ordinal = 0; ordinal < 9; ++ordinal)
        ASSERT_TRUE(engine->Add(Prompt(ordinal, 1 + ordinal * 4, 1 + ordinal % 3)).ok());
      RunAll(*engine, &all[i]);
      prompt_tokens[i] = engine->counters().prompt_tokens;
    }
    ASSERT_EQ(all[0].size(), 18u);
    for (int i = 1; i < 3; ++i) {
      ASSERT_EQ(all[i].size(), 18u);
      EXPECT_GE(prompt_tokens[i], 9);
      for (const auto& [key, sample] : all[0]) {
        const v1::Sample& other = all[i].at(key);
        ASSERT_THAT(other.response_tokens(), testing::ElementsAreArray(sample.response_tokens()));
        for (int t = 0; t < sample.response_tokens_size(); ++t) {
          EXPECT_LE(std::abs(other.behaviour_log_probs(t) - sample.behaviour_log_probs(t)), deterministic ? 0 : 1e-5);
        }
      }
    }
  }
}

TEST_F(PrefillTest, WhatRunsGetsATokenAStepMeanwhile) {
  const auto engine = Make(5);
  // Long enough to outlive the prompt below; which samples end early is the model's choice.
  ASSERT_TRUE(engine->Add(Prompt(0, 1, 6, 200)).ok());
  ASSERT_TRUE(engine->Step().ok());
  ASSERT_TRUE(engine->Add(Prompt(1, 40)).ok());
  const auto of = [&](int ordinal) {
    int64_t tokens = 0;
    for (const v1::LeaseProgress& progress : engine->Progress()) {
      if (progress.id().ordinal() == ordinal) tokens += progress.tokens_done();
    }
    return tokens;
  };
  int parts = 0;
  while (of(1) == 0 && parts < 1000) {
    const int64_t prompt = engine->counters().prompt_tokens, generated = engine->counters().generated_tokens;
    const int running = engine->running();
    ASSERT_GT(running, 0) << "nothing ran beside the prompt; the test needs another seed";
    ASSERT_TRUE(engine->Step().ok());
    ++parts;
    EXPECT_LE(engine->counters().prompt_tokens - prompt, 5);
    EXPECT_GE(engine->counters().generated_tokens - generated, running);  // and the prompt's first token in the end
  }
  EXPECT_GE(parts, 40 * 2 / 5);  // a word is two tokens at least
}

TEST_F(PrefillTest, NewWeightsBeginAHalfComputedPromptAnew) {
  const auto updated = Make(1), fresh = Make(100'000);  // 8 tokens a step with nothing running
  ASSERT_TRUE(updated->Add(Prompt(0, 30)).ok());
  ASSERT_TRUE(updated->Step().ok());
  ASSERT_EQ(updated->running(), 0);
  ASSERT_EQ(updated->counters().prompt_tokens, 8);
  v1::PolicyVersion version;
  version.set_step(1);
  {
    const torch::NoGradGuard no_grad;
    for (Engine* engine : {updated.get(), fresh.get()}) {
      for (const auto& [name, parameter] : engine->model().named_parameters()) torch::Tensor(parameter).mul_(1.25);
      engine->SetVersion(version);
    }
  }
  ASSERT_TRUE(fresh->Add(Prompt(0, 30)).ok());
  Samples after, expected;
  RunAll(*updated, &after);
  RunAll(*fresh, &expected);
  ASSERT_EQ(after.size(), 1u);
  const v1::Sample &sample = after.begin()->second, &plain = expected.begin()->second;
  EXPECT_THAT(sample.response_tokens(), testing::ElementsAreArray(plain.response_tokens()));
  EXPECT_THAT(sample.behaviour_log_probs(), testing::ElementsAreArray(plain.behaviour_log_probs()));
  EXPECT_EQ(sample.version_low().step(), 1);
}

TEST_F(PrefillTest, ARevokedHalfComputedPromptGivesItsSlotsBack) {
  const auto engine = Make(1);
  for (int round = 0; round < 10; ++round) {  // more than there are slots
    ASSERT_TRUE(engine->Add(Prompt(round, 30)).ok());
    ASSERT_TRUE(engine->Step().ok());
    v1::SampleId id;
    id.set_job_id("job");
    id.set_step(1);
    id.set_ordinal(round);
    engine->Drop(id, 1);
    ASSERT_TRUE(engine->idle());
  }
  Samples samples;
  ASSERT_TRUE(engine->Add(Prompt(11, 2, 8)).ok());
  RunAll(*engine, &samples);
  EXPECT_EQ(samples.size(), 8u);
}

}  // namespace
}  // namespace rlhf::rollout
