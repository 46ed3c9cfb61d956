// What a rollout worker counts and measures.
#include "rollout_worker/worker_metrics.h"

#include <string>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/rollout_worker/engine_runs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

class WorkerMetricsTest : public testing::Test {
 protected:
  // A series' value as it is scraped; empty where there is none.
  std::string Value(const std::string& series) const {
    const std::string text = registry_.Text(), line = absl::StrCat("\n", series, " ");
    const size_t at = text.find(line);
    if (at == std::string::npos) return "";
    const size_t from = at + line.size();
    return text.substr(from, text.find('\n', from) - from);
  }
  static v1::Sample SampleOf(int64_t step, int64_t policy_step, v1::FinishReason reason) {
    v1::Sample sample;
    sample.mutable_id()->set_job_id("job");
    sample.mutable_id()->set_step(step);
    sample.set_attempt(1);
    sample.mutable_version_low()->set_step(policy_step);
    sample.mutable_version_high()->set_step(policy_step + 1);
    sample.set_finish_reason(reason);
    return sample;
  }
  MetricsRegistry registry_{"rollout_worker"};
  WorkerMetrics metrics_{&registry_};
};

TEST_F(WorkerMetricsTest, TheLagIsOfTheOldestVersionThatMadeASample) {
  const absl::Time now = absl::UnixEpoch();
  metrics_.Finished({SampleOf(5, 4, v1::END_OF_TEXT)}, now);
  EXPECT_EQ(Value("rlhf_rollout_policy_lag"), "0") << "step 5 is trained from version 4";
  metrics_.Finished({SampleOf(9, 6, v1::END_OF_TEXT)}, now);
  EXPECT_EQ(Value("rlhf_rollout_policy_lag"), "2");
  metrics_.Finished({SampleOf(0, 3, v1::END_OF_TEXT)}, now);
  EXPECT_EQ(Value("rlhf_rollout_policy_lag"), "2") << "without training there are no steps";
}

TEST_F(WorkerMetricsTest, SamplesAreCountedByHowTheyEnded) {
  for (const char* reason : {"end_of_text", "stop_text", "max_tokens"})
    EXPECT_EQ(Value(absl::StrCat("rlhf_rollout_finished_total{reason=\"", reason, "\"}")), "0") << reason;
  metrics_.Finished({SampleOf(1, 0, v1::END_OF_TEXT), SampleOf(1, 0, v1::STOP_TEXT), SampleOf(1, 0, v1::STOP_TEXT),
                     SampleOf(1, 0, v1::MAX_TOKENS), SampleOf(1, 0, v1::MAX_TOKENS), SampleOf(1, 0, v1::MAX_TOKENS)},
                    absl::UnixEpoch());
  EXPECT_EQ(Value("rlhf_rollout_finished_total{reason=\"end_of_text\"}"), "1");
  EXPECT_EQ(Value("rlhf_rollout_finished_total{reason=\"stop_text\"}"), "2");
  EXPECT_EQ(Value("rlhf_rollout_finished_total{reason=\"max_tokens\"}"), "3");
}

TEST_F(WorkerMetricsTest, TheTimeToTheFirstTokenIsTakenOnceASample) {
  const absl::Time taken_up = absl::UnixEpoch();
  v1::PromptLease lease = LeaseOf("the cat", 0, 2, 5);
  metrics_.Accepted(lease, taken_up);
  std::vector<v1::LeaseProgress> progress(2);
  for (int i = 0; i < 2; ++i) {
    progress[static_cast<size_t>(i)].mutable_id()->set_job_id(lease.job_id());
    progress[static_cast<size_t>(i)].mutable_id()->set_step(lease.step());
    progress[static_cast<size_t>(i)].mutable_id()->set_index(i);
    progress[static_cast<size_t>(i)].set_attempt(1);
  }
  const auto seen = [&] {
    return absl::StrCat(Value("rlhf_rollout_time_to_first_token_seconds_count"), " in ",
                        Value("rlhf_rollout_time_to_first_token_seconds_sum"));
  };
  progress[0].set_tokens_done(1);
  metrics_.Stepped(absl::Milliseconds(5), progress, taken_up + absl::Seconds(2));
  EXPECT_EQ(seen(), "1 in 2") << "the other one waits";
  progress[0].set_tokens_done(2);
  progress[1].set_tokens_done(1);
  metrics_.Stepped(absl::Milliseconds(5), progress, taken_up + absl::Seconds(5));
  EXPECT_EQ(seen(), "2 in 7");
  // One that ended with its first token was in no step's progress.
  lease.set_step(2);
  metrics_.Accepted(lease, taken_up + absl::Seconds(5));
  metrics_.Finished({SampleOf(2, 1, v1::END_OF_TEXT)}, taken_up + absl::Seconds(6));
  EXPECT_EQ(seen(), "3 in 8");
}

TEST_F(WorkerMetricsTest, CountersGoOnWithAnotherModelsEngine) {
  ScratchDir dir;
  MakeTinyModel(dir.File("model"), 4);
  PolicyLoader::Counters loaded;
  const auto run = [&](int samples) {
    auto model = model::LoadModel(dir.File("model"));
    auto tokenizer = artifact::Tokenizer::Load(dir.File("model"));
    ASSERT_TRUE(model.ok() && tokenizer.ok());
    Engine engine(*std::move(model), *std::move(tokenizer), v1::PolicyVersion(), {.slots = 4});
    ++loaded.loads;
    ASSERT_TRUE(engine.Add(LeaseOf("the cat", 0, samples, 1)).ok());
    Samples out;
    RunAll(engine, &out);
    metrics_.Mirror(engine, loaded);
  };
  run(3);
  EXPECT_EQ(Value("rlhf_rollout_generation_tokens_total"), "3");
  run(2);  // fewer than the one before had made
  EXPECT_EQ(Value("rlhf_rollout_generation_tokens_total"), "5");
  loaded.bytes = 100;
  loaded.bytes_from_workers = 30;
  run(1);
  EXPECT_EQ(Value("rlhf_rollout_generation_tokens_total"), "6");
  EXPECT_EQ(Value("rlhf_weight_sync_bytes_total"), "100");
  EXPECT_EQ(Value("rlhf_weight_sync_relayed_bytes_total"), "30");
}

}  // namespace
}  // namespace rlhf::rollout
