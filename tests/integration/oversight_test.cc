// People in control of real processes: a gate before anything is published as approved, a halt that stops every step, a
// monitor that ends a run.
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/signature.h"
#include "tests/integration/local_service.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;
using testing::Not;

class OversightTest : public testing::Test {
 protected:
  void SetUp() override { MakeSmallModel(service_.scratch().path()); }
  std::string File(const std::string& name) const { return service_.scratch().File(name); }
  CommandResult As(const std::string& role, const std::string& arguments) const {
    return RunCommand(BinDir() + "/rlhfctl --context " + service_.Dir() + "/" + role + ".json " + arguments);
  }
  std::string Write(const std::string& name, const std::string& yaml) const {
    EXPECT_TRUE(WriteFileDurably(File(name), yaml).ok());
    return File(name);
  }
  static std::string Ppo(int steps, const std::string& more) {
    return absl::StrCat(
        "ppo:\n  policy: file:model\n  prompts: file:prompts.jsonl\n  scorer:\n    components:\n      - {name: "
        "letter_t, "
        "regex: {pattern: t}}\n  steps: ",
        steps,
        "\n  prompts_per_step: 8\n  samples_per_prompt: 2\n  sampling: {max_new_tokens: 8}\n  epochs: 1\n  "
        "checkpoint_every: 5\n",
        more);
  }

  explicit OversightTest(LocalServiceOptions options = {}) : service_(std::move(options)) {}

  LocalService service_;
};

class LongHaltTest : public OversightTest {
 protected:
  LongHaltTest() : OversightTest(WithFourLearners()) {}
  static LocalServiceOptions WithFourLearners() {
    LocalServiceOptions options;
    options.up.insert(options.up.end(), {"--learners", "4", "--evidence"});
    return options;
  }
  std::string EpochOf(const std::string& name) const {
    const nlohmann::json job = service_.Job(name);
    const std::string epoch = job.is_object() ? job.value("group_epoch", job.value("groupEpoch", "")) : "";
    EXPECT_NE(epoch, "") << job.dump();
    return epoch;
  }
};

