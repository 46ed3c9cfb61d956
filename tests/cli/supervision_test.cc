// What `rlhfctl up` and `rlhfctl ranks` do for the processes that they start: their lines, and who hangs.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/cluster/health_watch.h"
#include "cli/cluster/output_lines.h"
#include "cli/cluster/supervisor.h"
#include "common/durable_file.h"
#include "common/free_port.h"
#include "common/http_endpoint.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;

template <typename Condition>
void Until(Condition condition, const std::string& what) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!condition()) {
    ASSERT_LT(absl::Now(), deadline) << "waited in vain until " << what;
    absl::SleepFor(absl::Milliseconds(20));  // of other processes there is nothing to wait on but the clock
  }
}

// The first of two in a row that nobody has, for two ranks. Below those that the system gives to who asks for any one:
// the second would be somebody's before it is taken.
int TwoFreePorts() {
  int port = 20000 + getpid() % 5000 * 2;
  while (!FreeLoopbackPort(port).ok() || !FreeLoopbackPort(port + 1).ok()) port += 2;
  return port;
}

TEST(OutputLinesTest, WholeLinesAreNamedAndWhatHasNoEndIsPassedOn) {
  ScratchDir dir;
  const int file = open(dir.File("out").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  ASSERT_GE(file, 0);
  const std::string longest(100'000, 'x');
  {
    auto lines = OutputLines::To(file);
    ASSERT_TRUE(lines.ok()) << lines.status();
    const auto one = (*lines)->Open("learner-0"), other = (*lines)->Open("reward-0");
    ASSERT_TRUE(one.ok() && other.ok());
    const auto say = [](int fd, const std::string& text) {
      for (size_t at = 0; at < text.size();) at += static_cast<size_t>(write(fd, text.data() + at, text.size() - at));
    };
    say(*one, "half of ");
    say(*other, "a line\n");
    say(*one, "a line\n\nanother");
    say(*other, longest + "\n");
    close(*one);
    close(*other);
  }
  close(file);
  std::vector<std::string> learner, reward;
  for (const auto line : absl::StrSplit(*ReadFile(dir.File("out")), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(" | ", 1));
    ASSERT_EQ(parts.size(), 2u) << line;
    (parts[0] == "learner-0" ? learner : reward).push_back(parts[1]);
  }
  EXPECT_EQ(learner, std::vector<std::string>({"half of a line", "", "another"}));
  ASSERT_GE(reward.size(), 2u);
  EXPECT_EQ(reward[0], "a line");
  std::string joined;  // a line so long comes in pieces
  for (size_t i = 1; i < reward.size(); ++i) joined += reward[i];
  EXPECT_EQ(joined, longest);
}

TEST(HealthWatchTest, WhoSays503OrTakesAConnectionWithoutAnAnswerHangs) {
  MetricsRegistry metrics("test");
  const auto ready = [] { return std::string(); };
  const auto well = StartHttpEndpoint("127.0.0.1:0", &metrics, ready, ready);
  const auto stuck =
      StartHttpEndpoint("127.0.0.1:0", &metrics, ready, [] { return std::string("the thread stands still"); });
  ASSERT_TRUE(well.ok() && stuck.ok());
  const int deaf = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(deaf, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(deaf, 8), 0);
  ASSERT_EQ(getsockname(deaf, reinterpret_cast<sockaddr*>(&address), &size), 0);
  HealthWatch watch(absl::Milliseconds(20));
  watch.Watch("well", (*well)->port());
  watch.Watch("stuck", (*stuck)->port());
  watch.Watch("deaf", ntohs(address.sin_port));
  watch.Watch("not there", *FreeLoopbackPort());
  Until([&] { return watch.hanging().size() == 2; }, "two hang");
  const std::vector<HealthWatch::Hanging> hanging = watch.hanging();
  EXPECT_EQ(hanging[0].name, "stuck");
  EXPECT_EQ(hanging[0].why, "/healthz says 503: the thread stands still");
  EXPECT_EQ(hanging[1].name, "deaf");
  EXPECT_THAT(hanging[1].why, HasSubstr("does not answer within 5 s"));
  watch.Forget("stuck");
  Until([&] { return watch.hanging()[0].name == "stuck"; }, "it is counted anew");
  close(deaf);
}

TEST(SupervisorTest, WhoDoesNotEndIsKilledAfterItsGrace) {
  ScratchDir dir;
  Supervisor supervisor(absl::Seconds(1), absl::Seconds(1), absl::Seconds(60));
  ProcessSpec spec;
  spec.name = "deaf";
  spec.command = {"/bin/sh", "-c", "trap '' TERM; echo > " + dir.File("ready") + "; while :; do sleep 0.1; done"};
  spec.log_file = dir.File("log");
  ASSERT_TRUE(supervisor.Start(spec).ok());
  Until([&] { return std::filesystem::exists(dir.File("ready")); }, "it hears nothing");
  supervisor.StopAll(absl::Milliseconds(100));  // returns
}

TEST(SupervisorTest, WhoEndsAgainAndAgainWaitsLongerUpToABound) {
  ScratchDir dir;
  Supervisor supervisor(absl::Milliseconds(200), absl::Milliseconds(500), absl::Seconds(60));
  ProcessSpec spec;
  spec.name = "short";
  spec.command = {"/bin/sh", "-c", "date +%s%N >> " + dir.File("starts") + "; exit 7"};
  spec.log_file = dir.File("log");
  ASSERT_TRUE(supervisor.Start(spec).ok());
  int ended = 0;
  const auto starts = [&] {
    std::vector<int64_t> out;
    for (const auto line : absl::StrSplit(ReadFile(dir.File("starts")).value_or(""), '\n', absl::SkipEmpty())) {
      int64_t at = 0;
      if (absl::SimpleAtoi(line, &at)) out.push_back(at);
    }
    return out;
  };
  Until(
      [&] {
        supervisor.Tick([&](const std::string& name, const std::string& how) {
          EXPECT_EQ(name, "short");
          EXPECT_EQ(how, "exit code 7");
          ++ended;
        });
        return starts().size() >= 5;
      },
      "it was started five times");
  EXPECT_GE(ended, 4);
  // A start may come late, but never before its time.
  const std::vector<int64_t> at = starts();
  for (size_t i = 0; i < 4; ++i)
    EXPECT_GE((at[i + 1] - at[i]) / 1'000'000, i == 0 ? 199 : i == 1 ? 399 : 499) << "milliseconds, of start " << i;
}

// Each notes its process, its group and what it was started with.
TEST(RanksTest, EachHasItsOwnDeviceAndPortsAndEndsWithWhatStartedIt) {
  ScratchDir dir;
  const std::string rlhfctl = BinDir() + "/rlhfctl", port = absl::StrCat(TwoFreePorts());
  const std::string note = "echo $$ $(cut -d ' ' -f 5 /proc/$$/stat) $0 $* > " + dir.path() + "/new.$$; mv " +
                           dir.path() + "/new.$$ " + dir.path() + "/${0#--instance=}; exec sleep 60";
  const pid_t ranks = fork();
  if (ranks == 0) {
    execl(rlhfctl.c_str(), rlhfctl.c_str(), "ranks", "--count", "2", "--instance", "pod", "--first-http-port",
          port.c_str(), "--", "/bin/sh", "-c", note.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  const auto noted = [&](const std::string& rank) { return ReadFile(dir.File(rank)).value_or(""); };
  Until([&] { return !noted("pod-0").empty() && !noted("pod-1").empty(); }, "both ranks run");
  EXPECT_THAT(noted("pod-0"), HasSubstr("--device=cuda:0 --address=0.0.0.0:7010 "));
  EXPECT_THAT(noted("pod-1"), HasSubstr("--device=cuda:1 --address=0.0.0.0:7011 "));
  EXPECT_THAT(noted("pod-1"), HasSubstr("--cache-dir=/cache/1"));
  const std::vector<std::string> words = absl::StrSplit(noted("pod-1"), ' ');
  EXPECT_EQ(words[0], words[1]) << "the terminal's Ctrl-C is not for it";
  kill(ranks, SIGKILL);
  int status = 0;
  ASSERT_EQ(waitpid(ranks, &status, 0), ranks);
  // Gone, or dead and not yet waited for by who has it now.
  Until(
      [&] {
        const auto stat = ReadFile("/proc/" + words[0] + "/stat");
        return !stat.ok() || stat->find(") Z ") != std::string::npos || stat->find(") X ") != std::string::npos;
      },
      "its ranks end, too");
}

// Stands for a learner: serves /healthz where it is told to, which says 503 while DIR/NAME.hangs is there, and notes
// that it started.
constexpr char kRank[] = R"(import http.server, os, sys
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
name = os.path.join(sys.argv[1], words["instance"])
open(name + ".starts", "a").write("started\n")
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hangs = os.path.exists(name + ".hangs")
        self.send_response(503 if hangs else 200)
        self.end_headers()
        self.wfile.write(b"stands still\n" if hangs else b"ok\n")
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(words["http-address"].rpartition(":")[2])), Health).serve_forever()
)";

TEST(RanksTest, AHungRankIsSaidOnThePodsPortAndStartedAgainAlone) {
  ScratchDir dir;
  ASSERT_TRUE(WriteFileDurably(dir.File("rank.py"), kRank).ok());
  const int ranks_port = TwoFreePorts(), pod_port = *FreeLoopbackPort();
  const std::string log = dir.File("log"), rlhfctl = BinDir() + "/rlhfctl", pod = absl::StrCat("127.0.0.1:", pod_port);
  const pid_t ranks = fork();
  if (ranks == 0) {
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(out, 1);
    dup2(out, 2);
    execl(rlhfctl.c_str(), rlhfctl.c_str(), "ranks", "--count", "2", "--device", "cpu", "--instance", "pod",
          "--first-http-port", absl::StrCat(ranks_port).c_str(), "--http-address", pod.c_str(), "--health-seconds", "1",
          "--", "/usr/bin/python3", dir.File("rank.py").c_str(), dir.path().c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  const auto health = [&] { return RunCommand("curl -s -w ' %{http_code}' http://" + pod + "/healthz").output; };
  const auto starts = [&](const std::string& rank) { return ReadFile(dir.File(rank + ".starts")).value_or(""); };
  Until([&] { return !starts("pod-0").empty() && !starts("pod-1").empty(); }, "both ranks run");
  Until([&] { return health().find("200") != std::string::npos; }, "the pod is well");
  ASSERT_TRUE(WriteFileDurably(dir.File("pod-1.hangs"), "").ok());
  Until([&] { return health().find("pod-1: /healthz says 503: stands still") != std::string::npos; }, "it is said");
  EXPECT_THAT(health(), HasSubstr(" 503"));
  // Again and again, until the file is gone.
  Until([&] { return starts("pod-1").size() > std::string("started\n").size(); }, "it is started again");
  ASSERT_TRUE(std::filesystem::remove(dir.File("pod-1.hangs")));
  Until([&] { return health().find("200") != std::string::npos; }, "the pod is well again");
  EXPECT_EQ(starts("pod-0"), "started\n");
  EXPECT_THAT(*ReadFile(log), HasSubstr("pod-1 ended (killed, for it hung: /healthz says 503: stands still)"));
  kill(ranks, SIGTERM);
  int status = 0;
  ASSERT_EQ(waitpid(ranks, &status, 0), ranks);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace rlhf::cli
