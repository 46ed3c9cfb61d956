#include "cli/cluster/health_watch.h"

#include <httplib.h>

#include <future>
#include <utility>

#include "absl/strings/str_cat.h"

namespace rlhf::cli {
namespace {

constexpr time_t kAnswerSeconds = 5;

struct Answer {
  std::string why;  // it hangs; empty when it does not
  bool own_word = false;
};

Answer Ask(int port) {
  httplib::Client client("127.0.0.1", port);
  client.set_connection_timeout(kAnswerSeconds, 0);
  client.set_read_timeout(kAnswerSeconds, 0);
  const httplib::Result answer = client.Get("/healthz");
  if (!answer && answer.error() == httplib::Error::Connection) return {};
  if (!answer) return {absl::StrCat("/healthz does not answer within ", kAnswerSeconds, " s")};
  if (answer->status == 200) return {};
  return {absl::StrCat("/healthz says ", answer->status, ": ", answer->body.substr(0, answer->body.find('\n'))), true};
}

}  // namespace

HealthWatch::HealthWatch(absl::Duration every) : every_(every), thread_([this] { Run(); }) {}

HealthWatch::~HealthWatch() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void HealthWatch::Watch(const std::string& name, int port) {
  absl::MutexLock lock(&mu_);
  watched_.push_back({port, {name, ""}, 0});
}

void HealthWatch::Forget(const std::string& name) {
  absl::MutexLock lock(&mu_);
  for (Watched& one : watched_) {
    if (one.state.name != name) continue;
    one.state = {name, ""};
    ++one.life;
  }
}

std::vector<HealthWatch::Hanging> HealthWatch::hanging() const {
  std::vector<Hanging> found;
  absl::MutexLock lock(&mu_);
  for (const Watched& one : watched_) {
    if (one.state.times > 0) found.push_back(one.state);
  }
  return found;
}

void HealthWatch::Run() {
  while (true) {
    std::vector<Watched> asked;
    {
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), every_)) return;
      asked = watched_;
    }
    std::vector<std::future<Answer>> answers;
    for (const Watched& one : asked) answers.push_back(std::async(std::launch::async, Ask, one.port));
    for (size_t i = 0; i < asked.size(); ++i) {
      Answer answer = answers[i].get();
      absl::MutexLock lock(&mu_);
      if (watched_[i].life != asked[i].life) continue;
      Hanging& state = watched_[i].state;
      state.times = answer.why.empty() ? 0 : answer.own_word == state.own_word ? state.times + 1 : 1;
      state.own_word = answer.own_word;
      state.why = std::move(answer.why);
    }
  }
}

}  // namespace rlhf::cli
