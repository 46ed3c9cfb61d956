// The log rings and the process's configuration.
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "coordinator/config.h"
#include "coordinator/data_dir_lock.h"
#include "coordinator/logs.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

v1::AppendLogsRequest Lines(const std::string& job, int n, const std::string& level = "info") {
  v1::AppendLogsRequest request;
  for (int i = 0; i < n; ++i) {
    v1::LogLine* line = request.add_lines();
    line->set_job_id(job);
    line->set_level(level);
    line->set_message(absl::StrCat(job, " ", i));
    line->set_instance_id("somebody else");
  }
  return request;
}

TEST(Logs, KeepsTheNewestLinesOfEachJob) {
  Logs logs({.lines_per_job = 10, .jobs = 2});
  logs.Append("w0", "learner", Lines("a", 25));
  int64_t next = 0;
  auto lines = logs.Read("a", 0, 0, 100, &next);
  ASSERT_EQ(lines.size(), 10u);
  EXPECT_EQ(lines.front().line->message(), "a 15");
  EXPECT_EQ(lines.back().line->message(), "a 24");
  EXPECT_EQ(lines.back().line->instance_id(), "w0") << "who speaks is known from the session";
  // In pages, from where the last one ended.
  lines = logs.Read("a", 0, 0, 4, &next);
  EXPECT_EQ(lines.back().line->message(), "a 18");
  lines = logs.Read("a", next, 0, 100, &next);
  EXPECT_EQ(lines.front().line->message(), "a 19");
  EXPECT_TRUE(logs.Read("a", next, 0, 100, &next).empty());
}

TEST(Logs, ForgetsTheJobThatWasSilentLongest) {
  Logs logs({.lines_per_job = 10, .jobs = 2});
  int64_t next = 0;
  logs.Append("w0", "learner", Lines("a", 1));
  logs.Append("w0", "learner", Lines("b", 1));
  logs.Append("w0", "learner", Lines("a", 1));
  logs.Append("w0", "learner", Lines("c", 1));
  EXPECT_EQ(logs.Read("a", 0, 0, 9, &next).size(), 2u);
  EXPECT_EQ(logs.Read("b", 0, 0, 9, &next).size(), 0u);
  EXPECT_EQ(logs.Read("", 0, 0, 9, &next).size(), 4u) << "the ring of all still has it";
}

TEST(Logs, FiltersByLevelAndCutsWhatIsTooLong) {
  Logs logs({.lines_per_job = 10, .jobs = 2, .message_bytes = 5});
  logs.Append("w0", "learner", Lines("a", 1, "debug"));
  logs.Append("w0", "learner", Lines("a", 1, "error"));
  logs.Append("w0", "learner", Lines("a", 1, "shout"));
  v1::AppendLogsRequest wide;
  wide.add_lines()->set_message("abcdé");  // the cut falls inside the last character
  logs.Append("w0", "learner", wide);
  int64_t next = 0;
  EXPECT_EQ(logs.Read("a", 0, *LogLevel("error"), 9, &next).size(), 1u);
  EXPECT_EQ(logs.Read("", 0, 0, 9, &next).back().line->message(), "abcd");
  EXPECT_FALSE(LogLevel("loud").ok());
}

TEST(Logs, WakesWatchersOnceAnAppend) {
  Logs logs;
  int woken = 0;
  int64_t handle = 0;
  handle = logs.Watch([&] {
    if (++woken == 2) logs.Unwatch(handle);
  });
  for (int i = 0; i < 4; ++i) logs.Append("w0", "learner", Lines("a", 3));
  EXPECT_EQ(woken, 2);
}

