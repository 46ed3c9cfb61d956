// What a job keeps, and what goes with it, in real processes and on the disk.
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/local_service.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

class RetentionTest : public testing::Test {
 protected:
  void SetUp() override { MakeSmallModel(service_.scratch().path()); }
  nlohmann::json Json(const std::string& arguments) const {
    return nlohmann::json::parse(service_.Ctl("--output json " + arguments).output, nullptr, false);
  }
  // Rows of the job by step: those with a sample, and those that say why they have none.
  std::pair<std::map<int, int>, std::map<int, int>> Samples(const std::string& job) const {
    std::map<int, int> there, freed;
    std::istringstream lines(service_.Ctl("--output json samples --limit 1000 " + job).output);
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json view = nlohmann::json::parse(line, nullptr, false);
      if (!view.is_object()) continue;
      const int step = std::atoi(view["row"]["id"]["step"].get<std::string>().c_str());
      if (view.contains("sample")) ++there[step];
      if (view.value("problem", "").find("freed by the job's retention") != std::string::npos) ++freed[step];
    }
    return {there, freed};
  }
  uint64_t PayloadBytes() const {
    uint64_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(service_.Dir() + "/data/payloads"))
      bytes += entry.file_size();
    return bytes;
  }
  size_t Checkpoints() const {
    const nlohmann::json all = Json("checkpoints list");
    return all.is_array() ? all.size() : 0;
  }

  LocalService service_;
};

TEST_F(RetentionTest, AJobKeepsWhatItsSpecificationSaysAndADeletedOneNothing) {
  const std::string file = service_.scratch().File("kept.yaml");
  ASSERT_TRUE(WriteFileDurably(file, R"(
name: kept
seed: 3
retention: {sample_steps: 2, checkpoints: 2}
ppo:
  policy: file:model
  prompts: file:prompts.jsonl
  scorer:
    components:
      - {name: letter_t, regex: {pattern: t}}
  steps: 8
  prompts_per_step: 4
  samples_per_prompt: 2
  sampling: {max_new_tokens: 8}
  epochs: 1
  checkpoint_every: 1
)")
                  .ok());
  const CommandResult run = service_.Ctl("submit --follow " + file);
  ASSERT_EQ(run.code, 0) << run.output;
  std::pair<std::map<int, int>, std::map<int, int>> samples;
  LocalService::Until(
      absl::Seconds(20),
      [&] {
        samples = Samples("kept");
        return samples.second.size() == 6;
      },
      "the payloads of six steps are freed");
  for (int step = 1; step <= 6; ++step) EXPECT_EQ(samples.second[step], 8) << step;
  EXPECT_EQ(samples.first, (std::map<int, int>{{7, 8}, {8, 8}}));
  const CommandResult checked = service_.Ctl("ledger --check kept", "admin.json");
  EXPECT_EQ(checked.code, 0) << checked.output;
  EXPECT_THAT(checked.output,
              HasSubstr("the payloads of 48 samples were not read: the job's retention has freed them"));
  EXPECT_THAT(service_.Ctl("ledger kept").output, HasSubstr("64"));
  const CommandResult replay =
      service_.Ctl("replay kept --step 3 --out " + service_.scratch().File("replay") + " 2>&1");
  EXPECT_NE(replay.code, 0) << replay.output;
  LocalService::Until(
      absl::Seconds(20), [&] { return Checkpoints() == 2; }, "two checkpoints are left");

  // What a person deletes is gone from the disk.
  const nlohmann::json checkpoints = Json("checkpoints list");
  for (const nlohmann::json& checkpoint : checkpoints) {
    const CommandResult deleted = service_.Ctl("checkpoints delete " + checkpoint["digest"].get<std::string>());
    EXPECT_EQ(deleted.code, 0) << deleted.output;
  }
  EXPECT_EQ(Checkpoints(), 0u);
  EXPECT_GT(PayloadBytes(), 0u);
  ASSERT_EQ(service_.Ctl("delete kept").code, 0);
  LocalService::Until(
      absl::Seconds(20), [&] { return PayloadBytes() == 0; }, "its payloads are gone");
}

TEST_F(RetentionTest, AnAliasIsGivenAndTakenAndKeepsFromDeletion) {
  const CommandResult pushed = service_.Ctl("models push " + service_.scratch().File("model") + " --alias base");
  ASSERT_EQ(pushed.code, 0) << pushed.output;
  const std::string digest = pushed.output.substr(0, pushed.output.find('\n'));
  ASSERT_EQ(service_.Ctl("models alias other " + digest).code, 0);
  ASSERT_EQ(service_.Ctl("models alias base").code, 0);
  const CommandResult refused = service_.Ctl("models delete " + digest + " 2>&1");
  EXPECT_NE(refused.code, 0);
  EXPECT_THAT(refused.output, HasSubstr("has the alias"));
  ASSERT_EQ(service_.Ctl("models alias other").code, 0);
  const CommandResult deleted = service_.Ctl("models delete " + digest);
  EXPECT_EQ(deleted.code, 0) << deleted.output;
  EXPECT_EQ(Json("models list").size(), 0u);
}

}  // namespace
}  // namespace rlhf
