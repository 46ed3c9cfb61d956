// A whole service of real processes, as `rlhfctl up` starts it, in a folder of its own.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {

struct LocalServiceOptions {
  // The binaries with failpoints, armed through Arm; roles keep evidence, and what ended is started again at once.
  bool faults = false;
  std::vector<std::string> up = {"--slots", "32"};  // more of `rlhfctl up`
  std::vector<std::pair<std::string, std::string>> environment;
  std::function<void(const std::string& cluster_dir)> prepare;  // before anything starts
};

class LocalService {
 public:
  using WordsOf = std::function<std::vector<std::string>(const std::string& cluster_dir)>;
  // more: words of `rlhfctl up` that need the folder's name.
  explicit LocalService(LocalServiceOptions options = {}, const WordsOf& more = nullptr)
      : options_(std::move(options)) {
    const std::string program = BinDir() + "/rlhfctl";
    std::vector<std::string> words = {program, "up", "--dir", Dir()};
    if (options_.faults) {
      words.insert(words.end(), {"--bin-dir", FaultsBinDir(), "--evidence"});
      const std::pair<const char*, const char*> defaults[] = {
          {"--restart-seconds", "0.2"},
          {"--restart-seconds-most", "1"},
          {"--heartbeat-ms", "1000"},
          {"--shm-dir", "none"}};  // faults of the network are to reach the weights
      for (const auto& [flag, value] : defaults) {
        if (std::find(options_.up.begin(), options_.up.end(), flag) == options_.up.end())
          words.insert(words.end(), {flag, value});
      }
      options_.environment.emplace_back("RLHF_FAILPOINTS_DIR", FailpointsDir());
    }
    words.insert(words.end(), options_.up.begin(), options_.up.end());
    for (const std::string& word : more ? more(Dir()) : std::vector<std::string>()) words.push_back(word);
    if (options_.prepare) options_.prepare(Dir());
    words_ = std::move(words);
    Start();
  }
  // Kills everything at once and waits until it is gone; Start begins again from the folder.
  void PowerOff() {
    kill(up_, SIGKILL);
    waitpid(up_, nullptr, 0);
    up_ = -1;
    Until(
        absl::Seconds(10), [&] { return Find([](const std::string&) { return true; }).empty(); }, "all processes end");
    std::filesystem::remove(Dir() + "/ready");
  }
  void Start() {
    up_ = fork();
    if (up_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);  // a test that is killed leaves nothing behind
      for (const auto& [name, value] : options_.environment) setenv(name.c_str(), value.c_str(), 1);
      freopen(dir_.File("up.log").c_str(), "a", stdout);
      dup2(1, 2);
      std::vector<char*> argv;
      for (std::string& word : words_) argv.push_back(word.data());
      argv.push_back(nullptr);
      execv(argv[0], argv.data());
      _exit(127);
    }
    Until(
        absl::Seconds(90), [&] { return std::filesystem::exists(Dir() + "/ready"); }, "the service is ready");
  }
  ~LocalService() {
    if (testing::Test::HasFailure() && std::filesystem::exists(Dir() + "/logs")) {
      for (const auto& log : std::filesystem::directory_iterator(Dir() + "/logs")) {
        std::fprintf(stderr, "--- %s\n%s\n", log.path().c_str(),
                     RunCommand("tail -n 40 " + log.path().string()).output.c_str());
      }
    }
    if (up_ <= 0) return;
    kill(up_, SIGTERM);
    waitpid(up_, nullptr, 0);
  }

  static std::string FaultsBinDir() {
    const char* dir = std::getenv("RLHF_FAULTS_BIN_DIR");
    return dir == nullptr ? "build/release/bin-faults" : dir;
  }
  std::string Dir() const { return std::filesystem::path(dir_.File("cluster")).lexically_normal().string(); }
  std::string FailpointsDir() const { return dir_.File("failpoints"); }
  const ScratchDir& scratch() const { return dir_; }
  CommandResult Ctl(const std::string& arguments, const std::string& context = "client.json") const {
    return RunCommand(BinDir() + "/rlhfctl --context " + Dir() + "/" + context + " " + arguments);
  }
  nlohmann::json Job(const std::string& name) const {
    const CommandResult result = Ctl("--output json get " + name);
    return nlohmann::json::parse(result.output, nullptr, false);
  }
  int64_t StepOf(const std::string& name) const {
    const nlohmann::json job = Job(name);
    return job.is_object() ? std::atoll(job.value("step", "0").c_str()) : 0;
  }
  std::string StateOf(const std::string& name) const {
    const nlohmann::json job = Job(name);
    return job.is_object() ? job.value("state", "") : "";
  }
  std::string Log(const std::string& instance) const {
    return ReadFile(Dir() + "/logs/" + instance + ".log").value_or("");
  }
  // A metric's value as the instance exposes it; -1 while it has none.
  double Metric(const std::string& instance, const std::string& series) const {
    const auto ports =
        nlohmann::json::parse(ReadFile(Dir() + "/ports/" + instance + ".json").value_or(""), nullptr, false);
    if (!ports.is_object()) return -1;
    const std::string text =
        RunCommand(absl::StrCat("curl -s http://127.0.0.1:", ports.value("http", 0), "/metrics")).output;
    const size_t at = text.find("\n" + series + " ");
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + series.size() + 2);
  }

  // Processes of a role, by their command lines.
  std::vector<pid_t> Pids(const std::string& binary) const {
    return Find([&](const std::string& line) { return line.find(binary) != std::string::npos; });
  }
  // The process of an instance ("coordinator", "learner-0", …); -1 while there is none.
  pid_t Pid(const std::string& instance) const {
    const std::vector<pid_t> pids = Find([&](const std::string& line) {
      return instance == "coordinator" ? line.find("rlhf-coordinator") != std::string::npos
                                       : line.find("--instance " + instance + " ") != std::string::npos;
    });
    return pids.empty() ? -1 : pids.front();
  }

  // Arms a failpoint (see common/failpoint.h) in one instance, or in "any".
  void Arm(const std::string& instance, const std::string& name, const std::string& action) const {
    ASSERT_TRUE(MakeDirs(FailpointsDir() + "/" + instance).ok());
    std::filesystem::remove(FileOf(instance, name) + ".fired");
    ASSERT_TRUE(WriteFileDurably(FileOf(instance, name), action).ok());
  }
  void Disarm(const std::string& instance, const std::string& name) const {
    std::filesystem::remove(FileOf(instance, name));
  }
  bool Fired(const std::string& instance, const std::string& name) const {
    return std::filesystem::exists(FileOf(instance, name) + ".fired");
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
  std::string FileOf(const std::string& instance, const std::string& name) const {
    return absl::StrCat(FailpointsDir(), "/", instance, "/", absl::StrReplaceAll(name, {{"/", "."}}));
  }
  template <typename Matches>
  std::vector<pid_t> Find(Matches matches) const {
    std::vector<pid_t> pids;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const pid_t pid = static_cast<pid_t>(std::atoi(entry.path().filename().c_str()));
      if (pid <= 0) continue;
      std::ifstream file(entry.path() / "cmdline");
      std::ostringstream words;
      words << file.rdbuf();  // of a process that ends meanwhile nothing, where an iterator would throw
      std::string line = words.str();
      std::replace(line.begin(), line.end(), '\0', ' ');
      if (line.find(Dir() + "/") != std::string::npos && line.find("rlhfctl") == std::string::npos && matches(line))
        pids.push_back(pid);
    }
    return pids;
  }

  LocalServiceOptions options_;
  std::vector<std::string> words_;
  ScratchDir dir_;
  pid_t up_ = -1;
};

}  // namespace rlhf
