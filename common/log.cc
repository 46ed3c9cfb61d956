#include "common/log.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <spdlog/details/os.h>
#include <spdlog/formatter.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/sink.h>
#include <nlohmann/json.hpp>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/printable.h"

namespace rlhf {
namespace {

thread_local const LogContext* current_context = nullptr;
thread_local bool observing = false;

std::string LevelName(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace:
    case spdlog::level::debug:
      return "debug";
    case spdlog::level::info:
      return "info";
    case spdlog::level::warn:
      return "warn";
    default:
      return "error";
  }
}

class Observers {
 public:
  int64_t Add(std::function<void(const LogRecord&)> observer) {
    absl::MutexLock lock(&mu_);
    observers_.emplace(++last_, std::move(observer));
    return last_;
  }
  void Remove(int64_t handle) {
    absl::MutexLock lock(&mu_);
    observers_.erase(handle);
  }
  void Tell(const spdlog::details::log_msg& message) {
    if (observing) return;
    observing = true;
    {
      absl::MutexLock lock(&mu_);
      if (!observers_.empty()) {
        const LogRecord record{absl::FromChrono(message.time), LevelName(message.level),
                               std::string(message.payload.data(), message.payload.size()), CurrentLogContext()};
        for (const auto& [handle, observer] : observers_) observer(record);
      }
    }
    observing = false;
  }

 private:
  absl::Mutex mu_;
  int64_t last_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<int64_t, std::function<void(const LogRecord&)>> observers_ ABSL_GUARDED_BY(mu_);
};

// Never destroyed: a thread may log while the process ends.
Observers& TheObservers() {
  static Observers* const observers = new Observers;
  return *observers;
}

// A description of this process alone, whose writes never wait: of a pipe or a terminal that several write to, the room
// that one sees may be another's by the time it writes. The shared one is left as it is, for the others count on that.
int OpenedAnew(int fd) {
  struct stat status {};
  if (fstat(fd, &status) != 0 || !(S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode))) return fd;
  const int own = open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  return own < 0 ? fd : own;  // another user's
}

// Escape sequences of terminals; spdlog's own colours.
absl::string_view ColourOf(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace:
      return "\033[37m";
    case spdlog::level::debug:
      return "\033[36m";
    case spdlog::level::info:
      return "\033[32m";
    case spdlog::level::warn:
      return "\033[33m\033[1m";
    case spdlog::level::critical:
      return "\033[1m\033[41m";
    default:
      return "\033[31m\033[1m";
  }
}
constexpr absl::string_view kNoColour = "\033[m";

// Writes to a descriptor that may be a pipe whose reader is stuck, or a terminal that somebody stopped: what it does
// not take in time is lost, counted, and said before the next line that it takes. A line is never broken off for
// another.
class LossySink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  LossySink(int fd, bool colours) : fd_(OpenedAnew(fd)), own_(fd_ != fd), colours_(colours) {}
  ~LossySink() override {
    if (own_) close(fd_);
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    if (!Drain()) {
      ++lost_;
      return;
    }
    if (lost_ > 0) {
      const std::string text =
          absl::StrCat("the log's reader did not read for a while: ", lost_, " lines before this one are lost");
      spdlog::details::log_msg said(message.logger_name, spdlog::level::warn, text);
      Append(said);
      lost_ = 0;
    }
    Append(message);
    Drain();
  }
  void flush_() override {}

 private:
  void Append(const spdlog::details::log_msg& message) {
    spdlog::memory_buf_t buffer;
    formatter_->format(message, buffer);
    const absl::string_view line(buffer.data(), buffer.size());
    const size_t from = message.color_range_start, to = message.color_range_end;
    if (!colours_ || from >= to || to > line.size()) return void(absl::StrAppend(&pending_, line));
    absl::StrAppend(&pending_, line.substr(0, from), ColourOf(message.level), line.substr(from, to - from), kNoColour);
    absl::StrAppend(&pending_, line.substr(to));
  }
  // Writes what is pending. False where not all of it was taken.
  bool Drain() {
    size_t written = 0;
    // A reader that is only slow has a moment; a stuck one has had it.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(stuck_ ? 0 : kPatienceMs);
    while (written < pending_.size()) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      pollfd ready{fd_, POLLOUT, 0};
      const int found = poll(&ready, 1, std::max(0, static_cast<int>(left.count())));
      if (found < 0 && errno == EINTR) continue;
      stuck_ = found == 0;
      if (stuck_) break;
      // A pipe that is ready takes PIPE_BUF at once; where it could not be opened anew, a write of more would wait.
      const ssize_t n = write(fd_, pending_.data() + written, std::min<size_t>(pending_.size() - written, PIPE_BUF));
      if (n > 0) {
        written += static_cast<size_t>(n);
      } else if (n < 0 && errno == EAGAIN) {  // there is some room, and too little: poll would not wait for more
        stuck_ = left.count() <= 0;
        if (stuck_) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      } else if (n == 0 || errno != EINTR) {
        written = pending_.size();  // nobody will read it
      }
    }
    pending_.erase(0, written);
    return pending_.empty();
  }

  static constexpr int kPatienceMs = 100;
  const int fd_;
  const bool own_, colours_;
  std::string pending_;  // the end of a line, or of two
  bool stuck_ = false;
  uint64_t lost_ = 0;
};