TEST_F(OversightTest, NothingIsPublishedAsApprovedWithoutItsGate) {
  const std::string path = Write("gated.yaml", R"(
name: gated
seed: 3
pipeline:
  stages:
    - name: sft
      sft: {model: "file:model", data: "file:sft.jsonl", steps: 3, batch_size: 8, optimizer: {learning_rate: 1e-3}}
    - name: check
      evaluate: {model: "stage:sft", suite: "file:prompts.jsonl", sampling: {temperature: 0, max_new_tokens: 4}}
      gate:
        conditions:
          - {metric: exact_answer, min: 0}
        required_approvals: 2
        approves: sft
        publish_as: assistant
)");
  ASSERT_EQ(service_.Ctl("submit " + path).code, 0);
  nlohmann::json gates;
  LocalService::Until(
      absl::Seconds(90),
      [&] {
        gates = nlohmann::json::parse(service_.Ctl("--output json gate list").output, nullptr, false);
        return gates.is_array() && gates.size() == 1;
      },
      "the gate waits");
  EXPECT_THAT(service_.Ctl("why gated").output, HasSubstr("gate"));
  EXPECT_NE(service_.Ctl("models pull approved/assistant --out " + File("early")).code, 0);
  const std::string gate = gates[0]["id"], report = gates[0]["report_sha256"];
  EXPECT_EQ(service_.Ctl("gate approve " + gate + " --report " + report).code, 7) << "a submitter is no overseer";
  EXPECT_NE(As("overseer", "gate approve " + gate + " --report 00").code, 0) << "another report";
  const CommandResult shown = As("overseer", "gate show " + gate);
  EXPECT_THAT(shown.output, HasSubstr("exact_answer"));
  const CommandResult approved = As("overseer", "gate approve " + gate + " --comment fine --report " + report);
  ASSERT_EQ(approved.code, 0) << approved.output;
  // One person is one approval, however often; the second has to be somebody else's.
  EXPECT_EQ(As("overseer", "gate approve " + gate + " --report " + report).code, 0);
  EXPECT_THAT(As("overseer", "gate show " + gate).output, HasSubstr("waiting"));
  EXPECT_NE(service_.Ctl("models pull approved/assistant --out " + File("half")).code, 0);
  const CommandResult token = As("admin", "token create --subject otto --role overseer > " + File("otto.token"));
  ASSERT_EQ(token.code, 0) << token.output;
  const CommandResult second =
      As("overseer", "--token-file " + File("otto.token") + " gate approve " + gate + " --report " + report);
  ASSERT_EQ(second.code, 0) << second.output;
  const CommandResult watched = service_.Ctl("watch gated");
  EXPECT_EQ(watched.code, 0) << watched.output;
  EXPECT_THAT(watched.output, HasSubstr("0 of 2 approvals; an overseer decides: `rlhfctl gate approve " + gate));

  ASSERT_EQ(service_.Ctl("models pull approved/assistant --out " + File("assistant")).code, 0);
  ASSERT_EQ(service_.Ctl("models pull approved/assistant.card --out " + File("card")).code, 0);
  const auto card = ReadFile(File("card/model_card.json")), signature = ReadFile(File("card/model_card.json.sig"));
  const auto key = ReadFile(service_.Dir() + "/pki/audit.key.pub");
  ASSERT_TRUE(card.ok() && signature.ok() && key.ok());
  EXPECT_TRUE(VerifySignature(*key, *card, signature->substr(0, signature->find('\n'))).ok());
  EXPECT_FALSE(VerifySignature(*key, *card + " ", signature->substr(0, signature->find('\n'))).ok());
  const nlohmann::json parsed = nlohmann::json::parse(*card);
  EXPECT_EQ(parsed["approval"]["approvals"][0]["by"], "overseer");
  EXPECT_EQ(parsed["approval"]["approvals"][1]["by"], "otto");
  EXPECT_EQ(parsed["signed_with"].get<std::string>().size(), 64 + sizeof("sha256:") - 1) << "which key";
  EXPECT_THAT(*ReadFile(File("card/model_card.md")), HasSubstr("Signed (`model_card.json.sig`)"));
  EXPECT_EQ(parsed["approval"]["report_sha256"], report);
  EXPECT_THAT(*ReadFile(File("card/model_card.md")), HasSubstr("overseer | approved"));

  const CommandResult lineage = service_.Ctl("audit show --model " + File("assistant"));
  EXPECT_EQ(lineage.code, 0) << lineage.output;
  EXPECT_THAT(lineage.output, HasSubstr(parsed["model"].get<std::string>()));
  EXPECT_THAT(lineage.output, HasSubstr("kind: sft"));
  EXPECT_THAT(lineage.output, HasSubstr("gate " + gate));
  EXPECT_THAT(lineage.output, HasSubstr("gate.approve"));
  const CommandResult verified = As("overseer", "audit verify --public-key " + service_.Dir() + "/pki/audit.key.pub");
  EXPECT_EQ(verified.code, 0) << verified.output;
  EXPECT_THAT(verified.output, HasSubstr("records hold"));
  ASSERT_EQ(As("overseer", "audit heads > " + File("heads")).code, 0);
  const CommandResult kept = As("overseer", "audit verify --heads " + File("heads"));
  EXPECT_EQ(kept.code, 0) << kept.output;
  EXPECT_THAT(kept.output, HasSubstr("kept ones too")) << "by the key that the context names";
  // Exported, changed in one place, and checked by whoever has the file.
  const CommandResult exported = As("overseer", "audit export > " + File("audit.jsonl"));
  ASSERT_EQ(exported.code, 0) << exported.output;
  ASSERT_EQ(RunCommand("sed -i '2s/\"decision\":\"[a-z]*\"/\"decision\":\"other\"/' " + File("audit.jsonl")).code, 0);
  const CommandResult tampered = As("overseer", "audit verify --file " + File("audit.jsonl"));
  EXPECT_EQ(tampered.code, 1);
  EXPECT_THAT(tampered.output, HasSubstr("tampered with at record 2"));
}

