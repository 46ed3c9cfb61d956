// A deterministic job, twice, in two services of real processes: once undisturbed, once with a rollout worker, a reward
// server and a learner killed on the way. Equal bytes: of every step's weights, of the finished model, of every sample.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/faults/wrap_script.h"
#include "tests/integration/local_service.h"

namespace rlhf {
namespace {

constexpr int kSteps = 120;  // it does not end before the third kill, also where a step takes 30 ms

struct Outcome {
  std::string version, model, numerics;
  std::vector<std::string> samples;  // all that is in them but who made them, in order
};

class DeterministicTest : public testing::Test {
 protected:
  static void Prepare(const std::string& dir) {
    std::string prompts, text;
    for (int i = 0; i < 30; ++i) {
      prompts += absl::StrCat("{\"prompt\":\"the cat number ", i, i % 3 == 0 ? " and the dog" : "", "\"}\n");
      text += "the cat sat on the mat and the dog sat on the log\n";
    }
    ASSERT_TRUE(WriteFileDurably(dir + "/prompts.jsonl", prompts).ok());
    ASSERT_TRUE(WriteFileDurably(dir + "/text.txt", text).ok());
    nlohmann::json config = Golden("model.json")["models"]["llama_grouped_untied"]["config"];
    config["vocab_size"] = 280;
    ASSERT_TRUE(WriteFileDurably(dir + "/policy.json", config.dump()).ok());
    config["architectures"] = {"LlamaForSequenceClassification"};
    config["num_labels"] = 1;
    for (const char* key : {"id2label", "label2id"}) config.erase(key);
    ASSERT_TRUE(WriteFileDurably(dir + "/reward.json", config.dump()).ok());
    const std::string tool = BinDir() + "/rlhf-model ", init = tool + "init --tokenizer " + dir + "/tok --config ";
    const CommandResult made =
        RunCommand(tool + "train-tokenizer --vocab-size 280 --out " + dir + "/tok " + dir + "/text.txt && " + init +
                   dir + "/policy.json --out " + dir + "/model --seed 1 && " + init + dir + "/reward.json --out " +
                   dir + "/reward --seed 2");
    ASSERT_EQ(made.code, 0) << made.output;
    ASSERT_TRUE(WriteFileDurably(
                    dir + "/ppo.yaml",
                    absl::StrCat("name: small\nseed: 3\ndeterministic: true\nlearners: {ranks: 2}\nppo:\n"
                                 "  policy: file:model\n  prompts: file:prompts.jsonl\n  scorer:\n    components:\n"
                                 "      - {name: liked, reward_model: {model: file:reward}}\n  steps: ",
                                 kSteps,
                                 "\n  prompts_per_step: 6\n  samples_per_prompt: 3\n  sampling: {max_new_tokens: 12, "
                                 "temperature: 0.9}\n  epochs: 2\n  checkpoint_every: 2\n"
                                 "  policy_optimizer: {learning_rate: 1e-3}\n"))
                    .ok());
  }

  static void WaitForStep(const LocalService& service, int step) {
    LocalService::Until(
        absl::Seconds(120),
        [&] {
          const nlohmann::json job = service.Job("small");
          return job.is_object() && std::atoi(job.value("step", "0").c_str()) >= step;
        },
        absl::StrCat("step ", step));
  }

