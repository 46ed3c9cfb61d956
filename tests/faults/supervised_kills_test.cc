// Jobs without a ledger: an SFT and a reward-model job whose learners and coordinator are killed at random end with the
// bytes of jobs that nobody disturbed; a pipeline whose roles are killed keeps every comparison that it acknowledged.
//
// RLHF_FAULTS_SEED repeats the kills' moments.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

class SupervisedKills : public testing::Test {
 protected:
  SupervisedKills() {
    const char* seed = std::getenv("RLHF_FAULTS_SEED");
    const uint64_t value = seed == nullptr ? std::random_device{}() : std::strtoull(seed, nullptr, 10);
    random_.seed(value);
    std::printf("RLHF_FAULTS_SEED=%llu\n", static_cast<unsigned long long>(value));
    std::fflush(stdout);
  }
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
    options.faults = true;
    return options;
  }
  std::string Write(const std::string& name, const std::string& text) const {
    EXPECT_TRUE(WriteFileDurably(service_.scratch().File(name), text).ok());
    return service_.scratch().File(name);
  }
  void Submit(const std::string& name, const std::string& yaml) const {
    const CommandResult submitted = service_.Ctl("submit " + Write(name + ".yaml", "name: " + name + "\n" + yaml));
    ASSERT_EQ(submitted.code, 0) << submitted.output;
  }
  void WaitForSuccess(const std::string& name) const {
    std::string state;
    LocalService::Until(
        absl::Seconds(120),
        [&] {
          state = service_.StateOf(name);
          return state == "SUCCEEDED" || state == "FAILED";
        },
        name + " ends");
    ASSERT_EQ(state, "SUCCEEDED") << service_.Job(name).dump(1);
  }
  int Random(int below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }
  void SleepUpTo(int milliseconds) { absl::SleepFor(absl::Milliseconds(Random(milliseconds))); }
  void Kill(const std::string& instance) const {
    pid_t pid = -1;
    LocalService::Until(
        absl::Seconds(30), [&] { return (pid = service_.Pid(instance)) > 0; }, instance + " is there");
    ASSERT_GT(pid, 0);  // kill(-1) would end everything
    ASSERT_EQ(kill(pid, SIGKILL), 0);
    std::printf("killed %s\n", instance.c_str());
    std::fflush(stdout);
  }
  std::string ModelOf(const std::string& name) const {
    return service_.Job(name)["result"]["artifacts"].value("model", "none");
  }
  // Every step there, every rank's end alike, and what was trained again to the same bytes.
  void ExpectAddsUp(const std::string& name, int ends) const {
    const CommandResult ledger = service_.Ctl(
        absl::StrCat("--output json ledger ", name, " --check --evidence ", service_.Dir(), "/evidence"), "admin.json");
    EXPECT_EQ(ledger.code, 0) << ledger.output;
    const nlohmann::json checked = nlohmann::json::parse(ledger.output, nullptr, false);
    ASSERT_TRUE(checked.is_object()) << ledger.output;
    EXPECT_EQ(checked["compared"].value("steps", 0), ends) << ledger.output;
    EXPECT_GE(checked["compared"].value("rank_lines", 0), 2 * ends) << ledger.output;
  }
  // The same job twice, once with kills.
  void ExpectSameBytes(const std::string& name, const std::string& yaml) {
    const std::string quiet = name + "-quiet";
    Submit(quiet, yaml);
    WaitForSuccess(quiet);
    const int64_t steps = service_.StepOf(quiet);
    ASSERT_GT(steps, 30) << "too short to be killed twice on its way";
    // Progress is reported twice a second: no faster than it can be seen and killed.
    service_.Arm("any", "learner/before_allreduce", "sleep:80*");
    Submit(name, yaml);
    std::vector<std::string> instances = {absl::StrCat("learner-", Random(2)), "coordinator"};
    std::shuffle(instances.begin(), instances.end(), random_);
    for (size_t i = 0; i < instances.size(); ++i) {
      // The first in its second quarter (behind a checkpoint), the next one in the third.
      const int64_t step = steps * static_cast<int64_t>(i + 1) / 4 + Random(static_cast<int>(steps / 4));
      LocalService::Until(
          absl::Seconds(60), [&] { return service_.StepOf(name) >= step; }, absl::StrCat(name, " at step ", step));
      SleepUpTo(200);
      ASSERT_NE(service_.StateOf(name), "SUCCEEDED") << "it ended before it was killed: give it more steps";
      Kill(instances[i]);
    }
    service_.Disarm("any", "learner/before_allreduce");
    WaitForSuccess(name);
    EXPECT_THAT(ModelOf(quiet), testing::StartsWith("sha256:"));
    EXPECT_EQ(ModelOf(name), ModelOf(quiet));
    EXPECT_EQ(service_.StepOf(name), steps);
    EXPECT_GE(std::atoi(service_.Job(name).value("group_epoch", "0").c_str()), 2) << "no group was formed again";
    for (const std::string& job : {quiet, name}) ExpectAddsUp(job, 1);
  }

  std::mt19937_64 random_;
  LocalService service_{Options()};
};

