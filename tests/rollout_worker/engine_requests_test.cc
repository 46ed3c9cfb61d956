// A sample is what its lease asks for: whose noise, which tokens it may draw, by which weights; and of which attempt.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "artifact/sample_id.h"
#include "rollout_worker/engine.h"
#include "tests/rollout_worker/engine_runs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

using testing::ElementsAreArray;
using testing::Not;
using testing::SizeIs;

class EngineRequestsTest : public testing::Test {
 protected:
  void SetUp() override { MakeTinyModel(dir_.File("model"), 4, 256); }

  std::unique_ptr<Engine> Make(int prefill_tokens = 512) {
    auto model = model::LoadModel(dir_.File("model"));
    auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
    EXPECT_TRUE(model.ok() && tokenizer.ok());
    EXPECT_TRUE((*model)->SetDeterministic(true).ok());
    EngineOptions options;
    options.slots = 8;
    options.prefill_tokens = prefill_tokens;
    options.shared_prefixes = 0;
    v1::PolicyVersion version;
    version.set_step(7);
    return std::make_unique<Engine>(*std::move(model), *std::move(tokenizer), version, options);
  }
  // The one sample of a lease.
  v1::Sample Generate(const v1::PromptLease& lease) {
    const auto engine = Make();
    EXPECT_TRUE(engine->Add(lease).ok());
    Samples samples;
    RunAll(*engine, &samples);
    EXPECT_THAT(samples, SizeIs(1));
    return samples.empty() ? v1::Sample() : samples.begin()->second;
  }
  static v1::PromptLease Prompt(int samples = 1, int max_new = 16) {
    return LeaseOf("the cat sat on the mat", 0, samples, max_new);
  }
  ScratchDir dir_;
};

// A job's answers to one prompt in two steps, of two of its prompts that are alike, of two rounds of a stage, or of two
// jobs are draws of their own.
TEST_F(EngineRequestsTest, EveryPartOfASamplesNameChangesItsNoise) {
  const v1::Sample plain = Generate(Prompt());
  EXPECT_THAT(Generate(Prompt()).response_tokens(), ElementsAreArray(plain.response_tokens()));
  std::map<std::string, v1::PromptLease> others;
  others["seed"] = others["seed's high half"] = others["stream"] = others["step"] = others["ordinal"] =
      others["index"] = Prompt();
  others["seed"].set_seed(4);
  others["seed's high half"].set_seed(3 + (uint64_t{1} << 40));
  others["stream"].set_stream(1);
  others["step"].set_step(2);
  others["ordinal"].set_ordinal(1);
  others["index"].mutable_samples(0)->set_index(1);
  for (const auto& [part, lease] : others)
    EXPECT_THAT(Generate(lease).response_tokens(), Not(ElementsAreArray(plain.response_tokens()))) << part;
  v1::PromptLease again = Prompt();
  again.mutable_samples(0)->set_attempt(2);
  EXPECT_THAT(Generate(again).response_tokens(), ElementsAreArray(plain.response_tokens()))
      << "a second attempt draws the same";
}

TEST_F(EngineRequestsTest, TokensAreDrawnFromWhatTopKAndTopPLeave) {
  v1::PromptLease greedy = Prompt();
  greedy.mutable_sampling()->set_temperature(0);
  const v1::Sample best = Generate(greedy), plain = Generate(Prompt());
  ASSERT_THAT(plain.response_tokens(), Not(ElementsAreArray(best.response_tokens())));
  EXPECT_THAT(plain.log_kept_mass(), testing::IsEmpty()) << "nothing was cut off";
  v1::PromptLease top_k = Prompt(), top_p = Prompt();
  top_k.mutable_sampling()->set_top_k(1);
  top_p.mutable_sampling()->set_top_p(1e-6);
  for (const v1::PromptLease& lease : {top_k, top_p}) {
    const v1::Sample one = Generate(lease);
    EXPECT_THAT(one.response_tokens(), ElementsAreArray(best.response_tokens()));
    ASSERT_EQ(one.log_kept_mass_size(), one.response_tokens_size());
    for (int t = 0; t < one.log_kept_mass_size(); ++t) {
      EXPECT_LT(one.log_kept_mass(t), 0);
      EXPECT_NEAR(one.log_kept_mass(t), one.behaviour_log_probs(t), 1e-5) << "the one token that is left";
    }
  }
}

TEST_F(EngineRequestsTest, ASampleNamesTheFirstAndTheLastVersionThatMadeIt) {
  const auto engine = Make();
  ASSERT_TRUE(engine->Add(Prompt(4, 40)).ok());
  ASSERT_TRUE(engine->Step().ok());
  ASSERT_GT(engine->running(), 0) << "nothing runs across the update; the test needs another seed";
  v1::PolicyVersion newer;
  newer.set_step(8);
  engine->SetVersion(newer);
  Samples samples;
  RunAll(*engine, &samples);
  ASSERT_FALSE(samples.empty());
  for (const auto& [key, sample] : samples) {
    EXPECT_EQ(sample.version_low().step(), 7);
    EXPECT_EQ(sample.version_high().step(), 8);
  }
}

// What was revoked of an attempt says nothing about a later one of the same sample.
TEST_F(EngineRequestsTest, ARevokedAttemptEndsNoLaterOne) {
  const auto engine = Make();
  v1::PromptLease lease = Prompt(2);
  for (v1::SampleLease& sample : *lease.mutable_samples()) sample.set_attempt(2);
  ASSERT_TRUE(engine->Add(lease).ok());
  engine->Drop(artifact::SampleIdOf(lease, 0), 1);
  EXPECT_EQ(engine->waiting(), 2);
  ASSERT_TRUE(engine->Step().ok());
  ASSERT_EQ(engine->running(), 2);
  engine->Drop(artifact::SampleIdOf(lease, 0), 1);
  EXPECT_EQ(engine->running(), 2);
  engine->Drop(artifact::SampleIdOf(lease, 0), 2);
  EXPECT_EQ(engine->running(), 1);
  v1::PromptLease other = lease;
  other.set_job_id("another");
  engine->Drop(artifact::SampleIdOf(other, 1), 2);
  EXPECT_EQ(engine->running(), 1) << "another job's";
}

// The slots of samples that were revoked while their prompt was computed are not filled up with others that nobody
// asked for.
TEST_F(EngineRequestsTest, APromptThatLosesSamplesTakesNoMoreSlots) {
  const auto engine = Make(/*prefill_tokens=*/1);  // 8 tokens a step with nothing running
  std::string text;
  for (int i = 0; i < 40; ++i) text += " red";
  const v1::PromptLease lease = LeaseOf(text, 0, 3, 8);
  ASSERT_TRUE(engine->Add(lease).ok());
  ASSERT_TRUE(engine->Step().ok());
  ASSERT_EQ(engine->running(), 0);
  const double reserved = engine->kv_cache_usage();
  ASSERT_GT(reserved, 0);
  engine->Drop(artifact::SampleIdOf(lease, 1), 1);
  ASSERT_TRUE(engine->Step().ok());
  ASSERT_EQ(engine->running(), 0) << "the prompt is shorter than the test needs";
  EXPECT_LE(engine->kv_cache_usage(), reserved);
  Samples samples;
  RunAll(*engine, &samples);
  EXPECT_THAT(samples, SizeIs(2));
  EXPECT_EQ(engine->kv_cache_usage(), 0);
}

}  // namespace
}  // namespace rlhf::rollout