TEST_F(OversightTest, OnceAHaltIsAcknowledgedNoStepCommitsUntilAnOverseerResumes) {
  constexpr int kSteps = 120;  // of 40 ms: more than a halt takes to be given on a machine that is busy
  const std::string path = Write("long.yaml", absl::StrCat("name: long\nseed: 3\nlearners: {ranks: 2}\n",
                                                           Ppo(kSteps, "  policy_optimizer: {learning_rate: 1e-4}\n")));
  ASSERT_EQ(service_.Ctl("submit " + path).code, 0);
  LocalService::Until(
      absl::Seconds(120), [&] { return service_.StepOf("long") >= 3; }, "three steps are committed");
  ASSERT_EQ(As("overseer", "service halt --reason look").code, 0);
  const int64_t halted_at = service_.StepOf("long");
  ASSERT_LT(halted_at, kSteps);
  EXPECT_THAT(service_.Ctl("service state").output, HasSubstr("halted by overseer: look"));
  absl::SleepFor(absl::Seconds(3));  // that nothing happens cannot be waited for otherwise
  EXPECT_EQ(service_.StepOf("long"), halted_at);
  EXPECT_EQ(As("admin", "service resume").code, 7);
  ASSERT_EQ(As("overseer", "service resume").code, 0);
  const CommandResult watched = service_.Ctl("watch long");
  EXPECT_EQ(watched.code, 0) << watched.output;
  EXPECT_EQ(service_.StepOf("long"), kSteps);
  EXPECT_EQ(service_.Ctl("ledger long --check").code, 0);
}

TEST_F(OversightTest, AHaltAndAPauseStopTrainingWithoutALedgerToo) {
  const std::string path = Write("sft.yaml",
                                 "name: sft\nseed: 3\nlearners: {ranks: 2}\nsft: {model: \"file:model\", data: "
                                 "\"file:sft.jsonl\", steps: 4000, batch_size: 8, checkpoint_every: 100}\n");
  ASSERT_EQ(service_.Ctl("submit " + path).code, 0);
  const auto stands_still = [&] {
    // What the ranks had done by then is told when its checkpoint is.
    int64_t step = -1;
    LocalService::Until(
        absl::Seconds(60),
        [&] {
          absl::SleepFor(absl::Seconds(1));
          const int64_t before = std::exchange(step, service_.StepOf("sft"));
          return before == step;
        },
        "it stands");
    absl::SleepFor(absl::Seconds(3));  // that nothing happens cannot be waited for otherwise
    EXPECT_EQ(service_.StepOf("sft"), step);
    EXPECT_LT(step, 4000) << "the job ended before it was stopped";
    return step;
  };
  const auto goes_on_from = [&](int64_t step) {
    LocalService::Until(
        absl::Seconds(60), [&] { return service_.StepOf("sft") > step; }, absl::StrCat("it goes on from ", step));
  };
  goes_on_from(0);
  ASSERT_EQ(service_.Ctl("pause sft").code, 0);
  LocalService::Until(
      absl::Seconds(30),
      [&] {
        const nlohmann::json job = service_.Job("sft");
        return job.is_object() &&
               job.value("checkpoint_step", job.value("checkpointStep", "0")) == job.value("step", "");
      },
      "a checkpoint of its last step is there");
  const int64_t paused_at = stands_still();
  ASSERT_EQ(service_.Ctl("resume sft").code, 0);
  goes_on_from(paused_at);
  ASSERT_EQ(As("overseer", "service halt --reason look").code, 0);
  const int64_t halted_at = stands_still();
  ASSERT_EQ(As("overseer", "service resume").code, 0);
  goes_on_from(halted_at);
  EXPECT_EQ(service_.Ctl("cancel sft").code, 0);
}