TEST_F(SupervisedKills, JobsEndWithTheBytesOfUndisturbedOnes) {
  const std::string head = "seed: 3\ndeterministic: true\nlearners: {ranks: 2}\n";
  ExpectSameBytes("sft", head +
                             "sft: {model: \"file:model\", data: \"file:sft.jsonl\", steps: 60, batch_size: 8, "
                             "checkpoint_every: 10, optimizer: {learning_rate: 1e-3}}\n");
  if (HasFatalFailure()) return;
  ExpectSameBytes("reward", head +
                                "reward_model: {model: \"file:model\", data: \"file:pairs.jsonl\", epochs: 10, "
                                "batch_size: 8, held_out_fraction: 0.2, checkpoint_every: 10, "
                                "optimizer: {learning_rate: 1e-2}}\n");
}

TEST_F(SupervisedKills, APipelineKeepsEveryComparisonThatItAcknowledged) {
  constexpr int kComparisons = 24;
  Submit("people",
         absl::StrCat("seed: 3\nlearners: {ranks: 2}\npipeline:\n  stages:\n"
                      "    - name: sample\n      sample: {model: \"file:model\", prompts: \"file:prompts.jsonl\", "
                      "samples_per_prompt: 2, sampling: {max_new_tokens: 8}}\n"
                      "    - name: collect\n      collect: {samples: \"stage:sample\", comparisons: ",
                      kComparisons,
                      "}\n    - name: reward\n      reward_model: {model: \"file:model\", data: \"stage:collect\", "
                      "epochs: 40, batch_size: 8, checkpoint_every: 4, optimizer: {learning_rate: 1e-2}}\n"
                      "    - name: after\n      evaluate: {model: \"file:model\", suite: \"file:prompts.jsonl\", "
                      "sampling: {temperature: 0, max_new_tokens: 8}, graders: {components: [{name: preference, "
                      "reward_model: {model: \"stage:reward\"}}]}}\n"));
  const auto child = [&](size_t stage) {
    const nlohmann::json job = service_.Job("people");
    return job.is_object() && job.contains("children") && job["children"].size() > stage
               ? job["children"][stage].get<std::string>()
               : "";
  };
  SleepUpTo(1000);
  Kill(absl::StrCat("rollout-", Random(2)));

  // Answers, of which some end in a kill right after they were acknowledged.
  std::map<std::string, std::string> acknowledged;  // task to preference
  std::set<int> kills = {1 + Random(kComparisons / 2), kComparisons / 2 + 1 + Random(kComparisons / 2 - 2)};
  LocalService::Until(
      absl::Seconds(90),
      [&] {
        const CommandResult next = service_.Ctl("--output json feedback next --job people --limit 1", "rater.json");
        const nlohmann::json answer = nlohmann::json::parse(next.output, nullptr, false);
        if (next.code != 0 || !answer.is_object() || !answer.contains("tasks") || answer["tasks"].empty())
          return service_.StateOf(child(1)) == "SUCCEEDED";
        const nlohmann::json& task = answer["tasks"][0];
        const std::string id = task.value("id", ""), preference = Random(2) == 0 ? "first" : "second";
        const CommandResult taken = service_.Ctl(
            absl::StrCat("feedback submit ", id, " --job ", task.value("job_id", ""), " --prefer ", preference),
            "rater.json");
        if (taken.code != 0) return false;
        acknowledged[id] = preference == "first" ? "FIRST" : "SECOND";
        if (kills.erase(static_cast<int>(acknowledged.size())) > 0) Kill("coordinator");
        return false;
      },
      "all comparisons are collected");
  EXPECT_TRUE(kills.empty());

  const std::string reward = child(2);
  ASSERT_NE(reward, "");
  LocalService::Until(
      absl::Seconds(60), [&] { return service_.StepOf(reward) >= 1; }, "the reward model trains");
  Kill(absl::StrCat("learner-", Random(2)));
  LocalService::Until(
      absl::Seconds(60), [&] { return !child(3).empty(); }, "the evaluation begins");
  Kill("reward-0");
  WaitForSuccess("people");

  const CommandResult exported = service_.Ctl("feedback export --job people --format own");
  ASSERT_EQ(exported.code, 0) << exported.output;
  std::map<std::string, std::string> stored;
  for (const absl::string_view line : absl::StrSplit(exported.output, '\n', absl::SkipEmpty())) {
    if (absl::EndsWith(line, " lines")) continue;  // how many there are
    const nlohmann::json comparison = nlohmann::json::parse(line, nullptr, false);
    ASSERT_TRUE(comparison.is_object()) << line;
    EXPECT_TRUE(stored.emplace(comparison.value("task_id", ""), comparison.value("preference", "")).second) << line;
  }
  EXPECT_EQ(stored.size(), static_cast<size_t>(kComparisons));
  EXPECT_GE(acknowledged.size(), 20u) << "the rater hardly answered";
  for (const auto& [task, preference] : acknowledged) EXPECT_EQ(stored[task], preference) << task;
  ExpectAddsUp("people", 1);
}

}  // namespace
}  // namespace rlhf
