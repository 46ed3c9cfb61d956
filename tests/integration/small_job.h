// A PPO job so small that its steps take a fraction of a second on one core.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "tests/integration/local_service.h"
#include "tests/testing/golden.h"
#include "tests/testing/run_command.h"

namespace rlhf {

// Steps of a job that is still there when a test has seen its second one and kills something, also where a step takes
// 30 ms.
inline constexpr int kOutlastsAKill = 120;

struct SmallJob {
  std::string name = "small";
  int steps = 10, lag = 0, ranks = 2, min_ranks = 0, checkpoint_every = 5, max_new_tokens = 8;
  int prompts_per_step = 8, samples_per_prompt = 2;
  int priority = 0;
  bool shard_optimizer_state = false;
  int samples() const { return prompts_per_step * samples_per_prompt; }
};

// Files that small jobs name, in a folder: a model, 40 prompts, and SFT data of their right answers.
inline void MakeSmallModel(const std::string& dir) {
  std::string prompts, text, sft;
  for (int i = 0; i < 40; ++i) {
    const std::string prompt = absl::StrCat("{\"prompt\":\"the cat number ", i, "\"");
    absl::StrAppend(&prompts, prompt, ",\"category\":\"cats\",\"reference\":\"sat\"}\n");
    absl::StrAppend(&sft, prompt, ",\"response\":\" sat\"}\n");
    text += "the cat sat on the mat and the dog sat on the log\n";
  }
  ASSERT_TRUE(WriteFileDurably(dir + "/prompts.jsonl", prompts).ok());
  ASSERT_TRUE(WriteFileDurably(dir + "/sft.jsonl", sft).ok());
  ASSERT_TRUE(WriteFileDurably(dir + "/text.txt", text).ok());
  nlohmann::json config = Golden("model.json")["models"]["llama"]["config"];
  config["vocab_size"] = 280;
  ASSERT_TRUE(WriteFileDurably(dir + "/config.json", config.dump()).ok());
  const std::string tool = BinDir() + "/rlhf-model ";
  const CommandResult made =
      RunCommand(tool + "train-tokenizer --vocab-size 280 --out " + dir + "/tok " + dir + "/text.txt && " + tool +
                 "init --config " + dir + "/config.json --tokenizer " + dir + "/tok --out " + dir + "/model --seed 1");
  ASSERT_EQ(made.code, 0) << made.output;
}

// Writes the job's file beside the model and returns its path.
inline std::string WriteSmallJob(const std::string& dir, const SmallJob& job) {
  const std::string path = absl::StrCat(dir, "/", job.name, ".yaml");
  std::string learners = absl::StrCat("{ranks: ", job.ranks);
  if (job.min_ranks > 0) absl::StrAppend(&learners, ", min_ranks: ", job.min_ranks);
  if (job.shard_optimizer_state) absl::StrAppend(&learners, ", shard_optimizer_state: true");
  EXPECT_TRUE(
      WriteFileDurably(
          path, absl::StrCat("name: ", job.name, "\nseed: 3\npriority: ", job.priority, "\nlearners: ", learners,
                             "}\nppo:\n  policy: file:model\n  prompts: file:prompts.jsonl\n  scorer:\n"
                             "    components:\n      - {name: letter_t, regex: {pattern: t}}\n  steps: ",
                             job.steps, "\n  prompts_per_step: ", job.prompts_per_step,
                             "\n  samples_per_prompt: ", job.samples_per_prompt,
                             "\n  sampling: {max_new_tokens: ", job.max_new_tokens, "}\n  max_policy_lag: ", job.lag,
                             "\n  epochs: 1\n  checkpoint_every: ", job.checkpoint_every,
                             "\n  policy_optimizer: {learning_rate: 1e-3}\n"))
          .ok());
  return path;
}

inline void SubmitSmallJob(const LocalService& service, const SmallJob& job) {
  const CommandResult submitted = service.Ctl("submit " + WriteSmallJob(service.scratch().path(), job));
  ASSERT_EQ(submitted.code, 0) << submitted.output;
}

inline constexpr int kSamplesAnAnswer = 64;  // a worker's sequences at once
// How often rollout workers registered after their first time: they were started again, or lost their session.
inline int RolloutReturns(const LocalService& service) {
  int returns = 0;
  for (const auto& log : std::filesystem::directory_iterator(service.Dir() + "/logs")) {
    const std::string name = log.path().stem().string();
    if (!absl::StartsWith(name, "rollout-")) continue;
    const std::string text = service.Log(name), what = absl::StrCat(" registered as ", name);
    int times = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++times;
    returns += std::max(0, times - 1);
  }
  return returns;
}

// The job succeeded, every sample was trained once, the audit log holds, and the records agree with what learners and
// rollout workers saw: every rank of every committed step, and every sample but those of one answer whenever a worker
// died, or was cut off, before it could note it.
inline void ExpectWhole(const LocalService& service, const SmallJob& small, bool evidence = true) {
  const nlohmann::json job = service.Job(small.name);
  ASSERT_EQ(job.value("state", ""), "SUCCEEDED") << job.dump(1);
  EXPECT_EQ(job.value("step", ""), absl::StrCat(small.steps));
  // An admin's context names the audit log's public key.
  const CommandResult ledger =
      service.Ctl(absl::StrCat("--output json ledger ", small.name, " --check",
                               evidence ? absl::StrCat(" --evidence ", service.Dir(), "/evidence") : ""),
                  "admin.json");
  EXPECT_EQ(ledger.code, 0) << ledger.output;
  const nlohmann::json checked = nlohmann::json::parse(ledger.output, nullptr, false);
  ASSERT_TRUE(checked.is_object()) << ledger.output;
  const int samples = small.samples() * small.steps;
  EXPECT_EQ(checked["counts"].value("trained", ""), absl::StrCat(samples)) << ledger.output;
  if (!evidence) return;
  const nlohmann::json compared = checked["compared"];
  EXPECT_EQ(compared.value("steps", 0), small.steps) << compared.dump();
  EXPECT_GE(compared.value("rank_lines", 0), small.steps) << compared.dump();
  EXPECT_GE(compared.value("samples", 0), samples) << compared.dump();
  const int unseen = compared.value("samples", 0) - compared.value("samples_seen", 0);
  EXPECT_LE(unseen, RolloutReturns(service) * kSamplesAnAnswer) << compared.dump();
  EXPECT_GT(compared.value("samples_seen", 0), 0) << compared.dump();
}

// The commits that a learner saw acknowledged, in order: lines of the evidence that it keeps.
inline std::vector<nlohmann::json> CommitsSeenBy(const LocalService& service, const std::string& learner) {
  std::vector<nlohmann::json> commits;
  std::ifstream log(service.Dir() + "/evidence/steps-" + learner + ".jsonl");
  for (std::string line; std::getline(log, line);) {
    nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_object() && json.value("event", "") == "committed") commits.push_back(std::move(json));
  }
  return commits;
}

// An undisturbed learner that is fed the job's batches ends with the same bytes.
inline void ExpectExactReplay(const LocalService& service, const SmallJob& small) {
  const CommandResult replay =
      service.Ctl(absl::StrCat("replay ", small.name, " --out ", service.scratch().File("replay-" + small.name)));
  EXPECT_EQ(replay.code, 0) << replay.output;
  EXPECT_NE(replay.output.find(absl::StrCat(small.steps, " steps on ", small.ranks, " ranks")), std::string::npos)
      << replay.output;
}

}  // namespace rlhf
