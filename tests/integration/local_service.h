// A whole service of real processes, as `rlhfctl up` starts it, in a folder of its own.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {

class LocalService {
 public:
  LocalService() {
    up_ = fork();
    if (up_ == 0) {
      freopen(dir_.File("up.log").c_str(), "w", stdout);
      dup2(1, 2);
      const std::string program = BinDir() + "/rlhfctl", dir = Dir();
      execl(program.c_str(), program.c_str(), "up", "--dir", dir.c_str(), "--slots", "32", static_cast<char*>(nullptr));
      _exit(127);
    }
    Until(
        absl::Seconds(60), [&] { return std::filesystem::exists(Dir() + "/ready"); }, "the service is ready");
  }
  ~LocalService() {
    if (testing::Test::HasFailure() && std::filesystem::exists(Dir() + "/logs")) {
      for (const auto& log : std::filesystem::directory_iterator(Dir() + "/logs")) {
        std::fprintf(stderr, "--- %s\n%s\n", log.path().c_str(),
                     RunCommand("tail -n 25 " + log.path().string()).output.c_str());
      }
    }
    kill(up_, SIGTERM);
    waitpid(up_, nullptr, 0);
  }

  std::string Dir() const { return dir_.File("cluster"); }
  const ScratchDir& scratch() const { return dir_; }
  CommandResult Ctl(const std::string& arguments) const {
    return RunCommand(BinDir() + "/rlhfctl --context " + Dir() + "/client.json " + arguments);
  }
  nlohmann::json Job(const std::string& name) const {
    const CommandResult result = Ctl("--output json get " + name);
    return nlohmann::json::parse(result.output, nullptr, false);
  }
  // Processes of a role, by their command lines.
  std::vector<pid_t> Pids(const std::string& binary) const {
    std::vector<pid_t> pids;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const pid_t pid = static_cast<pid_t>(std::atoi(entry.path().filename().c_str()));
      if (pid <= 0) continue;
      std::ifstream file(entry.path() / "cmdline");
      const std::string line((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
      if (line.find(binary) != std::string::npos && line.find(Dir()) != std::string::npos &&
          line.find("rlhfctl") == std::string::npos)
        pids.push_back(pid);
    }
    return pids;
  }
  template <typename Condition>
  static void Until(absl::Duration patience, Condition condition, const std::string& what) {
    const absl::Time deadline = absl::Now() + patience;
    while (!condition()) {
      ASSERT_LT(absl::Now(), deadline) << "waited in vain until " << what;
      absl::SleepFor(absl::Milliseconds(50));  // of other processes there is nothing to wait on but the clock
    }
  }

 private:
  ScratchDir dir_;
  pid_t up_ = -1;
};

}  // namespace rlhf
