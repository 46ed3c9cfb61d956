// People's judgements from other tools through real processes: imported, learned by reward models, used to compare
// policies, traced, and forgotten.
#include <fstream>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/local_service.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class PeopleTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeSmallModel(service_.scratch().path());
    std::string rated;
    // Two raters, who judge by two criteria; what is worse is another sentence, or letters as a new model gives them.
    uint64_t state = 5;
    for (int i = 0; i < 60; ++i) {
      std::string worse = " the dog ran";
      if (i % 4 > 1) worse.clear();
      while (i % 4 > 1 && static_cast<int>(worse.size()) < 2 + i % 9) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        worse += static_cast<char>('#' + (state >> 40) % 57);  // to "[": neither quotes nor escapes
      }
      absl::StrAppend(&rated, "{\"prompt\":{\"text\":\"the cat number ", i,
                      "\"},\"first\":{\"text\":\" sat\"},\"second\":{\"text\":\"", worse,
                      "\"},\"preference\":\"FIRST\","
                      "\"first_ratings\":{\"helpful\":5,\"honest\":4},\"second_ratings\":{\"helpful\":1,\"honest\":2},"
                      "\"rater\":\"",
                      i % 2 == 0 ? "carl" : "dora", "\"}\n");
    }
    Write("rated.jsonl", rated);
  }
  std::string File(const std::string& name) const { return service_.scratch().File(name); }
  std::string Write(const std::string& name, const std::string& text) const {
    EXPECT_TRUE(WriteFileDurably(File(name), text).ok());
    return File(name);
  }
  // A reward model with a head for each criterion; its digest.
  std::string TrainReward(const std::string& name, int member) const {
    const std::string path =
        Write(name + ".yaml",
              absl::StrCat("name: ", name, "\nseed: 3\nreward_model: {model: \"file:model\", data: rated, epochs: 6, ",
                           "batch_size: 16, optimizer: {learning_rate: 1e-2}, held_out_fraction: 0.2, member: ", member,
                           ", criteria: {helpful: 2, honest: 0.5}, criterion_heads: true}\n"));
    const CommandResult trained = service_.Ctl("submit " + path + " --follow");
    EXPECT_EQ(trained.code, 0) << trained.output;
    return service_.Job(name)["result"]["artifacts"].value("model", "");
  }

  LocalService service_;
};

TEST_F(PeopleTest, OtherToolsExportsAreImportedTogether) {
  std::string transcripts;
  for (int i = 0; i < 20; ++i) {
    const std::string prompt = absl::StrCat("\\n\\nHuman: the cat number ", i, "\\n\\nAssistant:");
    absl::StrAppend(&transcripts, "{\"chosen\":\"", prompt, " sat\",\"rejected\":\"", prompt, " ran\"}\n");
    if (i == 9) absl::StrAppend(&transcripts, "{\"chosen\":\"", prompt, " sat\"}\n");  // line 11
  }
  Write("hh.jsonl", transcripts);
  ASSERT_EQ(RunCommand("gzip -k " + File("hh.jsonl")).code, 0);
  Write("argilla.json", R"([
{"fields":{"prompt":"A1","response1":"a","response2":"b"},"responses":[
  {"user_id":"u1","status":"submitted","values":{"preference":{"value":[{"value":"response2","rank":1},{"value":"response1","rank":2}]}}},
  {"user_id":"u2","status":"discarded","values":{"preference":{"value":[{"value":"response1","rank":1},{"value":"response2","rank":2}]}}}]},
{"fields":{"prompt":"A2","response1":"c","response2":"d"},"responses":[]}
])");
  Write("label_studio.json", R"([
{"data":{"prompt":"L1","answer1":"e","answer2":"f"},"annotations":[{"completed_by":7,"result":[
  {"type":"pairwise","to_name":"answer1,answer2","value":{"selected":"right"}}]}]}
])");
  const std::string import = "feedback import --set human " + File("hh.jsonl.gz") + " " + File("argilla.json") + " " +
                             File("label_studio.json");
  const CommandResult first = service_.Ctl(import);
  EXPECT_EQ(first.code, 1) << first.output << "one was not taken";
  EXPECT_THAT(first.output, HasSubstr("22 imported, 0 duplicates, 1 rejected"));
  EXPECT_THAT(first.output, HasSubstr("hh.jsonl.gz:11: "));
  EXPECT_THAT(first.output, HasSubstr("\"rejected\""));
  const CommandResult again = service_.Ctl(import);
  EXPECT_THAT(again.output, HasSubstr("0 imported, 22 duplicates, 1 rejected"));
  EXPECT_THAT(again.output, HasSubstr("version 1,")) << "nothing new makes no version";

  const CommandResult exported = service_.Ctl("feedback export --set human --format plain --out " + File("out.jsonl"));
  ASSERT_EQ(exported.code, 0) << exported.output;
  std::map<std::string, nlohmann::json> by_prompt;
  std::ifstream in(File("out.jsonl"));
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json made = nlohmann::json::parse(line);
    by_prompt[made.value("prompt", "")] = made;
  }
  EXPECT_EQ(by_prompt.size(), 22u);
  EXPECT_EQ(by_prompt["A1"]["chosen"], "b");
  EXPECT_EQ(by_prompt["L1"]["chosen"], "f");
  EXPECT_EQ(by_prompt["\n\nHuman: the cat number 3\n\nAssistant:"]["rejected"], " ran");
  EXPECT_THAT(by_prompt["L1"].value("rater", ""), testing::StartsWith("rater-")) << "imported raters are pseudonymous";
}