  static Outcome Run(bool with_kills) {
    Outcome out;
    const LocalService service;
    Prepare(service.scratch().path());
    if (testing::Test::HasFailure()) return out;
    const CommandResult submitted = service.Ctl("submit " + service.scratch().File("ppo.yaml"));
    EXPECT_EQ(submitted.code, 0) << submitted.output;
    if (with_kills) {
      const std::pair<int, const char*> kills[] = {
          {1, "rlhf-rollout-worker"}, {3, "rlhf-learner"}, {6, "rlhf-reward-server"}};
      for (const auto& [step, binary] : kills) {
        WaitForStep(service, step);
        const std::vector<pid_t> pids = service.Pids(binary);
        EXPECT_FALSE(pids.empty()) << binary;
        if (!pids.empty()) {
          EXPECT_EQ(kill(pids[0], SIGKILL), 0);
        }
      }
    }
    const CommandResult watched = service.Ctl("watch small");
    EXPECT_EQ(watched.code, 0) << watched.output;
    const nlohmann::json job = service.Job("small");
    EXPECT_EQ(job.value("state", ""), "SUCCEEDED") << job.dump(1);
    out.version = job["version"].value("digest", "");
    out.model = job["result"]["artifacts"].value("model", "");
    out.numerics = job.value("numerics", "");
    // Exactly zero, which JSON leaves out.
    const nlohmann::json metrics = job["result"]["metrics"];
    for (const char* name : {"mismatch_kl", "first_minibatch_ratio_error"}) {
      EXPECT_TRUE(metrics.contains(name)) << metrics.dump();
      EXPECT_EQ(metrics.value(name, nlohmann::json::object()).value("value", 0.0), 0) << name;
    }
    const CommandResult samples = service.Ctl("--output json samples small --limit 5000");
    EXPECT_EQ(samples.code, 0) << samples.output;
    for (const absl::string_view line : absl::StrSplit(samples.output, '\n', absl::SkipEmpty())) {
      nlohmann::json sample = nlohmann::json::parse(line, nullptr, false)["sample"];
      // Who made it, and on which try, may differ; its tokens, log-probabilities, versions and scores may not.
      for (const char* key : {"worker_id", "workerId", "attempt"}) sample.erase(key);
      for (const char* key : {"job_id", "jobId"}) sample["id"].erase(key);
      out.samples.push_back(sample.dump());
    }
    return out;
  }
};

TEST_F(DeterministicTest, TwoWholeRunsEndInEqualBytesKillsOrNot) {
  const Outcome quiet = Run(false);
  ASSERT_FALSE(HasFailure());
  const Outcome disturbed = Run(true);
  ASSERT_FALSE(HasFailure());
  EXPECT_THAT(quiet.model, testing::HasSubstr("sha256:"));
  EXPECT_EQ(quiet.version, disturbed.version);
  EXPECT_EQ(quiet.model, disturbed.model);
  EXPECT_EQ(quiet.samples.size(), static_cast<size_t>(kSteps * 6 * 3));
  EXPECT_EQ(quiet.samples, disturbed.samples);
  EXPECT_THAT(quiet.numerics, testing::HasSubstr("kernels="));
  EXPECT_EQ(quiet.numerics, disturbed.numerics);
}

// The third learner computes with other threads. A group with it is formed at the beginning, perhaps, and again while
// one of the two that are alike is away.
TEST_F(DeterministicTest, AJobIsLeftToLearnersOfOneNumerics) {
  LocalServiceOptions options;
  options.up = {"--slots", "32", "--learners", "3", "--threads", "1", "--restart-seconds", "2"};
  const LocalService service(options, [](const std::string& dir) {
    return WrapInScript(dir, "learner-0", "exec $(echo \"$@\" | sed 's/--threads 1/--threads 2/')");
  });
  Prepare(service.scratch().path());
  ASSERT_FALSE(HasFailure());
  const auto spec = ReadFile(service.scratch().File("ppo.yaml"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  const std::string longer = absl::StrReplaceAll(
      *spec, {{absl::StrCat("steps: ", kSteps), "steps: 120"}, {"samples_per_prompt: 3", "samples_per_prompt: 1"}});
  ASSERT_TRUE(WriteFileDurably(service.scratch().File("ppo.yaml"), longer).ok());
  const CommandResult submitted = service.Ctl("submit " + service.scratch().File("ppo.yaml"));
  ASSERT_EQ(submitted.code, 0) << submitted.output;
  WaitForStep(service, 3);
  // Whose absence makes the third one the only other.
  const pid_t alike = service.Pid("learner-1");
  ASSERT_GT(alike, 0);
  ASSERT_EQ(kill(alike, SIGKILL), 0);
  const CommandResult watched = service.Ctl("watch small");
  EXPECT_EQ(watched.code, 0) << watched.output;
  const nlohmann::json job = service.Job("small");
  EXPECT_EQ(job.value("state", ""), "SUCCEEDED") << job.dump(1);
  EXPECT_THAT(job.value("numerics", ""), testing::HasSubstr("threads=1 ranks=2"));
  EXPECT_THAT(service.Log("coordinator"), testing::HasSubstr("this learner has \"kernels="));
}

}  // namespace
}  // namespace rlhf
