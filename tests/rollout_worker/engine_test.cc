#include "rollout_worker/engine.h"

#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "model/log_probs.h"
#include "model/weights_io.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

class EngineTest : public testing::Test {
 protected:
  void SetUp() override { MakeTinyModel(dir_.File("model"), 4); }

  std::unique_ptr<Engine> Make(int slots) {
    EngineOptions options;
    options.slots = slots;
    return Make(options);
  }
  std::unique_ptr<Engine> Make(const EngineOptions& options) {
    auto model = model::LoadModel(dir_.File("model"));
    auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
    EXPECT_TRUE(model.ok() && tokenizer.ok());
    v1::PolicyVersion version;
    version.set_step(7);
    return std::make_unique<Engine>(*std::move(model), *std::move(tokenizer), version, options);
  }
  static v1::PromptLease Lease(int ordinal, int samples, double temperature = 1.0, int max_new = 10) {
    v1::PromptLease lease;
    lease.set_job_id("job");
    lease.set_step(2);
    lease.set_ordinal(ordinal);
    lease.set_seed(11);
    lease.mutable_prompt()->set_text(absl::StrCat("the cat number ", ordinal));
    lease.mutable_sampling()->set_temperature(temperature);
    lease.mutable_sampling()->set_top_p(1);
    lease.mutable_sampling()->set_max_new_tokens(max_new);
    for (int i = 0; i < samples; ++i) {
      lease.add_samples()->set_index(i);
      lease.mutable_samples(i)->set_attempt(1);
    }
    return lease;
  }
  static std::map<std::pair<int, int>, v1::Sample> RunAll(Engine& engine) {
    std::map<std::pair<int, int>, v1::Sample> out;
    for (int guard = 0; !engine.idle() && guard < 10'000; ++guard) {
      auto finished = engine.Step();
      EXPECT_TRUE(finished.ok()) << finished.status();
      if (!finished.ok()) break;
      for (v1::Sample& sample : *finished) out[{sample.id().ordinal(), sample.id().index()}] = std::move(sample);
    }
    EXPECT_TRUE(engine.idle());
    return out;
  }
  ScratchDir dir_;
};

TEST_F(EngineTest, ASampleDoesNotDependOnWhatRunsBesideIt) {
  const auto crowded = Make(16), narrow = Make(2);  // two slots: most samples wait for one
  for (int ordinal = 0; ordinal < 5; ++ordinal) {
    ASSERT_TRUE(crowded->Add(Lease(ordinal, 3)).ok());
    ASSERT_TRUE(narrow->Add(Lease(ordinal, 3)).ok());
  }
  const auto a = RunAll(*crowded), b = RunAll(*narrow);
  ASSERT_EQ(a.size(), 15u);
  ASSERT_EQ(b.size(), 15u);
  for (const auto& [key, sample] : a) {
    const v1::Sample& other = b.at(key);
    EXPECT_THAT(other.response_tokens(), testing::ElementsAreArray(sample.response_tokens()));
    for (int t = 0; t < sample.response_tokens_size(); ++t)
      EXPECT_NEAR(sample.behaviour_log_probs(t), other.behaviour_log_probs(t), 1e-4);
  }
  EXPECT_NE(a.at({0, 0}).response_text(), a.at({0, 1}).response_text());
}