TEST(OwnLines, TakesTheCoordinatorsLinesAboutAJobAndDropsTheOldest) {
  InitLogging("coordinator", "c0", "info", /*json=*/true);
  FakeClock clock;
  ManualLoop loop(&clock);
  Logs logs;
  int64_t next = 0;
  {
    const OwnLines own(&loop, &logs, "coordinator", /*waiting=*/3);
    spdlog::info("of no job");
    {
      const LogScope scope({.job_id = "a", .step = 5});
      spdlog::warn("first");
    }
    EXPECT_TRUE(logs.Read("a", 0, 0, 9, &next).empty()) << "the rings are the loop's";
    loop.Run();
    const auto lines = logs.Read("", 0, 0, 9, &next);
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_EQ(lines[0].line->message(), "first");
    EXPECT_EQ(lines[0].line->job_id(), "a");
    EXPECT_EQ(lines[0].line->level(), "warn");
    EXPECT_EQ(lines[0].line->role(), "coordinator");
    EXPECT_EQ(lines[0].line->fields().at("step"), "5");
    const LogScope scope({.job_id = "b"});
    for (int i = 0; i < 5; ++i) spdlog::info("line {}", i);
    loop.Run();
  }
  const auto lines = logs.Read("b", 0, 0, 9, &next);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].line->message(), "line 2");
  EXPECT_THAT(logs.Read("", 0, 0, 9, &next).back().line->message(), HasSubstr("2 lines of the coordinator"));
  const LogScope scope({.job_id = "b"});
  spdlog::info("after the end");
  loop.Run();
  EXPECT_EQ(logs.Read("b", 0, 0, 9, &next).size(), 3u);
}

TEST(Config, FlagsWinOverTheFile) {
  ScratchDir dir;
  ASSERT_TRUE(
      WriteFileDurably(dir.File("c.yaml"), "data-dir: /data\nlease_ms: 500\nheartbeat-ms: 100\ninsecure: true\n").ok());
  const auto config = ParseConfig({"--config", dir.File("c.yaml"), "--lease-ms", "700"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->data_dir, "/data");
  EXPECT_EQ(config->artifact_root, "/data/artifacts");
  EXPECT_EQ(config->lease_ms, 700);
  EXPECT_EQ(config->heartbeat_ms, 100);
  EXPECT_TRUE(config->insecure);
}

TEST(Config, SaysWhatIsWrong) {
  ScratchDir dir;
  const auto message = [](const std::vector<std::string>& arguments) {
    return std::string(ParseConfig(arguments).status().message());
  };
  ASSERT_TRUE(WriteFileDurably(dir.File("typo.yaml"), "data-dir: /data\nleese-ms: 500\n").ok());
  EXPECT_THAT(message({"--config", dir.File("typo.yaml")}),
              HasSubstr("typo.yaml:2:1: unknown key \"leese-ms\"; the nearest is \"lease-ms\""));
  ASSERT_TRUE(WriteFileDurably(dir.File("bad.yaml"), "data-dir: [\n").ok());
  EXPECT_THAT(message({"--config", dir.File("bad.yaml")}), HasSubstr("bad.yaml:"));
  EXPECT_THAT(message({"--insecure"}), HasSubstr("data-dir"));
  EXPECT_THAT(message({"--data-dir", "/d"}), HasSubstr("tls-ca"));
  EXPECT_THAT(message({"--data-dir", "/d", "--insecure", "--api-address", "nowhere"}), HasSubstr("api-address"));
  EXPECT_THAT(message({"--data-dir", "/d", "--insecure", "--heartbeat-ms", "many"}), HasSubstr("heartbeat-ms"));
  EXPECT_THAT(message({"--data-dir", "/d", "--insecure", "--lease-ms", "10"}), HasSubstr("lease-ms"));
  EXPECT_THAT(message({"--data-dir", "/d", "--insecure", "--receive-memory-mb", "64"}), HasSubstr("two messages"));
  EXPECT_THAT(message({"--data-dir", "/d", "--insecure", "--frobnicate"}), HasSubstr("frobnicate"));
  EXPECT_EQ(ParseConfig({"--help"}).status().code(), absl::StatusCode::kCancelled);
}

TEST(DataDirLock, KeepsASecondCoordinatorOut) {
  ScratchDir dir;
  auto first = DataDirLock::Take(dir.path());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = DataDirLock::Take(dir.path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use by another coordinator"));
  first->reset();
  EXPECT_TRUE(DataDirLock::Take(dir.path()).ok());
}

}  // namespace
}  // namespace rlhf::coordinator
