// Going back to an earlier checkpoint: a job that goes on from another's, in real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

class StartFrom : public testing::Test {
 protected:
  void SetUp() override {
    MakeSmallModel(service_.scratch().path());
    std::string pairs;
    for (int i = 0; i < 60; ++i)
      absl::StrAppend(&pairs, "{\"prompt\":\"the cat number ", i,
                      "\",\"chosen\":\" sat\",\"rejected\":\" the dog ran\"}\n");
    Write("pairs.jsonl", pairs);
  }
  static LocalServiceOptions Options() {
    LocalServiceOptions options;
    options.up = {"--slots", "32", "--evidence"};
    return options;
  }
  std::string Write(const std::string& name, const std::string& text) const {
    EXPECT_TRUE(WriteFileDurably(service_.scratch().File(name), text).ok());
    return service_.scratch().File(name);
  }
  CommandResult Submit(const std::string& name, const std::string& yaml) const {
    return service_.Ctl("submit " + Write(name + ".yaml", "name: " + name + "\n" + yaml));
  }
  void RunToEnd(const std::string& name, const std::string& yaml) const {
    const CommandResult submitted = Submit(name, yaml);
    ASSERT_EQ(submitted.code, 0) << submitted.output;
    Follow(name);
  }
  void Follow(const std::string& name) const {
    const CommandResult watched = service_.Ctl("watch " + name);
    ASSERT_EQ(watched.code, 0) << watched.output;
    ASSERT_EQ(service_.StateOf(name), "SUCCEEDED") << service_.Job(name).dump(1);
  }
  std::string ModelOf(const std::string& name) const {
    return service_.Job(name)["result"]["artifacts"].value("model", "none of " + name);
  }
  nlohmann::json LedgerOf(const std::string& name) const {
    const CommandResult ledger = service_.Ctl(
        absl::StrCat("--output json ledger ", name, " --check --evidence ", service_.Dir(), "/evidence"), "admin.json");
    EXPECT_EQ(ledger.code, 0) << ledger.output;
    return nlohmann::json::parse(ledger.output, nullptr, false);
  }
  static std::string From(const std::string& job, int step) {
    return absl::StrCat("start_from: {job: ", job, ", step: ", step, "}\n");
  }

  const LocalService service_{Options()};
};

// A critic, adaptive KL, ptx and a schedule that warms up and decays: all that a checkpoint holds.
std::string Ppo(int steps, int checkpoint_every, const std::string& settings = "", int ranks = 2) {
  return absl::StrCat("seed: 3\ndeterministic: true\nlearners: {ranks: ", ranks,
                      "}\nppo:\n  policy: file:model\n  prompts: file:prompts.jsonl\n  scorer:\n    components:\n"
                      "      - {name: letter_t, regex: {pattern: t}}\n  steps: ",
                      steps,
                      "\n  prompts_per_step: 6\n  samples_per_prompt: 2\n  sampling: {max_new_tokens: 6}\n  epochs: 2\n"
                      "  checkpoint_every: ",
                      checkpoint_every,
                      "\n  kl: {adaptive: true, target: 0.5, horizon: 100}\n"
                      "  ptx: {data: file:sft.jsonl, coefficient: 0.1, batch_size: 3}\n"
                      "  policy_optimizer: {learning_rate: 1e-3, warmup_steps: 30, schedule: COSINE}\n",
                      settings);
}

TEST_F(StartFrom, AJobThatGoesOnAsTheOtherOneDidEndsInItsBytesKilledOrNot) {
  constexpr int kSteps = 130, kStart = 8;
  RunToEnd("first", Ppo(kSteps, kStart));
  ASSERT_FALSE(HasFailure());
  const CommandResult list = service_.Ctl("checkpoints list");
  EXPECT_THAT(list.output, testing::ContainsRegex("first-[0-9a-f]{8} +8 *\n")) << list.output;
  // In the middle of the warm-up. It has no checkpoint of its own: killed, it goes back to the other one's.
  const CommandResult submitted = Submit("second", From("first", kStart) + Ppo(kSteps, 1000));
  ASSERT_EQ(submitted.code, 0) << submitted.output;
  LocalService::Until(
      absl::Seconds(120), [&] { return service_.StepOf("second") >= kStart + 2; }, "it has trained");
  for (const pid_t learner : service_.Pids("rlhf-learner")) kill(learner, SIGKILL);
  Follow("second");
  ASSERT_FALSE(HasFailure());
  const nlohmann::json first = service_.Job("first"), second = service_.Job("second");
  EXPECT_EQ(second["version"]["digest"], first["version"]["digest"]);
  EXPECT_EQ(ModelOf("second"), ModelOf("first"));
  EXPECT_EQ(second["result"]["metrics"]["kl_coefficient"], first["result"]["metrics"]["kl_coefficient"]);
  EXPECT_THAT(service_.Log("coordinator"), HasSubstr(absl::StrCat("steps ", kStart + 1, " to ")));
  const nlohmann::json ledger = LedgerOf("second");
  EXPECT_EQ(ledger["counts"].value("trained", ""), absl::StrCat((kSteps - kStart) * 12)) << ledger.dump(1);
  EXPECT_EQ(ledger["compared"].value("steps", 0), kSteps - kStart) << ledger.dump(1);
  const CommandResult replay = service_.Ctl("replay second --out " + service_.scratch().File("replay"));
  EXPECT_EQ(replay.code, 0) << replay.output;
  EXPECT_THAT(replay.output, HasSubstr(absl::StrCat(kSteps - kStart, " steps on 2 ranks")));
}

