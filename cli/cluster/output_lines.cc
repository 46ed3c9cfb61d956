#include "cli/cluster/output_lines.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <list>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf::cli {
namespace {

constexpr size_t kLongestLine = 64 << 10;  // bytes; a longer one is passed on in pieces
constexpr absl::Duration kLastWords = absl::Seconds(1);

class Lines final : public OutputLines {
 public:
  Lines(int out, int wake) : out_(out), wake_(wake), thread_([this] { Run(); }) {}
  ~Lines() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    Wake();
    thread_.join();
    close(wake_);
  }

  absl::StatusOr<int> Open(const std::string& name) override {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
      return absl::ErrnoToStatus(errno, absl::StrCat("no pipe for the output of ", name));
    // The reading end alone: a process expects that its writes wait.
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    {
      absl::MutexLock lock(&mu_);
      opened_.push_back({ends[0], name, ""});
    }
    Wake();
    return ends[1];
  }

 private:
  struct Source {
    int fd;
    std::string name, partial;
  };

  void Wake() const {
    const uint64_t one = 1;
    (void)!write(wake_, &one, sizeof(one));
  }

  void Run() {
    std::list<Source> sources;
    bool stopping = false;
    absl::Duration last;  // when it ends at the latest
    while (true) {
      {
        absl::MutexLock lock(&mu_);
        sources.splice(sources.end(), opened_);
        if (stopping_ && !stopping) last = Clock::Real()->Now() + kLastWords;
        stopping = stopping_;
      }
      std::vector<pollfd> polled{{wake_, POLLIN, 0}};
      for (const Source& source : sources) polled.push_back({source.fd, POLLIN, 0});
      // At the end: what is there already. Who still writes, somebody's child that was left over, is not waited for.
      const int ready = poll(polled.data(), polled.size(), stopping ? 0 : -1);
      if (stopping && (ready <= 0 || Clock::Real()->Now() > last)) break;
      if (ready <= 0) continue;
      if (polled[0].revents != 0) {
        uint64_t ignored;
        (void)!read(wake_, &ignored, sizeof(ignored));
      }
      size_t at = 1;
      for (auto source = sources.begin(); source != sources.end(); ++at) {
        const bool ended = polled[at].revents != 0 && !Read(&*source);
        if (ended) End(*source);
        source = ended ? sources.erase(source) : std::next(source);
      }
    }
    for (const Source& source : sources) End(source);
  }

  // False at its end.
  bool Read(Source* source) {
    char bytes[16 << 10];
    const ssize_t n = read(source->fd, bytes, sizeof(bytes));
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    source->partial.append(bytes, static_cast<size_t>(n));
    size_t begin = 0;
    for (size_t end = source->partial.find('\n'); end != std::string::npos;
         begin = end + 1, end = source->partial.find('\n', begin)) {
      Emit(source->name, absl::string_view(source->partial).substr(begin, end - begin));
    }
    source->partial.erase(0, begin);
    if (source->partial.size() >= kLongestLine) Emit(source->name, std::exchange(source->partial, ""));
    return true;
  }
  void End(const Source& source) {
    if (!source.partial.empty()) Emit(source.name, source.partial);
    close(source.fd);
  }
  void Emit(const std::string& name, absl::string_view line) const {
    const std::string text = absl::StrCat(name, " | ", line, "\n");
    for (size_t written = 0; written < text.size();) {
      const ssize_t n = write(out_, text.data() + written, text.size() - written);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return;  // nobody reads any more: processes must not wait for that
      written += static_cast<size_t>(n);
    }
  }

  const int out_, wake_;
  absl::Mutex mu_;
  std::list<Source> opened_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace

absl::StatusOr<std::unique_ptr<OutputLines>> OutputLines::To(int fd) {
  const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake < 0) return absl::ErrnoToStatus(errno, "no eventfd for processes' output");
  return std::make_unique<Lines>(fd, wake);
}

}  // namespace rlhf::cli