TEST_F(PeopleTest, JudgementsAreLearnedUsedToCompareTracedAndForgotten) {
  const CommandResult imported = service_.Ctl("feedback import --set rated " + File("rated.jsonl"));
  ASSERT_EQ(imported.code, 0) << imported.output;
  const std::string reward = TrainReward("reward", 0), other = TrainReward("reward-1", 1);
  ASSERT_THAT(reward, testing::StartsWith("sha256:"));
  EXPECT_NE(reward, other) << "members of an ensemble differ";
  nlohmann::json learned = service_.Job("reward")["result"]["metrics"];
  for (const char* name : {"accuracy", "accuracy{criterion=helpful}", "accuracy{criterion=honest}"})
    EXPECT_GT(learned[name].value("value", 0.0), 0.9) << name << " of " << learned.dump();
  EXPECT_TRUE(learned.contains("baseline.length.accuracy") && learned.contains("ece")) << learned.dump();

  // Its heads are in the model, and an offline tool shows them.
  ASSERT_EQ(service_.Ctl("models pull " + reward + " --out " + File("reward")).code, 0);
  const CommandResult scored =
      RunCommand("echo '[70, 71, 72]' | " + BinDir() + "/rlhf-model score --model " + File("reward"));
  EXPECT_EQ(scored.code, 0) << scored.output;
  nlohmann::json score = nlohmann::json::parse(scored.output, nullptr, false);
  EXPECT_TRUE(score.contains("reward") && score["criteria"].contains("helpful") && score["criteria"].contains("honest"))
      << scored.output;

  // Before and after SFT: who wins by the reward model, and by the gold scorer.
  const std::string graders = absl::StrCat(
      "{components: [{name: exact_answer, exact_answer: {}}, {name: preference, weight: 0, reward_model: {model: \"",
      reward, "\"}}, {name: honest, weight: 0, reward_model: {model: \"", reward, "\", criteria: {honest: 1}}}, ",
      "{name: both, weight: 0, ensemble: {models: [\"", reward, "\", \"", other,
      "\"], rule: ENSEMBLE_MEAN_MINUS_STD}}]}");
  const auto evaluate = [&](const std::string& name, const std::string& model, const std::string& more) {
    return absl::StrCat("    - name: ", name, "\n      evaluate: {model: \"", model,
                        "\", suite: \"file:prompts.jsonl\", sampling: {temperature: 0, max_new_tokens: 8}, graders: ",
                        graders, more, "}\n");
  };
  const std::string path = Write(
      "wins.yaml",
      absl::StrCat(
          "name: wins\nseed: 3\npipeline:\n  stages:\n", evaluate("before", "file:model", ""),
          "    - name: sft\n      sft: {model: \"file:model\", data: \"file:sft.jsonl\", steps: 100, ",
          "batch_size: 8, optimizer: {learning_rate: 1e-2}}\n",
          evaluate("judged", "stage:sft", ", against: \"stage:before\", judge: {components: [{name: preference}]}"),
          evaluate("gold", "stage:sft", ", against: \"stage:before\"")));
  const CommandResult run = service_.Ctl("submit " + path + " --follow");
  ASSERT_EQ(run.code, 0) << run.output;
  nlohmann::json metrics = service_.Job("wins")["result"]["metrics"];
  const nlohmann::json by_reward = metrics["judged.win_rate"], by_gold = metrics["gold.win_rate"];
  EXPECT_EQ(by_gold.value("value", 0.0), 1) << "every answer is right now, and none was";
  EXPECT_EQ(by_gold.value("n", ""), "40");
  EXPECT_GT(by_reward.value("value", 0.0), 0.5) << by_reward.dump();
  EXPECT_LE(by_reward.value("low", 2.0), by_reward.value("value", 0.0));
  EXPECT_GE(by_reward.value("high", -1.0), by_reward.value("value", 0.0));
  for (const char* name :
       {"judged.both", "judged.both/0", "judged.both/1", "judged.preference/honest", "judged.honest"})
    EXPECT_TRUE(metrics.contains(name)) << name << " of " << metrics.dump();

  const CommandResult lineage = service_.Ctl("audit show --model " + File("reward"));
  EXPECT_EQ(lineage.code, 0) << lineage.output;
  EXPECT_THAT(lineage.output, AllOf(HasSubstr("kind: reward_model"), HasSubstr("comparisons: 60"),
                                    HasSubstr("default/rated version 1"), HasSubstr("configuration_sha256: ")));

  // Forgotten: gone from the store, and what used the rater is named.
  EXPECT_EQ(service_.Ctl("feedback forget carl").code, 7) << "an admin's";
  const CommandResult forgotten = service_.Ctl("feedback forget carl", "admin.json");
  ASSERT_EQ(forgotten.code, 0) << forgotten.output;
  EXPECT_THAT(forgotten.output,
              AllOf(HasSubstr("30 judgements removed"), HasSubstr("used by set default/rated version 1"),
                    HasSubstr("used by model " + reward), HasSubstr("used by model " + other), Not(HasSubstr("carl"))));
  EXPECT_THAT(service_.Ctl("audit show --model " + File("reward")).output, HasSubstr("forgotten"));
  const CommandResult left = service_.Ctl("feedback export --set rated --format own --out " + File("left.jsonl"));
  ASSERT_EQ(left.code, 0) << left.output;
  EXPECT_EQ(RunCommand("wc -l < " + File("left.jsonl")).output, "30\n");
  EXPECT_THAT(service_.Ctl("feedback forget carl", "admin.json").output, HasSubstr(": 0 judgements removed"));
}

}  // namespace
}  // namespace rlhf