TEST_F(EngineTest, BehaviourLogProbabilitiesAreTheTrainingOnes) {
  const auto engine = Make(4);
  ASSERT_TRUE(engine->Add(Lease(0, 2, 0.8)).ok());
  const torch::NoGradGuard no_grad;
  for (const auto& [key, sample] : RunAll(*engine)) {
    std::vector<int32_t> tokens(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
    tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
    const model::PackedBatch batch = model::PackedBatch::FromSequences({tokens});
    const model::ResponseIndex index = model::IndexResponses(batch, {sample.prompt_tokens_size()});
    const torch::Tensor expected =
        model::ChunkedLogProbs(engine->model(), engine->model().Hidden(batch).index_select(0, index.rows),
                               index.targets, 0.8)
            .log_probs;
    ASSERT_EQ(sample.behaviour_log_probs_size(), expected.numel());
    for (int t = 0; t < expected.numel(); ++t)
      EXPECT_NEAR(sample.behaviour_log_probs(t), expected[t].item<double>(), 1e-4);
    EXPECT_EQ(sample.version_low().step(), 7);
    EXPECT_EQ(sample.attempt(), 1);
  }
}

// The sampler's numbers and the learner's, over many samples: to rounding, and in a deterministic job to the bit,
// whatever runs beside a sample.
TEST_F(EngineTest, OneNumericsForSamplingAndTraining) {
  const torch::NoGradGuard no_grad;
  for (const bool deterministic : {false, true}) {
    const auto crowded = Make(16), narrow = Make(3);
    std::map<std::pair<int, int>, v1::Sample> all[2];
    for (Engine* engine : {crowded.get(), narrow.get()}) {
      ASSERT_TRUE(engine->model().SetDeterministic(deterministic).ok());
      for (int ordinal = 0; ordinal < 12; ++ordinal)
        ASSERT_TRUE(engine->Add(Lease(ordinal, 1 + ordinal % 4, 0.7, 4 + 3 * ordinal)).ok());
      all[engine == narrow.get()] = RunAll(*engine);
    }
    std::vector<std::vector<int32_t>> sequences;
    std::vector<int64_t> begins;
    std::vector<float> behaviour;
    for (const auto& [key, sample] : all[0]) {
      std::vector<int32_t>& tokens =
          sequences.emplace_back(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
      tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
      begins.push_back(sample.prompt_tokens_size());
      behaviour.insert(behaviour.end(), sample.behaviour_log_probs().begin(), sample.behaviour_log_probs().end());
      if (!deterministic) continue;
      const v1::Sample& other = all[1].at(key);
      EXPECT_THAT(other.response_tokens(), testing::ElementsAreArray(sample.response_tokens()));
      EXPECT_THAT(other.behaviour_log_probs(), testing::ElementsAreArray(sample.behaviour_log_probs()));
    }
    const model::PackedBatch batch = model::PackedBatch::FromSequences(sequences);
    const model::ResponseIndex index = model::IndexResponses(batch, begins);
    const torch::Tensor old =
        model::ChunkedLogProbs(crowded->model(), crowded->model().Hidden(batch).index_select(0, index.rows),
                               index.targets, 0.7, false, 50)
            .log_probs;
    const torch::Tensor log_r = (old - torch::tensor(behaviour)).to(torch::kFloat64);
    ASSERT_GT(log_r.numel(), 200);
    EXPECT_LE((log_r.exp() - 1 - log_r).mean().item<double>(), 1e-6);
    if (deterministic) {
      EXPECT_EQ(log_r.abs().max().item<double>(), 0);
    }
  }
}

// 512 bytes a token: 2 · 2 layers · 4 heads · 8 dimensions · 4 bytes.
constexpr int64_t kBytesPerToken = 512;

TEST_F(EngineTest, SequencesWaitForMemoryAndAreTheSameSamples) {
  EngineOptions tight;
  tight.slots = 16;
  tight.kv_cache_bytes = 100 * kBytesPerToken;
  const auto plain = Make(16), bounded = Make(tight);
  std::map<std::pair<int, int>, v1::Sample> all[2];
  int most = 0;
  for (Engine* engine : {plain.get(), bounded.get()}) {
    ASSERT_TRUE(engine->model().SetDeterministic(true).ok());
    // Of many lengths, so that what one frees is not what the next one needs.
    for (int ordinal = 0; ordinal < 12; ++ordinal)
      ASSERT_TRUE(engine->Add(Lease(ordinal, 1 + ordinal % 4, 1.0, 3 + 4 * (ordinal % 6))).ok());
    auto& samples = all[engine == bounded.get()];
    for (int guard = 0; !engine->idle() && guard < 10'000; ++guard) {
      auto finished = engine->Step();
      ASSERT_TRUE(finished.ok()) << finished.status();
      for (v1::Sample& sample : *finished) samples[{sample.id().ordinal(), sample.id().index()}] = std::move(sample);
      if (engine != bounded.get()) continue;
      most = std::max(most, engine->running());
      EXPECT_LE(engine->kv_cache_usage(), 1.0);
    }
    EXPECT_TRUE(engine->idle());
  }
  EXPECT_GE(most, 2);
  EXPECT_LT(most, 16);  // memory, not slots, was the limit
  ASSERT_EQ(all[0].size(), 30u);
  ASSERT_EQ(all[1].size(), 30u);
  for (const auto& [key, sample] : all[0]) {
    EXPECT_THAT(all[1].at(key).response_tokens(), testing::ElementsAreArray(sample.response_tokens()));
    EXPECT_THAT(all[1].at(key).behaviour_log_probs(), testing::ElementsAreArray(sample.behaviour_log_probs()));
  }
}

TEST_F(EngineTest, ASequenceBeyondTheCachesMemoryIsATypedError) {
  EngineOptions tight;
  tight.slots = 4;
  tight.kv_cache_bytes = 20 * kBytesPerToken + 100;
  const auto engine = Make(tight);
  const absl::Status status = engine->Add(Lease(0, 1, 1.0, 40));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("has room for 20 (512 bytes each)"));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("raise --kv-cache-bytes"));
  EXPECT_TRUE(engine->idle());
  ASSERT_TRUE(engine->Add(Lease(0, 2, 1.0, 4)).ok());
  EXPECT_EQ(RunAll(*engine).size(), 2u);
}

