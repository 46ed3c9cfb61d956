// Two network namespaces joined by a veth pair: "home", which the test itself moves into, with all that it starts, and
// "away". The link between them can be cut for real. The machine's own network is not touched, and nothing is left when
// the test's process ends.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tests/testing/run_command.h"

namespace rlhf {

// One thread, before it has any other: namespaces are a thread's.
class Namespaces {
 public:
  static constexpr char kHome[] = "10.77.0.1", kAway[] = "10.77.0.2";

  // A way to cut the link, both ways or one; commands of home's shell.
  struct Cut {
    std::string what, begin, end;
    bool loses_answers_only = false;  // what is sent from away still arrives
    void Begin() const { Run(begin); }
    void End() const { Run(end); }
  };

  Namespaces() : before_(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) {
    if (RunCommand("command -v ip && command -v nsenter").code != 0) {
      problem_ = "needs the commands ip (iproute2) and nsenter (util-linux)";
      return;
    }
    if (before_ < 0 || unshare(CLONE_NEWNET) != 0) {
      problem_ = absl::StrCat("needs the right to make network namespaces: ", std::strerror(errno));
      return;
    }
    moved_ = true;
    MakeAway();
    if (!problem_.empty()) return;
    const CommandResult made = RunCommand(
        absl::StrCat("ip link set lo up && ip link add east type veth peer name west netns ", away_, " && ip addr add ",
                     kHome, "/30 dev east && ip link set east up && ", Away("ip link set lo up"), " && ",
                     Away(absl::StrCat("ip addr add ", kAway, "/30 dev west")), " && ", Away("ip link set west up")));
    if (made.code != 0)
      problem_ = absl::StrCat("a veth pair cannot be made: ", absl::StripAsciiWhitespace(made.output));
  }
  ~Namespaces() {
    if (away_ > 0) {
      kill(away_, SIGKILL);
      waitpid(away_, nullptr, 0);
    }
    if (moved_ && setns(before_, CLONE_NEWNET) != 0) ADD_FAILURE() << "cannot go back: " << std::strerror(errno);
    if (before_ >= 0) close(before_);
  }
  Namespaces(const Namespaces&) = delete;
  Namespaces& operator=(const Namespaces&) = delete;

  // Why there are none here; empty when there are.
  const std::string& problem() const { return problem_; }
  // The file that names the other namespace, for nsenter.
  std::string away_file() const { return absl::StrCat("/proc/", away_, "/ns/net"); }
  // A command that runs in the other namespace.
  std::string Away(const std::string& command) const {
    return absl::StrCat("nsenter --net=", away_file(), " ", command);
  }

  // The four ways in which the link can go: at either end, and one direction alone. A route that drops stands for a
  // network that loses what is sent one way: what comes the other way arrives, and is never acknowledged.
  std::vector<Cut> Cuts() const {
    const std::string to_home = absl::StrCat("blackhole ", kHome, "/32"),
                      to_away = absl::StrCat("blackhole ", kAway, "/32");
    return {{"the link is down at home", "ip link set east down", "ip link set east up"},
            {"the link is down far away", Away("ip link set west down"), Away("ip link set west up")},
            {"what goes home is dropped", Away("ip route add " + to_home), Away("ip route del " + to_home)},
            {"what comes from home is dropped", "ip route add " + to_away, "ip route del " + to_away, true}};
  }

 private:
  static void Run(const std::string& command) {
    const CommandResult done = RunCommand(command);
    ASSERT_EQ(done.code, 0) << command << ": " << done.output;
  }
  // A process that does nothing but hold the other namespace; it dies with this one.
  void MakeAway() {
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) != 0) {
      problem_ = absl::StrCat("no pipe: ", std::strerror(errno));
      return;
    }
    away_ = fork();
    if (away_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (unshare(CLONE_NEWNET) != 0 || write(ready[1], "x", 1) != 1) _exit(1);
      while (true) pause();
    }
    close(ready[1]);
    char byte = 0;
    if (read(ready[0], &byte, 1) != 1) problem_ = "needs the right to make a second network namespace";
    close(ready[0]);
  }

  const int before_;
  bool moved_ = false;
  pid_t away_ = -1;
  std::string problem_;
};

}  // namespace rlhf
