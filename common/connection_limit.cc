#include "common/connection_limit.h"

#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <limits>
#include <memory>

#include <prometheus/counter.h>

#include "absl/synchronization/mutex.h"
#include "common/log.h"

namespace rlhf {
namespace {

constexpr int64_t kFewestSpare = 64, kMostSpare = 1024;
constexpr int64_t kSaidEvery = 1000;

std::atomic<int> first_refused_descriptor{
    std::numeric_limits<int>::max()};  // descriptors from this one on are for other things
std::atomic<int64_t> refused_connections{0};

}  // namespace

template <typename Accept>
int AcceptWithin(socklen_t* length, bool nonblocking, const Accept& next) {
  const socklen_t room = length == nullptr ? 0 : *length;
  while (true) {
    if (length != nullptr) *length = room;
    const int fd = next();
    if (fd >= 0 && fd < first_refused_descriptor) return fd;
    if (fd < 0) {
      // As if nobody were there: whoever is gets looked at when the next one comes.
      if ((errno == EMFILE || errno == ENFILE) && nonblocking) errno = EAGAIN;
      return fd;
    }
    close(fd);
    if (refused_connections++ % kSaidEvery == 0) {
      spdlog::warn(
          "a connection was refused, {} by now: {} descriptors are taken, and the others are for files; raise "
          "`ulimit -n`, or find out who holds so many connections",
          refused_connections.load(), fd);
    }
  }
}

void LimitConnections() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const int64_t most = static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, std::numeric_limits<int>::max()));
  const int64_t spare = std::min(most / 2, std::clamp(most / 8, kFewestSpare, kMostSpare));
  first_refused_descriptor = static_cast<int>(most - spare);
}

int64_t ConnectionsRefused() {
  return refused_connections;
}

void ExportConnectionsRefused(MetricsRegistry* metrics) {
  prometheus::Counter& counter =
      metrics->Counter("rlhf_connections_refused_total",
                       "Connections closed at once, for the descriptors left are for files (ulimit -n).");
  metrics->OnCollect([&counter, mutex = std::make_shared<absl::Mutex>()] {
    const absl::MutexLock lock(mutex.get());  // scrapes may be at once
    const auto refused = static_cast<double>(ConnectionsRefused());
    if (refused > counter.Value()) counter.Increment(refused - counter.Value());
  });
}

}  // namespace rlhf

// In the place of the C library's: what gRPC (accept4) and the HTTP listeners (accept) take connections with, and the
// only place to refuse one. The kernel gives the lowest descriptor that is free, so one that is large says how many are
// taken.
extern "C" __attribute__((visibility("default"))) int accept4(int listener, sockaddr* address, socklen_t* length,
                                                              int flags) {
  using Accept4 = int (*)(int, sockaddr*, socklen_t*, int);
  static const auto next = reinterpret_cast<Accept4>(dlsym(RTLD_NEXT, "accept4"));
  return rlhf::AcceptWithin(length, (flags & SOCK_NONBLOCK) != 0,
                            [=] { return next(listener, address, length, flags); });
}

extern "C" __attribute__((visibility("default"))) int accept(int listener, sockaddr* address, socklen_t* length) {
  using Accept = int (*)(int, sockaddr*, socklen_t*);
  static const auto next = reinterpret_cast<Accept>(dlsym(RTLD_NEXT, "accept"));
  return rlhf::AcceptWithin(length, false, [=] { return next(listener, address, length); });
}
