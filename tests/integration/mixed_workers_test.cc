// Processes of two precisions in one service: a job goes on at those that can serve it, and the others are passed over.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

// A small job with more lines in its specification.
void Submit(const LocalService& service, const std::string& name, const std::string& more) {
  SmallJob job;
  job.name = name;
  job.steps = 4;
  const std::string path = WriteSmallJob(service.scratch().path(), job);
  ASSERT_TRUE(WriteFileDurably(path, *ReadFile(path) + more).ok());
  const CommandResult submitted = service.Ctl("submit " + path);
  ASSERT_EQ(submitted.code, 0) << submitted.output;
}
void ExpectSucceeds(const LocalService& service, const std::string& name) {
  LocalService::Until(
      absl::Seconds(120),
      [&] {
        const std::string state = service.StateOf(name);
        return state == "SUCCEEDED" || state == "FAILED";
      },
      name + " ends");
  EXPECT_EQ(service.StateOf(name), "SUCCEEDED") << service.Job(name).dump(1);
}
void ExpectWhole(const LocalService& service, const std::string& name) {
  const CommandResult checked = service.Ctl("ledger " + name + " --check", "admin.json");
  EXPECT_EQ(checked.code, 0) << checked.output;
}
// The job "nobody", when the one process that can serve it is cordoned; `why` says how to start the other one.
void ExpectWaitsFor(const LocalService& service, const std::string& one, const std::string& other) {
  ASSERT_EQ(service.Ctl("workers cordon " + one, "admin.json").code, 0);
  Submit(service, "nobody", "deterministic: true\n");
  std::string why;
  LocalService::Until(
      absl::Seconds(60),
      [&] {
        why = service.Ctl("why nobody").output;
        return why.find("1 registered, of which none can") != std::string::npos;
      },
      "the job waits for one like " + one);
  EXPECT_THAT(why, HasSubstr(other + ": "));
  EXPECT_THAT(why, HasSubstr("--precision float32"));
}
void ExpectNoneFailed(const LocalService& service, const std::string& name) {
  const nlohmann::json counts =
      nlohmann::json::parse(service.Ctl("--output json ledger " + name).output, nullptr, false)["counts"];
  EXPECT_EQ(counts.value("failed", "0"), "0");
}

TEST(MixedWorkersTest, AJobIsServedByTheWorkersOfItsPrecision) {
  LocalServiceOptions options;
  options.up = {"--slots", "4", "--rollout-workers", "2"};
  options.prepare = [](const std::string& dir) {
    const std::string script = dir + "/bfloat16.sh";
    ASSERT_TRUE(MakeDirs(dir).ok());
    ASSERT_TRUE(WriteFileDurably(script, "#!/bin/bash\nexec \"${@/%float32/bfloat16}\"\n").ok());
    std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  };
  const LocalService service(options, [](const std::string& dir) {
    return std::vector<std::string>{"--wrap", absl::StrCat("rollout-1=", dir, "/bfloat16.sh")};
  });
  MakeSmallModel(service.scratch().path());
  ASSERT_FALSE(testing::Test::HasFailure());
  Submit(service, "half", "  precision: BFLOAT16\n");
  ExpectSucceeds(service, "half");
  ExpectWhole(service, "half");
  EXPECT_THAT(service.Log("rollout-0"), HasSubstr("start this worker with --precision bfloat16"));
  Submit(service, "exact", "deterministic: true\n");
  ExpectSucceeds(service, "exact");
  ExpectWhole(service, "exact");
  EXPECT_THAT(service.Log("rollout-1"), HasSubstr("start this worker with --device cpu --precision float32"));

  // With none that can, `why` says how to start one.
  ExpectWaitsFor(service, "rollout-0", "rollout-1");
  ASSERT_EQ(service.Ctl("workers cordon rollout-0 --undo", "admin.json").code, 0);
  ExpectSucceeds(service, "nobody");
  ExpectWhole(service, "nobody");
}

// The reference policy's log-probabilities are a reward server's: of a deterministic job, to the bit.
TEST(MixedWorkersTest, ADeterministicJobIsScoredByTheRewardServersThatCan) {
  LocalServiceOptions options;
  options.up = {"--slots", "32", "--reward-servers", "2"};
  const LocalService service(options, [](const std::string& dir) {
    return WrapInScript(dir, "reward-1", "exec \"$@\" --precision bfloat16");
  });
  MakeSmallModel(service.scratch().path());
  ASSERT_FALSE(testing::Test::HasFailure());
  Submit(service, "exact", "deterministic: true\n");
  ExpectSucceeds(service, "exact");
  ExpectNoneFailed(service, "exact");

  // With none that can, the job waits and `why` says how to start one.
  ExpectWaitsFor(service, "reward-0", "reward-1");
  EXPECT_THAT(service.Log("coordinator"), HasSubstr("reward-1 cannot score it and gets none of it"));
  ASSERT_EQ(service.Ctl("workers cordon reward-0 --undo", "admin.json").code, 0);
  ExpectSucceeds(service, "nobody");
  ExpectNoneFailed(service, "nobody");
}

}  // namespace
}  // namespace rlhf