class ObserverSink final : public spdlog::sinks::sink {
 public:
  void log(const spdlog::details::log_msg& message) override { TheObservers().Tell(message); }
  void flush() override {}
  void set_pattern(const std::string& /*pattern*/) override {}
  void set_formatter(std::unique_ptr<spdlog::formatter> /*formatter*/) override {}
};

// spdlog's pattern language cannot escape JSON, so lines are made here.
class JsonFormatter final : public spdlog::formatter {
 public:
  JsonFormatter(std::string role, std::string instance) : role_(std::move(role)), instance_(std::move(instance)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto level = spdlog::level::to_string_view(message.level);
    nlohmann::ordered_json line;
    line["time"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::FromChrono(message.time), absl::UTCTimeZone());
    line["level"] = message.level == spdlog::level::warn ? "warn" : std::string(level.data(), level.size());
    line["role"] = role_;
    line["instance"] = instance_;
    line["message"] = std::string(message.payload.data(), message.payload.size());
    if (const LogContext* about = current_context; about != nullptr) {
      if (!about->job_id.empty()) line["job"] = about->job_id;
      if (about->step >= 0) line["step"] = about->step;
      if (!about->sample.empty()) line["sample"] = about->sample;
      if (about->group_epoch >= 0) line["group_epoch"] = about->group_epoch;
      if (!about->trace_id.empty()) line["trace_id"] = about->trace_id;
    }
    const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    out.append(text.data(), text.data() + text.size());
    out.push_back('\n');
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>(role_, instance_);
  }

 private:
  const std::string role_;
  const std::string instance_;
};

// For people. A message is one line, whatever somebody wrote into what it tells.
class TextFormatter final : public spdlog::formatter {
 public:
  explicit TextFormatter(std::string pattern) : pattern_(std::move(pattern)), inner_(pattern_) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string text = Printable(absl::string_view(message.payload.data(), message.payload.size()));
    spdlog::details::log_msg line = message;
    line.payload = spdlog::string_view_t(text.data(), text.size());
    inner_.format(line, out);
    message.color_range_start = line.color_range_start;
    message.color_range_end = line.color_range_end;
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<TextFormatter>(pattern_); }

 private:
  const std::string pattern_;
  spdlog::pattern_formatter inner_;
};

}  // namespace

LogScope::LogScope(LogContext context) : outer_(current_context), context_(std::move(context)) {
  if (outer_ != nullptr) {
    if (context_.job_id.empty()) context_.job_id = outer_->job_id;
    if (context_.job_id == outer_->job_id) {
      if (context_.step < 0) context_.step = outer_->step;
      if (context_.sample.empty()) context_.sample = outer_->sample;
      if (context_.group_epoch < 0) context_.group_epoch = outer_->group_epoch;
      if (context_.trace_id.empty()) context_.trace_id = outer_->trace_id;
    }
  }
  current_context = &context_;
}
LogScope::~LogScope() {
  current_context = outer_;
}
LogContext CurrentLogContext() {
  return current_context == nullptr ? LogContext() : *current_context;
}

int64_t AddLogObserver(std::function<void(const LogRecord&)> observer) {
  return TheObservers().Add(std::move(observer));
}
void RemoveLogObserver(int64_t handle) {
  TheObservers().Remove(handle);
}

void InitLogging(const std::string& role, const std::string& instance, const std::string& level, bool json) {
  spdlog::sink_ptr sink;
  if (json) {
    sink = std::make_shared<LossySink>(STDOUT_FILENO, /*colours=*/false);
    sink->set_formatter(std::make_unique<JsonFormatter>(role, instance));
  } else {
    const bool colours = isatty(STDOUT_FILENO) != 0 && spdlog::details::os::is_color_terminal();
    sink = std::make_shared<LossySink>(STDOUT_FILENO, colours);
    // A percent sign in a name would be read as a pattern flag.
    const std::string who = absl::StrCat(role, "/", instance);
    std::string escaped;
    for (const char c : who) escaped.append(c == '%' ? 2 : 1, c);
    sink->set_formatter(std::make_unique<TextFormatter>(absl::StrCat("%Y-%m-%d %H:%M:%S.%e %^%l%$ ", escaped, " %v")));
  }
  const std::vector<spdlog::sink_ptr> sinks{std::move(sink), std::make_shared<ObserverSink>()};
  auto logger = std::make_shared<spdlog::logger>("rlhf", sinks.begin(), sinks.end());
  logger->set_level(spdlog::level::from_str(level));
  // A log that is still in a buffer when the process dies is the one that was needed.
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace rlhf