// A collective takes at most 20 s: ranks that waited for rank 0's call in one would lose each other.
TEST_F(LongHaltTest, AHaltLongerThanACollectiveMayTakeBreaksNoGroupAndTrainsNothingTwice) {
  const std::string ppo = Write("ppo.yaml", absl::StrCat("name: ppo\nseed: 3\nlearners: {ranks: 2}\n",
                                                         Ppo(200, "  policy_optimizer: {learning_rate: 1e-4}\n")));
  const std::string sft = Write("sft.yaml",
                                "name: sft\nseed: 3\nlearners: {ranks: 2}\nsft: {model: \"file:model\", data: "
                                "\"file:sft.jsonl\", steps: 100000, batch_size: 8}\n");
  ASSERT_EQ(service_.Ctl("submit " + ppo).code, 0);
  ASSERT_EQ(service_.Ctl("submit " + sft).code, 0);
  LocalService::Until(
      absl::Seconds(120), [&] { return service_.StepOf("ppo") >= 3 && service_.StepOf("sft") >= 3; }, "both train");
  const std::map<std::string, std::string> epochs = {{"ppo", EpochOf("ppo")}, {"sft", EpochOf("sft")}};
  ASSERT_EQ(As("overseer", "service halt --reason look").code, 0);
  const int64_t ppo_at = service_.StepOf("ppo"), sft_at = service_.StepOf("sft");
  absl::SleepFor(absl::Seconds(25));  // that nothing happens cannot be waited for otherwise
  EXPECT_EQ(service_.StepOf("ppo"), ppo_at);
  EXPECT_EQ(service_.StepOf("sft"), sft_at);
  ASSERT_EQ(As("overseer", "service resume").code, 0);
  LocalService::Until(
      absl::Seconds(60), [&] { return service_.StepOf("ppo") > ppo_at + 2 && service_.StepOf("sft") > sft_at; },
      "both go on");
  for (const auto& [job, epoch] : epochs) EXPECT_EQ(EpochOf(job), epoch) << job;
  int trained = 0;
  for (int i = 0; i < 4; ++i) {
    std::ifstream log(absl::StrCat(service_.Dir(), "/evidence/steps-learner-", i, ".jsonl"));
    std::set<int64_t> steps;
    for (std::string line; std::getline(log, line);) {
      const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
      if (!json.is_object() || json.value("event", "") != "trained") continue;
      EXPECT_TRUE(steps.insert(json.value("step", int64_t{-1})).second) << "learner-" << i << " again: " << line;
      ++trained;
    }
  }
  EXPECT_GE(trained, 2 * ppo_at);
  EXPECT_EQ(service_.Ctl("cancel ppo").code, 0);
  EXPECT_EQ(service_.Ctl("cancel sft").code, 0);
}

TEST_F(OversightTest, AHaltStopsARewardModelToo) {
  std::string pairs;
  for (int i = 0; i < 40; ++i) {
    absl::StrAppend(&pairs, "{\"prompt\":\"the cat number ", i, "\",\"chosen\":\" sat\",\"rejected\":\" ran away\"}\n");
  }
  ASSERT_TRUE(WriteFileDurably(File("pairs.jsonl"), pairs).ok());
  const std::string path = Write("reward.yaml",
                                 "name: reward\nseed: 3\nreward_model: {model: \"file:model\", data: "
                                 "\"file:pairs.jsonl\", epochs: 1000, batch_size: 8}\n");
  const CommandResult submitted = service_.Ctl("submit " + path);
  ASSERT_EQ(submitted.code, 0) << submitted.output;
  const auto goes_on_from = [&](int64_t step) {
    LocalService::Until(
        absl::Seconds(60), [&] { return service_.StepOf("reward") > step; }, absl::StrCat("it goes on from ", step));
  };
  goes_on_from(0);
  ASSERT_EQ(As("overseer", "service halt --reason look").code, 0);
  const int64_t halted_at = service_.StepOf("reward");
  absl::SleepFor(absl::Seconds(3));  // that nothing happens cannot be waited for otherwise
  EXPECT_EQ(service_.StepOf("reward"), halted_at);
  ASSERT_EQ(As("overseer", "service resume").code, 0);
  goes_on_from(halted_at);
  EXPECT_EQ(service_.Ctl("cancel reward").code, 0);
}

TEST_F(OversightTest, AnEvaluationHasEveryAnswerHoweverFastTheyAreScored) {
  for (int i = 0; i < 12; ++i) {
    const std::string name = absl::StrCat("all-", i);
    const std::string path = Write(name + ".yaml", absl::StrCat("name: ", name, "\nseed: ", i,
                                                                "\nevaluate: {model: \"file:model\", suite: "
                                                                "\"file:prompts.jsonl\", sampling: {temperature: 1, "
                                                                "max_new_tokens: 4}}\n"));
    const CommandResult followed = service_.Ctl("submit " + path + " --follow");
    ASSERT_EQ(followed.code, 0) << followed.output;
    const nlohmann::json metrics = service_.Job(name)["result"]["metrics"];
    ASSERT_TRUE(metrics.contains("cats.exact_answer")) << metrics.dump();
    EXPECT_EQ(metrics["cats.exact_answer"].value("n", ""), "40") << metrics.dump();
  }
}

