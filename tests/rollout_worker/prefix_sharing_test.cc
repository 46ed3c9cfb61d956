// Prompts that begin alike share the computing of what they have in common; their samples are those of the plain path.
#include <cmath>
#include <map>
#include <memory>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "rollout_worker/engine.h"
#include "rollout_worker/prefix_cache.h"
#include "tests/rollout_worker/engine_runs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

constexpr int kContext = 256;
constexpr char kSystem[] = "the cat sat on the mat and the dog sat on the log, yes or no, red green or blue: ";

class PrefixSharingTest : public testing::Test {
 protected:
  void SetUp() override { MakeTinyModel(dir_.File("model"), 4, kContext); }

  std::unique_ptr<Engine> Make(int slots, int shared_prefixes, bool deterministic = true, int64_t kv_cache_bytes = 0,
                               int prefill_tokens = 512) {
    auto model = model::LoadModel(dir_.File("model"));
    auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
    EXPECT_TRUE(model.ok() && tokenizer.ok());
    EXPECT_TRUE((*model)->SetDeterministic(deterministic).ok());
    EngineOptions options;
    options.slots = slots;
    options.shared_prefixes = shared_prefixes;
    options.kv_cache_bytes = kv_cache_bytes;
    options.prefill_tokens = prefill_tokens;
    return std::make_unique<Engine>(*std::move(model), *std::move(tokenizer), v1::PolicyVersion(), options);
  }
  static v1::PromptLease Prompt(int ordinal, const std::string& text, int samples = 1, int max_new = 12) {
    return LeaseOf(text, ordinal, samples, max_new);
  }
  // Three waves of prompts, each wave at once: two system prompts, and one that has nothing in common with them.
  static void RunWaves(Engine& engine, Samples* out) {
    for (int wave = 0; wave < 3; ++wave) {
      for (int i = 0; i < 6; ++i) {
        const int ordinal = wave * 6 + i;
        const std::string system = i < 3 ? kSystem : i < 5 ? std::string("no! ") + kSystem : "";
        ASSERT_TRUE(engine.Add(Prompt(ordinal, absl::StrCat(system, "cat number ", ordinal), 1 + i % 3)).ok());
      }
      RunAll(engine, out);
    }
  }
  static void ExpectEqual(const Samples& a, const Samples& b, double tolerance) {
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [key, sample] : a) {
      const v1::Sample& other = b.at(key);
      ASSERT_THAT(other.response_tokens(), testing::ElementsAreArray(sample.response_tokens()));
      for (int t = 0; t < sample.response_tokens_size(); ++t)
        EXPECT_LE(std::abs(other.behaviour_log_probs(t) - sample.behaviour_log_probs(t)), tolerance);
    }
  }
  ScratchDir dir_;
};

TEST_F(PrefixSharingTest, SamplesAreThoseOfThePlainPath) {
  for (const bool deterministic : {true, false}) {
    const auto plain = Make(16, 0, deterministic), shared = Make(16, 8, deterministic);
    Samples a, b;
    RunWaves(*plain, &a);
    RunWaves(*shared, &b);
    ExpectEqual(a, b, deterministic ? 0 : 1e-5);
    EXPECT_EQ(plain->counters().prefix_hits, 0);
    // All but the first prompt with each of the two system prompts, in the first wave and later.
    EXPECT_EQ(shared->counters().prefix_hits, 13);
    EXPECT_EQ(shared->counters().prompt_tokens + shared->counters().prefix_tokens, plain->counters().prompt_tokens);
    EXPECT_LT(shared->counters().prompt_tokens, plain->counters().prompt_tokens / 2);
  }
}

TEST_F(PrefixSharingTest, SharingFitsIntoLittleMemory) {
  // 512 bytes a token; room for about three of these sequences, so that kept prompts keep giving way.
  const auto plain = Make(16, 0), tight = Make(16, 8, true, int64_t{360} * 512);
  Samples a, b;
  RunWaves(*plain, &a);
  RunWaves(*tight, &b);
  ExpectEqual(a, b, 0);
  EXPECT_GT(tight->counters().prefix_hits, 0);
}

