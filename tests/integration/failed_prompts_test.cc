// A prompt that no worker can generate from, in a service of real processes: a job ends by it, or goes on without it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

TEST(FailedPromptsTest, APromptLongerThanTheContextIsReplacedOrEndsTheJob) {
  const LocalService service;
  const std::string dir = service.scratch().path();
  MakeSmallModel(dir);
  ASSERT_FALSE(testing::Test::HasFailure());
  std::string endless;
  for (int i = 0; i < 3000; ++i) endless += "the cat and the dog ";
  const std::string prompts = dir + "/prompts.jsonl";
  ASSERT_TRUE(
      WriteFileDurably(prompts, absl::StrCat(*ReadFile(prompts), "{\"prompt\":\"", endless, "\",\"id\":\"endless\"}\n"))
          .ok());
  const auto run = [&](const SmallJob& job, const std::string& more) {
    const std::string path = WriteSmallJob(dir, job);
    ASSERT_TRUE(WriteFileDurably(path, *ReadFile(path) + more).ok());
    const CommandResult submitted = service.Ctl("submit " + path);
    ASSERT_EQ(submitted.code, 0) << submitted.output;
    LocalService::Until(
        absl::Seconds(150),
        [&] {
          const std::string state = service.StateOf(job.name);
          return state == "SUCCEEDED" || state == "FAILED";
        },
        job.name + " ends");
  };
  SmallJob lenient;
  lenient.name = "lenient";
  lenient.steps = 12;  // of 8 prompts: all of the file's 41 come, twice
  run(lenient, "  on_failed: FAILED_SAMPLE_REPLACES_PROMPT\n");
  ExpectWhole(service, lenient, /*evidence=*/false);
  EXPECT_THAT(service.Log("coordinator"), AllOf(HasSubstr("prompt endless failed: "), HasSubstr(" takes its place")));

  SmallJob strict = lenient;
  strict.name = "strict";
  run(strict, "");
  const nlohmann::json job = service.Job(strict.name);
  EXPECT_EQ(job.value("state", ""), "FAILED");
  EXPECT_THAT(job.dump(), AllOf(HasSubstr("SAMPLE_FAILED"), HasSubstr("prompt endless has")));
  const CommandResult checked = service.Ctl("ledger strict --check", "admin.json");
  EXPECT_EQ(checked.code, 0) << checked.output;
}

// One worker holds 40 tokens at a time, the other as many as the model's context: 64.
TEST(FailedPromptsTest, APromptThatOneWorkerIsTooSmallForIsLeftToAnother) {
  LocalServiceOptions options;
  options.up = {"--slots", "8", "--rollout-workers", "2"};
  const LocalService service(
      options, [](const std::string& dir) { return WrapInScript(dir, "rollout-0", "exec \"$@\" --max-tokens 40"); });
  const std::string dir = service.scratch().path();
  MakeSmallModel(dir);
  ASSERT_FALSE(testing::Test::HasFailure());
  std::string prompts;
  for (int i = 0; i < 8; ++i)
    absl::StrAppend(&prompts, "{\"prompt\":\"", std::string(45, static_cast<char>('A' + i)), "\",\"id\":\"long\"}\n");
  ASSERT_TRUE(WriteFileDurably(dir + "/prompts.jsonl", prompts).ok());
  SmallJob job;
  job.steps = 4;
  const CommandResult submitted = service.Ctl("submit " + WriteSmallJob(dir, job));
  ASSERT_EQ(submitted.code, 0) << submitted.output;
  LocalService::Until(
      absl::Seconds(150),
      [&] {
        const std::string state = service.StateOf(job.name);
        return state == "SUCCEEDED" || state == "FAILED";
      },
      "the job ends");
  ExpectWhole(service, job, /*evidence=*/false);
  EXPECT_THAT(service.Log("coordinator"), HasSubstr("rollout-0 has not the room for a prompt and is passed over"));
  const nlohmann::json counts =
      nlohmann::json::parse(service.Ctl("--output json ledger " + job.name).output, nullptr, false)["counts"];
  EXPECT_EQ(counts.value("failed", "0"), "0");
}

}  // namespace
}  // namespace rlhf