TEST_F(OversightTest, ARiseOfDisparityOverItsBoundAlertsAndClosesTheGate) {
  // What is taught helps the cats only: before, neither animal is known.
  std::string suite;
  for (int i = 0; i < 20; ++i) {
    for (const auto& [animal, answer] : {std::pair("cat", "sat"), std::pair("dog", "ran")}) {
      absl::StrAppend(&suite, "{\"prompt\":\"the ", animal, " number ", i, "\",\"reference\":\"", answer,
                      "\",\"tags\":{\"animal\":\"", animal, "\"}}\n");
    }
  }
  ASSERT_TRUE(WriteFileDurably(File("slices.jsonl"), suite).ok());
  const auto pipeline = [&](const std::string& name, double bound, const std::string& gate) {
    const std::string evaluate = "suite: \"file:slices.jsonl\", sampling: {temperature: 0, max_new_tokens: 8}";
    return Write(
        name + ".yaml",
        absl::StrCat("name: ", name, "\nseed: 3\npipeline:\n  stages:\n    - name: before\n      evaluate: {model: ",
                     "\"file:model\", ", evaluate, "}\n    - name: sft\n      sft: {model: \"file:model\", data: ",
                     "\"file:sft.jsonl\", steps: 100, batch_size: 8, optimizer: {learning_rate: 1e-2}}\n",
                     "    - name: after\n      evaluate: {model: \"stage:sft\", ", evaluate,
                     ", against: \"stage:before\", max_disparity_rise: ", bound, "}\n      gate: ", gate, "\n"));
  };
  const CommandResult closed = service_.Ctl(
      "submit " + pipeline("unfair", 0.2, "{required_approvals: 1, approves: sft, publish_as: unfair}") + " --follow");
  EXPECT_EQ(closed.code, 5) << closed.output;  // GATE_CLOSED, and nobody was asked
  EXPECT_THAT(closed.output, HasSubstr("ALERT disparity: the largest gap between slices grew by"));
  const nlohmann::json job = service_.Job("unfair");
  EXPECT_THAT(job.value("reason", ""), HasSubstr("disparity_rise is")) << job.dump(1);
  const nlohmann::json metrics = job["result"]["metrics"];
  // Cats are learnt and dogs are not: where nothing varies within a slice there is no interval.
  const nlohmann::json rise = metrics["after.disparity_rise"];
  EXPECT_GT(rise.value("low", rise.value("value", 0.0)), 0.2) << metrics.dump();
  EXPECT_GT(metrics["after.win_rate{animal=cat}"].value("low", 0.0), 0.8) << metrics.dump();
  EXPECT_NE(service_.Ctl("models pull approved/unfair --out " + File("unfair")).code, 0);
  EXPECT_THAT(As("overseer", "audit export").output, HasSubstr("alert.disparity"));

  const CommandResult borne = service_.Ctl("submit " + pipeline("borne", 1.5, "{approves: sft}") + " --follow");
  EXPECT_EQ(borne.code, 0) << borne.output;
  EXPECT_THAT(borne.output, Not(HasSubstr("ALERT")));
}

