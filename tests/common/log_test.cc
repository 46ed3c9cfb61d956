#include "common/log.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {
namespace {

// Logging and killing happen in a child: both are for a whole process.
TEST(LogTest, LinesAreJsonWhateverTheMessage) {
  const ScratchDir dir;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (freopen(dir.File("log").c_str(), "w", stdout) == nullptr) _exit(1);
    InitLogging("learner", "learner-0", "warn", /*json=*/true);
    spdlog::info("not shown");
    spdlog::warn("a \"quoted\"\nline {}", 7);
    const LogScope about({.job_id = "j1", .step = 0});
    spdlog::error("bad bytes \xff");
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  std::ifstream log(dir.File("log"));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(log, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["level"], "warn");
  EXPECT_EQ(lines[0]["role"], "learner");
  EXPECT_EQ(lines[0]["instance"], "learner-0");
  EXPECT_EQ(lines[0]["message"], "a \"quoted\"\nline 7");
  EXPECT_EQ(lines[1]["level"], "error");
  EXPECT_EQ(lines[1]["job"], "j1");
  EXPECT_EQ(lines[1]["step"], 0);
  EXPECT_FALSE(lines[0].contains("job"));
  absl::Time time;
  EXPECT_TRUE(absl::ParseTime(absl::RFC3339_full, lines[0]["time"].get<std::string>(), &time, nullptr));
}

TEST(LogTest, AMessageIsOneLineForPeopleToo) {
  const ScratchDir dir;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (freopen(dir.File("log").c_str(), "w", stdout) == nullptr) _exit(1);
    InitLogging("coordinator", "c%l0", "info", /*json=*/false);
    spdlog::info("cancelled: {}", "done\n2026-11-30 00:00:00.000 info coordinator/c0 all is well\x1b[2J");
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  std::ifstream log(dir.File("log"));
  std::vector<std::string> lines;
  for (std::string line; std::getline(log, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], testing::EndsWith("info coordinator/c%l0 cancelled: done\\n2026-11-30 00:00:00.000 info "
                                          "coordinator/c0 all is well\\x1b[2J"));
}

TEST(LogTest, WhoReadsTheLogAndIsStuckHoldsNobodyUpAndIsToldWhatWasLost) {
  constexpr int kLines = 5000;  // of more than a pipe holds
  int lines[2], said[2], go_on[2];
  ASSERT_EQ(pipe(said), 0);
  ASSERT_EQ(pipe(lines), 0);
  ASSERT_EQ(pipe(go_on), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    dup2(lines[1], 1);
    close(lines[0]);
    close(lines[1]);
    InitLogging("learner", "learner-0", "info", /*json=*/true);
    for (int i = 0; i < kLines; ++i) spdlog::info("line {} {}", i, std::string(i % 7 == 0 ? 6000 : 100, 'x'));
    // All are logged, and nobody has read yet.
    if (write(said[1], "!", 1) != 1) _exit(1);
    char read_all = 0;
    if (read(go_on[0], &read_all, 1) != 1) _exit(1);
    spdlog::info("line after");
    _exit(0);
  }
  close(lines[1]);
  pollfd logged{said[0], POLLIN, 0};
  ASSERT_EQ(poll(&logged, 1, 60'000), 1) << "the process waits for who reads its log";
  std::string text;
  char buffer[1 << 16];
  const auto read_some = [&] {
    const ssize_t n = read(lines[0], buffer, sizeof(buffer));
    if (n > 0) text.append(buffer, static_cast<size_t>(n));
    return n > 0;
  };
  ASSERT_TRUE(read_some());  // the pipe has room for a line
  ASSERT_EQ(write(go_on[1], "!", 1), 1);
  while (read_some()) {
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  int there = 0, lost = 0;
  bool last = false;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    ASSERT_TRUE(json.is_object()) << line;  // whole, each of them
    const std::string message = json.value("message", "");
    there += absl::StartsWith(message, "line ") ? 1 : 0;
    last = last || message == "line after";
    if (const size_t at = message.find("for a while: "); at != std::string::npos)
      lost += std::atoi(message.c_str() + at + sizeof("for a while: ") - 1);
  }
  EXPECT_TRUE(last) << text.substr(text.size() - std::min<size_t>(text.size(), 500));
  EXPECT_GT(lost, 0);
  EXPECT_EQ(there + lost, kLines + 1);
}

// Each finds room for a line, and another has it by the time it writes.
TEST(LogTest, ProcessesThatShareAPipeDoNotWaitForItsReaderEither) {
  constexpr int kProcesses = 8;
  int lines[2], said[2];
  ASSERT_EQ(pipe(lines), 0);
  ASSERT_EQ(pipe(said), 0);
  std::vector<pid_t> children;
  for (int i = 0; i < kProcesses; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    dup2(lines[1], 1);
    close(lines[0]);
    close(lines[1]);
    InitLogging("learner", "learner-0", "info", /*json=*/true);
    for (int line = 0; line < 5000; ++line) spdlog::info("line {} {}", line, std::string(3000, 'x'));
    const bool waits = (fcntl(1, F_GETFL) & O_NONBLOCK) == 0;  // for others it is as it was
    _exit(waits && write(said[1], "!", 1) == 1 ? 0 : 1);
  }
  close(lines[1]);
  char buffer[4096];
  for (int i = 0; i < 3000; ++i) ASSERT_GT(read(lines[0], buffer, sizeof(buffer)), 0);  // at the edge of being full
  for (int i = 0; i < kProcesses; ++i) {
    pollfd logged{said[0], POLLIN, 0};
    EXPECT_EQ(poll(&logged, 1, 60'000), 1) << "a process waits for who reads its log";
    if (HasFailure()) break;
    ASSERT_EQ(read(said[0], buffer, 1), 1);
  }
  close(lines[0]);
  for (const pid_t child : children) {
    if (HasFailure()) kill(child, SIGKILL);
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
}

TEST(LogTest, ATerminalThatSomebodyStoppedHoldsNobodyUp) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(terminal, 0);
  ASSERT_EQ(grantpt(terminal), 0);
  ASSERT_EQ(unlockpt(terminal), 0);
  const int screen = open(ptsname(terminal), O_RDWR | O_NOCTTY);
  ASSERT_GE(screen, 0);
  ASSERT_EQ(tcflow(screen, TCOOFF), 0);  // Ctrl-S
  int said[2], go_on[2];
  ASSERT_EQ(pipe(said), 0);
  ASSERT_EQ(pipe(go_on), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    dup2(screen, 1);
    setenv("TERM", "xterm", 1);
    InitLogging("learner", "learner-0", "info", /*json=*/false);
    for (int i = 0; i < 1000; ++i) spdlog::info("line {} {}", i, std::string(100, 'x'));
    if (write(said[1], "!", 1) != 1) _exit(1);
    char read_all = 0;
    if (read(go_on[0], &read_all, 1) != 1) _exit(1);
    spdlog::warn("line after");
    _exit(0);
  }
  pollfd logged{said[0], POLLIN, 0};
  EXPECT_EQ(poll(&logged, 1, 60'000), 1) << "the process waits for its terminal";
  if (HasFailure()) kill(child, SIGKILL);
  ASSERT_EQ(tcflow(screen, TCOON), 0);  // Ctrl-Q
  ASSERT_EQ(write(go_on[1], "!", 1), 1);
  std::string text;
  char buffer[4096];
  while (!absl::StrContains(text, "line after")) {
    pollfd shown{terminal, POLLIN, 0};
    ASSERT_EQ(poll(&shown, 1, 60'000), 1) << text;
    const ssize_t n = read(terminal, buffer, sizeof(buffer));
    ASSERT_GT(n, 0) << text;
    text.append(buffer, static_cast<size_t>(n));
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  close(screen);
  close(terminal);
  EXPECT_THAT(text, testing::HasSubstr("lines before this one are lost"));
  EXPECT_THAT(text, testing::ContainsRegex("\x1b\\[33m\x1b\\[1mwarning\x1b\\[m learner/learner-0 line after"));
}

TEST(LogTest, AScopeWithinAnotherIsAboutTheSameJobUnlessItSaysAnother) {
  const LogScope outer({.job_id = "j1", .step = 3, .trace_id = "t"});
  {
    const LogScope inner({.sample = "3/0/0"});
    const LogContext about = CurrentLogContext();
    EXPECT_EQ(about.job_id, "j1");
    EXPECT_EQ(about.step, 3);
    EXPECT_EQ(about.sample, "3/0/0");
    EXPECT_EQ(about.trace_id, "t");
  }
  {
    const LogScope other({.job_id = "j2"});
    EXPECT_EQ(CurrentLogContext().job_id, "j2");
    EXPECT_LT(CurrentLogContext().step, 0);
    EXPECT_EQ(CurrentLogContext().trace_id, "");
  }
  EXPECT_EQ(CurrentLogContext().sample, "");
}

}  // namespace
}  // namespace rlhf
