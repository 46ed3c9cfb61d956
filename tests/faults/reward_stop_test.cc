// A reward server that is told to end while a user's own scorer does not answer it.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

// A server that greets in HTTP/2, and answers no call.
class Silence {
 public:
  Silence() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
    EXPECT_EQ(listen(fd_, 64), 0);
    socklen_t size = sizeof(at);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size), 0);
    port_ = ntohs(at.sin_port);
    thread_ = std::thread([this] {
      const char settings[9] = {0, 0, 0, 4, 0, 0, 0, 0, 0}, acknowledged[9] = {0, 0, 0, 4, 1, 0, 0, 0, 0};
      for (int peer; (peer = accept(fd_, nullptr, nullptr)) >= 0;) {
        peers_.push_back(peer);
        EXPECT_EQ(send(peer, settings, sizeof(settings), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(settings)));
        EXPECT_EQ(send(peer, acknowledged, sizeof(acknowledged), MSG_NOSIGNAL),
                  static_cast<ssize_t>(sizeof(acknowledged)));
      }
    });
  }
  ~Silence() {
    shutdown(fd_, SHUT_RDWR);  // ends accept
    thread_.join();
    for (const int peer : peers_) close(peer);
    close(fd_);
  }
  int port() const { return port_; }

 private:
  const int fd_;
  int port_ = 0;
  std::vector<int> peers_;
  std::thread thread_;
};

TEST(RewardStop, AScorerThatDoesNotAnswerHoldsItUpFiveSecondsAtMost) {
  const Silence silence;
  LocalServiceOptions options;
  options.faults = true;
  LocalService service(
      options, [](const std::string& dir) { return WrapInScript(dir, "reward-0", "exec \"$@\" --grace-seconds 1"); });
  MakeSmallModel(service.scratch().path());
  const std::string job = service.scratch().File("asked.yaml");
  ASSERT_TRUE(WriteFileDurably(job, absl::StrCat("name: asked\nsample:\n  model: file:model\n"
                                                 "  prompts: file:prompts.jsonl\n  num_prompts: 4\n"
                                                 "  samples_per_prompt: 1\n  sampling: {max_new_tokens: 4}\n"
                                                 "  scorer: {components: [{name: judge, external: {address: "
                                                 "\"127.0.0.1:",
                                                 silence.port(), "\", plaintext: true}}]}\n"))
                  .ok());
  const CommandResult submitted = service.Ctl("submit " + job);
  ASSERT_EQ(submitted.code, 0) << submitted.output;
  LocalService::Until(
      absl::Seconds(60), [&] { return service.Log("reward-0").find("scoring samples of job") != std::string::npos; },
      "it is asked");
  const pid_t pid = service.Pid("reward-0");
  ASSERT_GT(pid, 0);
  ASSERT_EQ(kill(pid, SIGTERM), 0);
  // 1 s of grace and 5 more, and what a busy machine takes; the scorer would have 50.
  LocalService::Until(
      absl::Seconds(20), [&] { return kill(pid, 0) != 0; }, "it ends");
  EXPECT_THAT(ReadFile(service.scratch().File("up.log")).value_or(""), HasSubstr("reward-0 ended (exit code 0)"));
}

}  // namespace
}  // namespace rlhf