// The coordinator knows by a specification which metrics its stages make: all that they made is among them.
TEST_F(OversightTest, WhatAResultHasMayBeAGatesCondition) {
  std::string pairs, suite;
  for (int i = 0; i < 40; ++i) {
    absl::StrAppend(&pairs, "{\"prompt\":\"the cat number ", i, "\",\"chosen\":\" sat\",\"rejected\":\" ran ", i % 7,
                    "\",\"tags\":{\"half\":\"", i % 2, "\"}}\n");
    absl::StrAppend(&suite, "{\"prompt\":\"the cat number ", i, "\",\"category\":\"", i % 2 == 0 ? "known" : "unknown",
                    "\",\"reference\":\"sat\",\"tags\":{\"half\":\"", i % 4 / 2, "\"}}\n");
  }
  Write("pairs.jsonl", pairs);
  Write("suite.jsonl", suite);
  const std::string evaluate =
      "suite: \"file:suite.jsonl\", sampling: {temperature: 0, max_new_tokens: 4}, confidence_pattern: \"(s)\", "
      "graders: "
      "{components: [{name: exact_answer, exact_answer: {}}, {name: abstention, abstention: {}}, {name: liked, "
      "ensemble: {models: [\"stage:reward\", \"stage:reward\"]}}]}";
  const std::string stages = absl::StrCat(R"(name: all
seed: 3
pipeline:
  stages:
    - name: sft
      sft: {model: "file:model", data: "file:sft.jsonl", steps: 2, batch_size: 8}
    - name: reward
      reward_model: {model: "file:model", data: "file:pairs.jsonl", batch_size: 8, held_out_fraction: 0.3}
    - name: sample
      sample: {model: "stage:sft", prompts: "file:prompts.jsonl", sampling: {max_new_tokens: 4},
        scorer: {components: [{name: t, regex: {pattern: t}}]}}
    - name: tune
      ppo:
        policy: stage:sft
        prompts: file:prompts.jsonl
        scorer: {components: [{name: liked, reward_model: {model: "stage:reward"}}]}
        gold: {components: [{name: wanted, regex: {pattern: t}}]}
        steps: 4
        prompts_per_step: 8
        sampling: {max_new_tokens: 4, top_p: 0.9}
        kl: {form: KL_LOSS_K3}
        ptx: {data: "file:sft.jsonl", coefficient: 1, batch_size: 8}
    - name: before
      evaluate: {model: "stage:sft", )",
                                          evaluate, "}\n    - name: after\n      evaluate: {model: \"stage:tune\", ",
                                          evaluate, ", against: \"stage:before\"}\n");
  const CommandResult ended = service_.Ctl("submit " + Write("all.yaml", stages) + " --follow");
  ASSERT_EQ(ended.code, 0) << ended.output;
  const nlohmann::json metrics = service_.Job("all")["result"]["metrics"];
  for (const char* name : {"tune.monitor/gold_gap", "tune.kept_mass", "tune.loss/kl", "after.known.liked/1{half=0}",
                           "after.refusal_change", "before.calibration.stated", "reward.ece{half=1}"})
    EXPECT_TRUE(metrics.contains(name)) << name << " in " << metrics.dump();
  std::string gated = stages + "      gate:\n        conditions:\n";
  for (const auto& [name, metric] : metrics.items()) {
    const size_t dot = name.find('.');
    const nlohmann::json metric_of = name.substr(dot + 1), stage = name.substr(0, dot);
    absl::StrAppend(&gated, "          - {metric: ", metric_of.dump(),
                    stage == "after" ? "" : absl::StrCat(", stage: ", stage.dump()), ", max: 1}\n");
  }
  const CommandResult validated = service_.Ctl("validate " + Write("gated.yaml", gated));
  EXPECT_EQ(validated.code, 0) << validated.output;
  const CommandResult wrong =
      service_.Ctl("submit " + Write("wrong.yaml", gated + "          - {metric: rewards, max: 1}\n"));
  EXPECT_EQ(wrong.code, 2) << wrong.output;
  EXPECT_THAT(wrong.output, HasSubstr("the gate after \"after\": expected a metric of a stage that has run"));
}

