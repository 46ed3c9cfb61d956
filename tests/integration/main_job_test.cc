// All processes, real gRPC with TLS and tokens, a small PPO job; then the same with the coordinator or a learner killed
// in the middle.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "tests/integration/local_service.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

class MainJobTest : public testing::Test {
 protected:
  void SetUp() override { MakeSmallModel(service_.scratch().path()); }
  std::string WriteJob(int steps, int lag) {
    SmallJob job;
    job.steps = steps;
    job.lag = lag;
    return WriteSmallJob(service_.scratch().path(), job);
  }
  void ExpectWhole(int steps) {
    SmallJob job;
    job.steps = steps;
    ::rlhf::ExpectWhole(service_, job, /*evidence=*/false);
  }
  // Roles send their lines once a second.
  void ExpectLinesOfAllRoles() {
    std::string lines;
    LocalService::Until(
        absl::Seconds(20),
        [&] {
          lines = service_.Ctl("--output json logs small").output;
          return absl::StrContains(lines, "scoring samples of job") && absl::StrContains(lines, "serving job") &&
                 absl::StrContains(lines, "step 6 is committed");
        },
        "lines of the fleet");
    for (const char* role : {"coordinator", "rollout_worker", "reward_server", "learner"})
      EXPECT_THAT(lines, HasSubstr(absl::StrCat("\"role\":\"", role, "\"")));
    // Each line says what it is about.
    const std::string committed = lines.substr(lines.rfind('\n', lines.find("step 6 is committed")) + 1);
    const nlohmann::json line = nlohmann::json::parse(committed.substr(0, committed.find('\n')), nullptr, false);
    ASSERT_TRUE(line.is_object()) << committed;
    EXPECT_EQ(line["fields"].value("step", ""), "6") << line.dump();
    EXPECT_EQ(line["fields"].count("group_epoch"), 1u) << line.dump();
  }
  // Every sample's generation, scoring and training are spans of one trace; calls to the coordinator continue their
  // callers' traces.
  void ExpectOneTraceASample() {
    std::map<std::string, std::set<std::string>> traces;
    std::map<std::string, std::string> parents;
    std::set<std::string> steps;
    for (const auto& file : std::filesystem::directory_iterator(service_.Dir() + "/traces")) {
      std::ifstream lines(file.path());
      for (std::string line; std::getline(lines, line);) {
        const nlohmann::json request = nlohmann::json::parse(line, nullptr, false);
        if (!request.is_object()) continue;  // being written
        const nlohmann::json& span = request["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        const std::string name = span.value("name", "");
        traces[span.value("traceId", "")].insert(name);
        if (name == "rlhf.v1.LearnerService/CommitStep") parents[span.value("parentSpanId", "")] = name;
        if (name == "train step") steps.insert(span.value("spanId", ""));
      }
    }
    const auto whole = [](const auto& trace) {
      return trace.second == std::set<std::string>{"generate", "score", "train"};
    };
    EXPECT_EQ(std::count_if(traces.begin(), traces.end(), whole), 6 * SmallJob().samples());
    EXPECT_EQ(parents.size(), 6u);
    for (const auto& [parent, name] : parents) EXPECT_EQ(steps.count(parent), 1u) << name;
  }
  void ExpectATimeline(int steps) {
    const CommandResult traced = service_.Ctl("trace small --out " + service_.scratch().File("trace.json"));
    EXPECT_EQ(traced.code, 0) << traced.output;
    EXPECT_THAT(traced.output, HasSubstr(absl::StrCat("learner: ", steps, " steps in ")));
    EXPECT_THAT(traced.output, HasSubstr("idle "));
    const auto account = nlohmann::json::parse(
        service_.Ctl("--output json trace small --out " + service_.scratch().File("trace.json")).output, nullptr,
        false);
    ASSERT_TRUE(account.is_object());
    EXPECT_EQ(account["file"], service_.scratch().File("trace.json"));
    EXPECT_EQ(account["generations"], account["scorings"]);
    EXPECT_EQ(account["learner"]["steps"], steps);
    EXPECT_GT(account["learner"]["update"], 0);
    const nlohmann::json trace =
        nlohmann::json::parse(ReadFile(service_.scratch().File("trace.json")).value_or(""), nullptr, false);
    ASSERT_TRUE(trace.is_object());
    std::map<std::string, int> spans;
    for (const auto& event : trace["traceEvents"]) ++spans[event.value("cat", "")];
    EXPECT_GT(spans["generation"], 0);
    EXPECT_EQ(spans["generation"], spans["scoring"]) << "every sample of a finished job was generated and scored";
    EXPECT_EQ(spans["learner"], 3 * steps);
    EXPECT_EQ(spans["job"], 1);
  }
  void WaitForStep(int step) {
    LocalService::Until(
        absl::Seconds(120), [&] { return service_.StepOf("small") >= step; }, absl::StrCat("step ", step));
  }

  // Learners and rollout workers are on one host here.
  void ExpectWeightsByMemory() {
    const auto mapped = [&] {
      double bytes = 0;
      for (const char* worker : {"rollout-0", "rollout-1"})
        bytes += std::max(0.0, service_.Metric(worker, "rlhf_weight_sync_mapped_bytes_total"));
      return bytes;
    };
    LocalService::Until(
        absl::Seconds(10), [&] { return mapped() > 0; }, "workers take weights from the learner's memory");
    LocalService::Until(
        absl::Seconds(10), [&] { return std::filesystem::is_empty(service_.Dir() + "-shm"); },
        "the learner removes what it shared, now that the job has ended");
  }

  LocalService service_{{.up = {"--slots", "32", "--traces"}}, [](const std::string& dir) {
                          EXPECT_TRUE(MakeDirs(dir + "-shm").ok());
                          return std::vector<std::string>{"--shm-dir", dir + "-shm"};
                        }};
};

TEST_F(MainJobTest, ASmallPpoJobRunsFromPromptToReport) {
  const std::string path = WriteJob(6, 0);
  const CommandResult valid = service_.Ctl("validate " + path);
  EXPECT_EQ(valid.code, 0) << "files are valid before they are uploaded: " << valid.output;
  const CommandResult followed = service_.Ctl("submit " + path + " --follow");
  EXPECT_EQ(followed.code, 0) << followed.output;
  EXPECT_THAT(followed.output, HasSubstr("SUCCEEDED"));
  ExpectWhole(6);
  const nlohmann::json job = service_.Job("small");
  EXPECT_LE(job["result"]["metrics"]["first_minibatch_ratio_error"].value("value", 0.0), 1e-4);
  // The sampler's log-probabilities, with its cache and its batches, against the learner's.
  const nlohmann::json metrics = job["result"]["metrics"];
  ASSERT_TRUE(metrics.contains("mismatch_kl")) << metrics.dump();
  EXPECT_LE(std::abs(metrics["mismatch_kl"].value("value", 0.0)), 1e-6);
  const std::string digest = job["result"]["artifacts"].value("model", "");
  EXPECT_THAT(digest, HasSubstr("sha256:"));
  const CommandResult pulled = service_.Ctl("models pull " + digest + " --out " + service_.scratch().File("trained"));
  EXPECT_EQ(pulled.code, 0) << pulled.output;
  EXPECT_EQ(RunCommand(BinDir() + "/rlhf-model inspect " + service_.scratch().File("trained")).code, 0);
  const CommandResult report = service_.Ctl("report small --out " + service_.scratch().File("report.html"));
  EXPECT_EQ(report.code, 0) << report.output;
  const auto html = ReadFile(service_.scratch().File("report.html"));
  ASSERT_TRUE(html.ok());
  EXPECT_THAT(*html, HasSubstr("<svg"));
  EXPECT_EQ(service_.Ctl("samples small").code, 0);
  ExpectLinesOfAllRoles();
  ExpectATimeline(6);
  ExpectOneTraceASample();
  ExpectWeightsByMemory();
}

// Rollout workers with int8 weights: the learner sees the mismatch that float32 does not have, and trains on.
TEST(Int8RolloutsTest, APpoJobMeasuresTheMismatch) {
  const LocalService service({.up = {"--slots", "32", "--rollout-precision", "int8"}});
  MakeSmallModel(service.scratch().path());
  SmallJob small;
  small.steps = 4;
  const CommandResult followed = service.Ctl("submit " + WriteSmallJob(service.scratch().path(), small) + " --follow");
  EXPECT_EQ(followed.code, 0) << followed.output;
  ExpectWhole(service, small, /*evidence=*/false);
  const nlohmann::json metrics = service.Job("small")["result"]["metrics"];
  for (const char* name : {"mismatch_kl", "importance_weight/mean"})
    ASSERT_TRUE(metrics.contains(name)) << name << " " << metrics.dump();
  EXPECT_GT(metrics["mismatch_kl"].value("value", 0.0), 1e-10);
  EXPECT_LT(metrics["mismatch_kl"].value("value", 1.0), 1e-3);
  EXPECT_NEAR(metrics["importance_weight/mean"].value("value", 0.0), 1, 0.02);
}

TEST_F(MainJobTest, BadInputGetsOneClearErrorAndLosesNothing) {
  const auto refuses = [&](const std::string& yaml, const std::string& says) {
    const std::string path = service_.scratch().File("bad.yaml");
    ASSERT_TRUE(WriteFileDurably(path, yaml).ok());
    for (const char* command : {"validate ", "submit "}) {
      const CommandResult result = service_.Ctl(command + path);
      EXPECT_NE(result.code, 0) << command << yaml;
      EXPECT_THAT(result.output, HasSubstr(says)) << command << yaml;
    }
  };
  refuses("name: x\nppo: {polcy: a}\n", "policy");  // the nearest key
  refuses("name: x\nsft: {model: file:model, data: file:prompts.jsonl, steps: many, batch_size: 4}\n", "steps");
  refuses("name: x\nsft: {model: file:nothing, data: file:prompts.jsonl, steps: 1, batch_size: 4}\n", "nothing");
  refuses("name: x\nsft: {model: no-such-alias, data: no-such-data, steps: 1, batch_size: 4}\n", "no-such");
  EXPECT_NE(service_.Ctl("get no-such-job").code, 0);
  // Data that only the learner reads: the job fails with its reason.
  const std::string path = service_.scratch().File("sft.yaml");
  ASSERT_TRUE(WriteFileDurably(
                  path, "name: bad-data\nsft: {model: file:model, data: file:prompts.jsonl, steps: 1, batch_size: 4}\n")
                  .ok());
  const CommandResult followed = service_.Ctl("submit " + path + " --follow");
  EXPECT_EQ(followed.code, 3) << followed.output;
  EXPECT_THAT(followed.output, HasSubstr("response"));
  EXPECT_THAT(service_.Job("bad-data").value("reasonCode", service_.Job("bad-data").value("reason_code", "")),
              HasSubstr("BAD_DATA"));
}

TEST_F(MainJobTest, AKilledCoordinatorGoesOnWithItsJob) {
  constexpr int kSteps = 120;  // of 30 ms: more than it takes to begin to watch
  ASSERT_EQ(service_.Ctl("submit " + WriteJob(kSteps, 1)).code, 0);
  WaitForStep(3);
  const std::vector<pid_t> before = service_.Pids("rlhf-coordinator");
  ASSERT_EQ(before.size(), 1u);
  // Who watches stays with the job across the restart.
  CommandResult watched;
  const std::string seen = service_.scratch().File("watched.txt");
  std::thread watcher([&] { watched = service_.Ctl("watch small > " + seen + " 2>&1"); });
  LocalService::Until(
      absl::Seconds(60), [&] { return ReadFile(seen).value_or("").size() > 0; }, "the watcher sees the job");
  EXPECT_EQ(kill(before[0], SIGKILL), 0);
  watcher.join();
  EXPECT_EQ(watched.code, 0) << ReadFile(seen).value_or("");
  EXPECT_NE(service_.Pids("rlhf-coordinator"), before);
  ExpectWhole(kSteps);
}

TEST_F(MainJobTest, WhoFollowsAPipelineStaysWithItWhenTheCoordinatorIsKilled) {
  // Many events of a stage before few of the pipeline's own; strictly on-policy, so that the step under way at the kill
  // is all there is to go on with. 200 steps, for 20 of 40 ms can be over before anybody has seen the fourth.
  const std::string path = service_.scratch().File("pipeline.yaml");
  ASSERT_TRUE(WriteFileDurably(service_.scratch().File("few.jsonl"), "{\"prompt\":\"the dog\"}\n").ok());
  ASSERT_TRUE(WriteFileDurably(path, R"(name: small
seed: 3
learners: {ranks: 2}
pipeline:
  stages:
    - name: gate
      evaluate:
        model: file:model
        suite: file:few.jsonl
        sampling: {temperature: 0, max_new_tokens: 8}
    - name: before
      evaluate:
        model: file:model
        suite: file:prompts.jsonl
        sampling: {temperature: 0, max_new_tokens: 8}
    - name: ppo
      ppo:
        policy: file:model
        prompts: file:prompts.jsonl
        scorer: {components: [{name: letter_t, regex: {pattern: t}}]}
        steps: 200
        prompts_per_step: 16
        sampling: {max_new_tokens: 8}
        epochs: 1
    - name: after
      evaluate:
        model: stage:ppo
        suite: file:prompts.jsonl
        sampling: {temperature: 0, max_new_tokens: 8}
)")
                  .ok());
  CommandResult followed;
  std::thread follower([&] { followed = service_.Ctl("submit " + path + " --follow"); });
  LocalService::Until(
      absl::Seconds(120),
      [&] {
        const nlohmann::json jobs = nlohmann::json::parse(service_.Ctl("--output json list --stages").output, nullptr,
                                                          /*allow_exceptions=*/false);
        return jobs.is_array() && std::any_of(jobs.begin(), jobs.end(), [](const nlohmann::json& job) {
                 return job.value("stage", "") == "ppo" && std::atoi(job.value("step", "0").c_str()) >= 4;
               });
      },
      "step 4 of the stage");
  const std::vector<pid_t> before = service_.Pids("rlhf-coordinator");
  ASSERT_EQ(before.size(), 1u);
  EXPECT_EQ(service_.StateOf("small"), "RUNNING") << "the kill is in time";
  EXPECT_EQ(kill(before[0], SIGKILL), 0);
  follower.join();
  EXPECT_EQ(followed.code, 0) << followed.output;
  EXPECT_THAT(followed.output, HasSubstr("SUCCEEDED"));
  // The evaluations of one suite are compared, whatever others there are.
  EXPECT_EQ(service_.Ctl("report small --out " + service_.scratch().File("pipeline.html")).code, 0);
  const auto html = ReadFile(service_.scratch().File("pipeline.html"));
  ASSERT_TRUE(html.ok());
  EXPECT_THAT(*html, HasSubstr("Before and after"));
  EXPECT_THAT(*html, HasSubstr("Answers side by side"));
}

TEST_F(MainJobTest, AKilledLearnerIsReplacedAndEverythingIsTrainedOnce) {
  ASSERT_EQ(service_.Ctl("submit " + WriteJob(120, 0)).code, 0);
  WaitForStep(7);
  const std::vector<pid_t> learners = service_.Pids("rlhf-learner");
  ASSERT_EQ(learners.size(), 2u);
  ASSERT_EQ(kill(learners[0], SIGKILL), 0);
  const CommandResult watched = service_.Ctl("watch small");
  EXPECT_EQ(watched.code, 0) << watched.output;
  ExpectWhole(120);
}

TEST_F(MainJobTest, AKilledRolloutWorkerCostsNoSample) {
  ASSERT_EQ(service_.Ctl("submit " + WriteJob(120, 0)).code, 0);
  WaitForStep(2);
  const std::vector<pid_t> workers = service_.Pids("rlhf-rollout-worker");
  ASSERT_EQ(workers.size(), 2u);
  ASSERT_EQ(kill(workers[0], SIGKILL), 0);
  const CommandResult watched = service_.Ctl("watch small");
  EXPECT_EQ(watched.code, 0) << watched.output;
  ExpectWhole(120);
}

}  // namespace
}  // namespace rlhf