TEST_F(EngineTest, RevokedLeasesGiveTheirMemoryBack) {
  EngineOptions tight;
  tight.slots = 4;
  tight.kv_cache_bytes = 40 * kBytesPerToken;
  const auto engine = Make(tight);
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(engine->Add(Lease(round, 2)).ok());
    ASSERT_TRUE(engine->Step().ok());
    for (int index = 0; index < 2; ++index) {
      v1::SampleId id;
      id.set_job_id("job");
      id.set_step(2);
      id.set_ordinal(round);
      id.set_index(index);
      engine->Drop(id, 1);
    }
    EXPECT_TRUE(engine->idle());
  }
  ASSERT_TRUE(engine->Add(Lease(9, 1, 1.0, 10)).ok());
  EXPECT_EQ(RunAll(*engine).size(), 1u);
}

TEST_F(EngineTest, SamplesEndForAReason) {
  const auto engine = Make(8);
  ASSERT_TRUE(engine->Add(Lease(0, 4, 1.0, 3)).ok());
  for (const auto& [key, sample] : RunAll(*engine)) {
    EXPECT_LE(sample.response_tokens_size(), 3);
    if (sample.finish_reason() == v1::MAX_TOKENS) {
      EXPECT_EQ(sample.response_tokens_size(), 3);
    } else
      EXPECT_EQ(sample.finish_reason(), v1::END_OF_TEXT);
  }
  // A stop text that the greedy answer must contain.
  ASSERT_TRUE(engine->Add(Lease(1, 1, 0, 12)).ok());
  const std::string whole = RunAll(*engine).begin()->second.response_text();
  ASSERT_GT(whole.size(), 2u);
  v1::PromptLease stopped = Lease(1, 1, 0, 12);
  stopped.mutable_sampling()->add_stop(whole.substr(1, 1));
  ASSERT_TRUE(engine->Add(stopped).ok());
  const v1::Sample cut = RunAll(*engine).begin()->second;
  EXPECT_EQ(cut.finish_reason(), v1::STOP_TEXT);
  EXPECT_LE(cut.response_text().size(), whole.size());
}

TEST_F(EngineTest, APromptThatDoesNotFitIsATypedError) {
  const auto engine = Make(2);
  v1::PromptLease lease = Lease(0, 1);
  lease.mutable_prompt()->set_text(std::string(400, 'x'));
  const absl::Status status = engine->Add(lease);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("shorten the prompt"));
  EXPECT_TRUE(engine->idle());
}

TEST_F(EngineTest, APromptThatOnlyThisWorkerIsTooSmallForIsToldFromOneThatNobodyCanHold) {
  EngineOptions small;
  small.slots = 2;
  small.max_tokens = 20;
  const auto engine = Make(small);
  v1::PromptLease lease = Lease(0, 1);
  lease.mutable_prompt()->set_text(std::string(40, 'x'));
  const absl::Status status = engine->Add(lease);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("raise --max-tokens"));
  EXPECT_TRUE(Make(2)->Add(lease).ok()) << "another worker has the room";
  lease.mutable_prompt()->set_text(std::string(400, 'x'));
  EXPECT_EQ(engine->Add(lease).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(engine->idle());
}