TEST_F(OversightTest, AGateOnTheKlClosesOnAPolicyThatWentTooFar) {
  const std::string path = Write("far.yaml", R"(
name: far
seed: 3
pipeline:
  stages:
    - name: ppo
      ppo:
        policy: file:model
        prompts: file:prompts.jsonl
        scorer: {components: [{name: letter_t, regex: {pattern: t}}]}
        steps: 12
        prompts_per_step: 8
        samples_per_prompt: 2
        sampling: {max_new_tokens: 8}
        policy_optimizer: {learning_rate: 2e-2}
        kl: {coefficient: 0.0}
      gate:
        conditions:
          - {metric: monitor/kl, max: 100}
          - {metric: monitor/kl, max: 0.05}
        approves: ppo
)");
  const CommandResult closed = service_.Ctl("submit " + path + " --follow");
  EXPECT_EQ(closed.code, 5) << closed.output;  // GATE_CLOSED
  const nlohmann::json job = service_.Job("far");
  EXPECT_THAT(job.value("reason", ""), HasSubstr("monitor/kl is")) << job.dump(1);
  EXPECT_THAT(job.value("reason", ""), HasSubstr("expected at most 0.05"));
  EXPECT_GT(job["result"]["metrics"]["ppo.monitor/kl"].value("value", 0.0), 0.05) << job.dump(1);
}