// What waits for memory, for the end of another's prompt, or for its own prompt's next part: nothing waits for ever.
TEST_F(PrefixSharingTest, EverythingEndsInLittleMemoryAndSmallParts) {
  std::mt19937 random(5);
  const auto below = [&random](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (int round = 0; round < 6; ++round) {
    const auto plain = Make(16, 0), tight = Make(8, 4, true, int64_t{160 + 60 * round} * 512, 8);
    Samples a, b;
    for (int ordinal = 0; ordinal < 24; ++ordinal) {
      std::string text = below(2) == 0 ? kSystem : "";
      for (int words = below(20); words > 0; --words) absl::StrAppend(&text, below(2) == 0 ? "red " : "yes ");
      const v1::PromptLease prompt = Prompt(ordinal, absl::StrCat(text, ordinal), 1 + below(4), 1 + below(24));
      ASSERT_TRUE(plain->Add(prompt).ok());
      ASSERT_TRUE(tight->Add(prompt).ok());
      EXPECT_LE(tight->capacity(), 8);
    }
    RunAll(*plain, &a);
    RunAll(*tight, &b);
    ExpectEqual(a, b, 0);
    EXPECT_EQ(tight->kv_cache_usage(), 0) << "what has ended gave its memory back";
  }
}

TEST_F(PrefixSharingTest, NewWeightsShareNothingWithFormerOnes) {
  // The same wave before and after an update in place, against an engine that had the new weights from the start.
  const auto updated = Make(4, 8), fresh = Make(4, 0);
  Samples before, after, expected;
  ASSERT_TRUE(updated->Add(Prompt(0, absl::StrCat(kSystem, "one"))).ok());
  RunAll(*updated, &before);
  {
    const torch::NoGradGuard no_grad;
    for (Engine* engine : {updated.get(), fresh.get()}) {
      for (const auto& [name, parameter] : engine->model().named_parameters()) torch::Tensor(parameter).mul_(1.25);
    }
  }
  v1::PolicyVersion version;
  version.set_step(1);
  updated->SetVersion(version);
  fresh->SetVersion(version);
  for (int ordinal = 0; ordinal < 2; ++ordinal) {
    for (Engine* engine : {updated.get(), fresh.get()})
      ASSERT_TRUE(engine->Add(Prompt(ordinal, absl::StrCat(kSystem, ordinal == 0 ? "one" : "two"))).ok());
  }
  RunAll(*updated, &after);
  RunAll(*fresh, &expected);
  ExpectEqual(expected, after, 0);
  EXPECT_EQ(updated->counters().prefix_hits, 1);  // the second of the new ones, from the first
  // The same weights under another name are shared.
  version.set_lineage(2);
  updated->Rename(version);
  ASSERT_TRUE(updated->Add(Prompt(2, absl::StrCat(kSystem, "three"))).ok());
  RunAll(*updated, &after);
  EXPECT_EQ(updated->counters().prefix_hits, 2);
}

TEST_F(PrefixSharingTest, WhatRunsByFormerWeightsLendsNothing) {
  const auto updated = Make(4, 8), fresh = Make(4, 0);
  Samples after, expected;
  ASSERT_TRUE(updated->Add(Prompt(0, absl::StrCat(kSystem, "one"), 1, 100)).ok());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(updated->Step().ok());
  ASSERT_FALSE(updated->idle());
  {
    const torch::NoGradGuard no_grad;
    for (Engine* engine : {updated.get(), fresh.get()}) {
      for (const auto& [name, parameter] : engine->model().named_parameters()) torch::Tensor(parameter).mul_(1.25);
    }
  }
  v1::PolicyVersion version;
  version.set_step(1);
  // Beside it, and after it has ended: its prompt is not kept.
  for (int ordinal = 1; ordinal < 3; ++ordinal) {
    for (Engine* engine : {updated.get(), fresh.get()}) {
      if (ordinal == 1) engine->SetVersion(version);
      ASSERT_TRUE(engine->Add(Prompt(ordinal, absl::StrCat(kSystem, ordinal == 1 ? "two" : "one"))).ok());
    }
    RunAll(*updated, &after);
    RunAll(*fresh, &expected);
  }
  after.erase({0, 0});
  ExpectEqual(expected, after, 0);
}

TEST(PrefixCacheTest, FindsTheLongestAndForgetsTheLeastRecentlyUsed) {
  PrefixCache cache(10, 2);
  EXPECT_EQ(cache.Find({1, 2}).slot, -1);
  EXPECT_FALSE(cache.EvictOldest().has_value());
  EXPECT_EQ(cache.Insert({1, 2, 3, 4}), 10);
  EXPECT_EQ(cache.Insert({1, 2, 9}), 11);
  EXPECT_TRUE(cache.full());
  EXPECT_EQ(cache.Find({1, 2, 3}).slot, 10);
  EXPECT_EQ(cache.Find({1, 2, 3}).tokens, 3);
  EXPECT_EQ(cache.Find({7}).slot, -1);
  cache.Use(10);
  EXPECT_EQ(cache.EvictOldest(), 11);
  EXPECT_FALSE(cache.full());
  EXPECT_EQ(cache.Find({1, 2, 9}).tokens, 2);
  EXPECT_EQ(cache.EvictOldest(), 10);
}

}  // namespace
}  // namespace rlhf::rollout