// Somebody has seen too late what went wrong, and goes on with another bound and on other learners.
TEST_F(StartFrom, WithOtherSettingsAndOnAnotherLayout) {
  RunToEnd("first", Ppo(12, 4));
  ASSERT_FALSE(HasFailure());
  const std::string other = absl::StrReplaceAll(
      Ppo(12, 2, "", 1), {{"deterministic: true\n", ""},
                          {"{ranks: 1}", "{ranks: 2, shard_optimizer_state: true, shard_parameters: true}"},
                          {"kl: {adaptive: true, target: 0.5, horizon: 100}", "kl: {coefficient: 0.5}"},
                          {"  steps: 12", "  gradient_checkpointing: true\n  max_policy_lag: 1\n  steps: 16"}});
  const CommandResult refused = Submit("refused", From("first", 5) + other);
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_THAT(refused.output, HasSubstr("there are those of 8, 4"));
  RunToEnd("second", From("first", 8) + other);
  ASSERT_FALSE(HasFailure());
  EXPECT_EQ(service_.Job("second")["result"]["metrics"]["kl_coefficient"].value("value", 0.0), 0.5);
  EXPECT_EQ(LedgerOf("second")["counts"].value("trained", ""), absl::StrCat(8 * 12));
  const CommandResult replay = service_.Ctl("replay second --out " + service_.scratch().File("replay"));
  EXPECT_EQ(replay.code, 0) << replay.output;
  // And back, on one rank that holds everything, from the shares' newest; that the first job is gone is nothing to it.
  EXPECT_EQ(service_.Ctl("delete first").code, 0);
  RunToEnd("third", "start_from: {job: second}\n" +
                        absl::StrReplaceAll(Ppo(20, 4, "", 1),
                                            {{"coefficient: 0.1", "coefficient: 0.2"},
                                             {"{adaptive: true, target: 0.5, horizon: 100}", "{coefficient: 0.1}"}}));
  ASSERT_FALSE(HasFailure());
  EXPECT_EQ(service_.Job("third")["start"].value("step", ""), "14");
  const nlohmann::json ledger = LedgerOf("third");
  EXPECT_EQ(ledger["counts"].value("trained", ""), absl::StrCat(6 * 12)) << ledger.dump(1);
}

TEST_F(StartFrom, SupervisedJobsGoOnToo) {
  const std::string sft =
      "seed: 5\ndeterministic: true\nlearners: {ranks: 2}\nsft: {model: file:model, data: file:sft.jsonl, steps: 40, "
      "batch_size: 6, checkpoint_every: 10, lora: {rank: 2}, optimizer: {learning_rate: 1e-3, warmup_steps: 20, "
      "schedule: LINEAR}}\n";
  const std::string reward =
      "seed: 5\ndeterministic: true\nlearners: {ranks: 2}\nreward_model: {model: file:model, data: file:pairs.jsonl, "
      "epochs: 3, batch_size: 6, checkpoint_every: 10, optimizer: {learning_rate: 1e-3}}\n";
  for (const auto& [kind, yaml] : {std::pair("sft", sft), std::pair("reward", reward)}) {
    RunToEnd(kind, yaml);
    ASSERT_FALSE(HasFailure());
    RunToEnd(absl::StrCat(kind, "-on"), From(kind, 10) + yaml);
    ASSERT_FALSE(HasFailure());
    EXPECT_EQ(ModelOf(absl::StrCat(kind, "-on")), ModelOf(kind));
    LedgerOf(absl::StrCat(kind, "-on"));
  }
  // Nothing is left of one epoch behind its end: the weights of the start are not handed out as a new model.
  const CommandResult submitted =
      Submit("short", From("reward", 10) + absl::StrReplaceAll(reward, {{"epochs: 3", "epochs: 1"}}));
  ASSERT_EQ(submitted.code, 0) << submitted.output;
  EXPECT_NE(service_.Ctl("watch short").code, 0);
  EXPECT_EQ(service_.Job("short").value("reason_code", ""), "NOTHING_TO_TRAIN") << service_.Job("short").dump(1);
}

}  // namespace
}  // namespace rlhf