// An answer's length is the job's and the model's matter, not that of the worker which happened to give it.
TEST_F(EngineTest, AWorkersOwnBoundShortensNoAnswer) {
  const auto whole = Make(2);
  ASSERT_TRUE(whole->Add(Lease(0, 1)).ok());
  const int prompt = RunAll(*whole).begin()->second.prompt_tokens_size();
  EngineOptions options;
  options.slots = 2;
  options.max_tokens = prompt + 9;  // one less than the ten that are asked for
  const auto small = Make(options);
  const absl::Status status = small->Add(Lease(0, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("up to 10 are to follow (max_new_tokens); a slot of this worker holds"));
  EXPECT_TRUE(small->Add(Lease(0, 1, 1.0, 9)).ok());
  EXPECT_LE(RunAll(*small).begin()->second.response_tokens_size(), 9);
  // The context does shorten it: there is no other worker to ask.
  const auto context = static_cast<int>(whole->model().config().max_position_embeddings);
  ASSERT_TRUE(whole->Add(Lease(0, 8, 1.0, context)).ok());
  for (const auto& [key, sample] : RunAll(*whole)) EXPECT_LE(sample.response_tokens_size(), context - prompt);
  options.max_tokens = context;
  EXPECT_TRUE(Make(options)->Add(Lease(0, 1, 1.0, context)).ok());
}

TEST_F(EngineTest, WhatACacheIsTooSmallForSaysHowLargeAOneWouldHaveDone) {
  EngineOptions options;
  options.slots = 2;
  options.kv_cache_bytes = 1;
  v1::PromptLease lease = Lease(0, 1);
  int64_t needs = 0;
  const auto engine = Make(options);
  EXPECT_EQ(engine->cache_bytes(), 0);
  EXPECT_EQ(engine->Add(lease, &needs).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_GT(needs, 0);
  options.kv_cache_bytes = needs - 1;
  EXPECT_LT(Make(options)->cache_bytes(), needs);
  EXPECT_EQ(Make(options)->Add(lease).code(), absl::StatusCode::kResourceExhausted);
  options.kv_cache_bytes = needs;
  const auto enough = Make(options);
  EXPECT_EQ(enough->cache_bytes(), needs);
  EXPECT_TRUE(enough->Add(lease, &needs).ok());
  EXPECT_EQ(needs, 0);
  // No memory would do where a slot is too short.
  options.max_tokens = 2;
  needs = 1;
  EXPECT_EQ(Make(options)->Add(lease, &needs).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(needs, 0);
}

TEST_F(EngineTest, AConversationIsRenderedByTheModelsOwnTemplate) {
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("model/chat_template.jinja"),
                       "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}assistant:")
          .ok());
  const auto engine = Make(2);
  v1::PromptLease lease = Lease(0, 1);
  auto* message = lease.mutable_prompt()->add_messages();
  message->set_role("user");
  message->set_content("the cat</s>");
  ASSERT_TRUE(engine->Add(lease).ok());
  const v1::Sample sample = RunAll(*engine).begin()->second;
  const auto tokenizer = artifact::Tokenizer::Load(dir_.File("model"));
  ASSERT_TRUE(tokenizer.ok());
  const std::vector<int32_t> tokens(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
  EXPECT_EQ(*(*tokenizer)->Decode(tokens, false), "user: the cat</s></s>assistant:");
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), *(*tokenizer)->eos_id()),
            1);  // the template's; the message's is text
}

TEST_F(EngineTest, EveryEndOfTextOfTheModelsListEndsASample) {
  const auto generate = [this] {
    const auto engine = Make(4);
    for (int ordinal = 0; ordinal < 3; ++ordinal) EXPECT_TRUE(engine->Add(Lease(ordinal, 2, 1, 12)).ok());
    return RunAll(*engine);
  };
  const auto whole = generate();
  // Two ids that come in the midst of what is generated now end it.
  const int32_t first = whole.at({0, 0}).response_tokens(5), second = whole.at({1, 1}).response_tokens(3);
  ASSERT_TRUE(first != second && first != 2 && second != 2);
  ASSERT_TRUE(WriteFileDurably(dir_.File("model/generation_config.json"),
                               absl::StrCat("{\"eos_token_id\": [2, ", first, ", ", second, "]}"))
                  .ok());
  const auto cut = generate();
  ASSERT_EQ(cut.size(), whole.size());
  std::set<int32_t> ended_by;
  for (const auto& [key, sample] : cut) {
    std::vector<int32_t> expected;
    for (const int32_t id : whole.at(key).response_tokens()) {
      expected.push_back(id);
      if (id == 2 || id == first || id == second) break;
    }
    EXPECT_THAT(sample.response_tokens(), testing::ElementsAreArray(expected));
    EXPECT_EQ(sample.behaviour_log_probs_size(), sample.response_tokens_size());
    const int32_t last = expected.back();
    const bool ended = last == 2 || last == first || last == second;
    EXPECT_EQ(sample.finish_reason(), ended ? v1::END_OF_TEXT : v1::MAX_TOKENS);
    if (ended) ended_by.insert(last);
  }
  EXPECT_TRUE(ended_by.count(first) == 1 && ended_by.count(second) == 1);
}

TEST_F(EngineTest, RevokedLeasesLeaveTheirSlots) {
  const auto engine = Make(2);
  ASSERT_TRUE(engine->Add(Lease(0, 4)).ok());
  ASSERT_TRUE(engine->Step().ok());
  EXPECT_EQ(engine->running(), 2);
  EXPECT_EQ(engine->waiting(), 2);
  for (int index = 0; index < 4; ++index) {
    v1::SampleId id;
    id.set_job_id("job");
    id.set_step(2);
    id.set_index(index);
    engine->Drop(id, 1);
  }
  EXPECT_TRUE(engine->idle());
}

}  // namespace
}  // namespace rlhf::rollout