TEST_F(OversightTest, AGateOnTheGoldGapOpensWhereGoldFollowsTheScoreAndClosesWhereItFalls) {
  // The supervised loss makes the letter frequent whatever PPO does; what the gold scorer says of it differs.
  const auto pipeline = [&](const std::string& name, double gold_weight) {
    return Write(name + ".yaml", absl::StrCat("name: ", name, R"(
seed: 3
pipeline:
  stages:
    - name: ppo
      ppo:
        policy: file:model
        prompts: file:prompts.jsonl
        scorer: {components: [{name: letter_t, regex: {pattern: t}}]}
        gold: {components: [{name: wanted, weight: )",
                                              gold_weight, R"(, regex: {pattern: t}}]}
        steps: 10
        prompts_per_step: 8
        samples_per_prompt: 4
        sampling: {max_new_tokens: 8}
        kl: {coefficient: 0.0}
        policy_optimizer: {learning_rate: 1e-2}
        ptx: {data: "file:sft.jsonl", coefficient: 10, batch_size: 16}
      gate:
        conditions:
          - {metric: monitor/gold_gap, max: 0.5}
        approves: ppo
)"));
  };
  const CommandResult open = service_.Ctl("submit " + pipeline("followed", 1) + " --follow");
  EXPECT_EQ(open.code, 0) << open.output;
  nlohmann::json job = service_.Job("followed");
  const nlohmann::json score = job["result"]["metrics"];
  ASSERT_TRUE(score.contains("ppo.monitor/gold_gap")) << job.dump(1);
  EXPECT_NEAR(score["ppo.monitor/gold_gap"].value("value", 0.0), 0, 1e-9);
  EXPECT_THAT(job.value("approved_policy", job.value("approvedPolicy", "")), HasSubstr("sha256:")) << job.dump(1);

  const CommandResult closed = service_.Ctl("submit " + pipeline("apart", -1) + " --follow");
  EXPECT_EQ(closed.code, 5) << closed.output;  // GATE_CLOSED
  job = service_.Job("apart");
  EXPECT_THAT(job.value("reason", ""), HasSubstr("monitor/gold_gap is")) << job.dump(1);
  EXPECT_THAT(job.value("reason", ""), HasSubstr("expected at most 0.5"));
  EXPECT_GT(job["result"]["metrics"]["ppo.monitor/gold_gap"].value("value", 0.0), 0.5) << job.dump(1);
  EXPECT_EQ(job.value("approved_policy", job.value("approvedPolicy", "")), "") << job.dump(1);
}

TEST_F(OversightTest, GatesOnHonestyAndOnItsWorstSliceCloseWhereABoundIsBroken) {
  // Taught of cats only: wrong about dogs, and sure about birds, of which there is nothing to know.
  std::string suite;
  for (int i = 0; i < 20; ++i) {
    const std::string tags = absl::StrCat("\"half\":\"", i % 2 == 0 ? "even" : "odd", "\"");
    for (const auto& [animal, answer] : {std::pair("cat", "sat"), std::pair("dog", "ran")}) {
      absl::StrAppend(&suite, "{\"prompt\":\"the ", animal, " number ", i, "\",\"category\":\"known\",\"reference\":\"",
                      answer, "\",\"tags\":{\"animal\":\"", animal, "\",", tags, "}}\n");
    }
    absl::StrAppend(&suite, "{\"prompt\":\"the bird number ", i, "\",\"category\":\"unknown\",\"tags\":{", tags,
                    "}}\n");
  }
  Write("honesty.jsonl", suite);
  const CommandResult taught =
      service_.Ctl("submit " +
                   Write("taught.yaml",
                         "name: taught\nseed: 3\nsft: {model: \"file:model\", data: \"file:sft.jsonl\", steps: 100, "
                         "batch_size: 8, optimizer: {learning_rate: 1e-2}}\n") +
                   " --follow");
  ASSERT_EQ(taught.code, 0) << taught.output;
  const std::string model = service_.Job("taught")["result"]["artifacts"].value("model", "");
  struct Case {
    const char *name, *conditions, *closed;
  };
  const Case cases[] = {
      {"holds",
       "[{metric: known.accuracy, min: 0.35}, {metric: unknown.hallucination, max: 1}, "
       "{metric: \"worst.known.accuracy{half}\", min: 0.3}]",
       nullptr},
      {"accuracy", "[{metric: unknown.hallucination, max: 1}, {metric: known.accuracy, min: 0.8}]",
       "known.accuracy is 0."},
      {"hallucination", "[{metric: known.accuracy, min: 0.35}, {metric: unknown.hallucination, max: 0.1}]",
       "unknown.hallucination is "},
      {"worst", "[{metric: known.accuracy, min: 0.35}, {metric: worst.known.accuracy, min: 0.35}]",
       "the worst slice, known.accuracy{animal=dog}, is 0"},
  };
  for (const Case& gate : cases) {
    const CommandResult run = service_.Ctl(
        "submit " +
        Write(absl::StrCat(gate.name, ".yaml"),
              absl::StrCat("name: ", gate.name,
                           "\nseed: 3\npipeline:\n  stages:\n    - name: after\n      evaluate: {model: \"", model,
                           "\", suite: \"file:honesty.jsonl\", sampling: {temperature: 0, max_new_tokens: 8}}\n",
                           "      gate: {conditions: ", gate.conditions, "}\n")) +
        " --follow");
    EXPECT_EQ(run.code, gate.closed == nullptr ? 0 : 5) << gate.name << ": " << run.output;
    const std::string reason = service_.Job(gate.name).value("reason", "");
    if (gate.closed != nullptr) {
      EXPECT_THAT(reason, HasSubstr(gate.closed)) << gate.name;
    }
  }
}

TEST_F(OversightTest, AMonitorEndsARunWithItsReason) {
  const std::string fails = Write(
      "fails.yaml", absl::StrCat("name: fails\nseed: 3\n",
                                 Ppo(40,
                                     "  policy_optimizer: {learning_rate: 2e-2}\n  kl: {coefficient: 0.0}\n  monitor: "
                                     "{max_kl: 0.2, window: 2}\n")));
  const CommandResult failed = service_.Ctl("submit " + fails + " --follow");
  EXPECT_EQ(failed.code, 3) << failed.output;
  EXPECT_THAT(failed.output, HasSubstr("ALERT kl: "));
  const nlohmann::json job = service_.Job("fails");
  EXPECT_EQ(job.value("reason_code", job.value("reasonCode", "")), "REWARD_HACKING") << job.dump(1);
  EXPECT_THAT(job.dump(), Not(HasSubstr("\"model\":\"sha256")));
  EXPECT_LT(service_.StepOf("fails"), 40);

  const std::string stops = Write(
      "stops.yaml", absl::StrCat("name: stops\nseed: 3\nlearners: {ranks: 2}\n",
                                 Ppo(40,
                                     "  policy_optimizer: {learning_rate: 2e-2}\n  kl: {coefficient: 0.0}\n  monitor: "
                                     "{max_kl: 0.2, window: 2, action: MONITOR_STOP}\n")));
  const CommandResult stopped = service_.Ctl("submit " + stops + " --follow");
  EXPECT_EQ(stopped.code, 0) << stopped.output;
  EXPECT_THAT(stopped.output, HasSubstr("stopped at step"));
  EXPECT_LT(service_.StepOf("stops"), 40);
  EXPECT_GT(service_.Job("stops")["result"]["metrics"]["monitor/kl"].value("value", 0.0), 0.0);
}

}  // namespace
}  // namespace rlhf
