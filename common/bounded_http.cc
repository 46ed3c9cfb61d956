#include "common/bounded_http.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "common/clock.h"

namespace rlhf {
namespace {

constexpr absl::Duration kAnswerSilence = absl::Seconds(5);  // of who takes an answer
constexpr absl::Duration kLookedAtStop = absl::Milliseconds(250);
constexpr absl::Duration kAtStop = absl::Seconds(1);  // for what is under way

// Of a socket that does not block.
class BoundedStream final : public httplib::Stream {
 public:
  BoundedStream(int fd, SSL* tls, const HttpBounds& bounds, absl::FunctionRef<bool()> stopping)
      : fd_(fd), tls_(tls), bounds_(bounds), stopping_(stopping) {}

  bool Handshake() {
    if (tls_ == nullptr) return true;
    deadline_ = Clock::Real()->Now() + bounds_.request;
    while (true) {
      const int done = SSL_accept(tls_);
      if (done == 1) return true;
      if (!WaitForTls(done)) return false;
    }
  }
  // False when none begins in time.
  bool AwaitRequest() {
    deadline_ = Clock::Real()->Now() + bounds_.idle;
    idle_ = true;
    if (begin_ == end_ && !Fill()) return false;
    idle_ = false;
    left_ = bounds_.request_bytes;
    deadline_ = Clock::Real()->Now() + bounds_.request;
    answering_ = false;
    return true;
  }
  // Nothing more is to be read from it: where the next request would begin is not known.
  bool broken() const { return broken_; }

  bool is_readable() const override {
    return begin_ < end_ || (tls_ != nullptr && SSL_pending(tls_) > 0) || Wait(POLLIN, deadline_);
  }
  bool is_writable() const override { return Wait(POLLOUT, deadline_); }
  ssize_t read(char* data, size_t size) override {
    if (left_ == 0 || (begin_ == end_ && !Fill())) {
      broken_ = true;
      return -1;
    }
    const size_t n = std::min({size, left_, end_ - begin_});
    std::memcpy(data, buffer_ + begin_, n);
    begin_ += n;
    left_ -= n;
    return static_cast<ssize_t>(n);
  }
  ssize_t write(const char* data, size_t size) override {
    if (!std::exchange(answering_, true)) deadline_ = Clock::Real()->Now() + bounds_.answer;
    size_t done = 0;
    while (done < size) {
      const ssize_t n = tls_ == nullptr
                            ? send(fd_, data + done, size - done, MSG_NOSIGNAL)
                            : SSL_write(tls_, data + done, static_cast<int>(std::min<size_t>(size - done, 1 << 20)));
      if (n > 0) {
        done += static_cast<size_t>(n);
      } else if (!(tls_ == nullptr ? WaitForSocket(POLLOUT) : WaitForTls(static_cast<int>(n)))) {
        broken_ = true;
        return -1;
      }
    }
    return static_cast<ssize_t>(size);
  }
  // Nobody asks.
  void get_remote_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  void get_local_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  socket_t socket() const override { return fd_; }

 private:
  bool Fill() {
    while (true) {
      const ssize_t n =
          tls_ == nullptr ? recv(fd_, buffer_, sizeof(buffer_), 0) : SSL_read(tls_, buffer_, sizeof(buffer_));
      if (n > 0) {
        begin_ = 0;
        end_ = static_cast<size_t>(n);
        return true;
      }
      if (tls_ == nullptr && n == 0) return false;
      if (!(tls_ == nullptr ? WaitForSocket(POLLIN) : WaitForTls(static_cast<int>(n)))) return false;
    }
  }
  // After a call that said that it cannot go on yet, or failed.
  bool WaitForSocket(short events) const {
    if (errno == EINTR) return true;
    return (errno == EAGAIN || errno == EWOULDBLOCK) && Wait(events, deadline_);
  }
  bool WaitForTls(int result) const {
    const int error = SSL_get_error(tls_, result);
    ERR_clear_error();
    if (error == SSL_ERROR_WANT_READ) return Wait(POLLIN, deadline_);
    return error == SSL_ERROR_WANT_WRITE && Wait(POLLOUT, deadline_);
  }
  bool Wait(short events, absl::Duration deadline) const {
    absl::Duration until = std::min(Clock::Real()->Now() + (answering_ ? kAnswerSilence : bounds_.silence), deadline);
    while (true) {
      if (stopping_() && idle_) return false;
      if (stopping_()) until = std::min(until, stop_by_ = std::min(stop_by_, Clock::Real()->Now() + kAtStop));
      const absl::Duration left = std::min(until - Clock::Real()->Now(), kLookedAtStop);
      if (left <= absl::ZeroDuration()) return false;
      pollfd ready{fd_, events, 0};
      const int found = poll(&ready, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
      if (found != 0) return found > 0 || errno == EINTR;
    }
  }

  const int fd_;
  SSL* const tls_;
  const HttpBounds& bounds_;
  const absl::FunctionRef<bool()> stopping_;
  absl::Duration deadline_;
  mutable absl::Duration stop_by_ = absl::InfiniteDuration();
  size_t left_ = 0;   // of the request
  bool idle_ = true;  // nobody has begun to ask for anything: at a stop it is not waited for
  bool answering_ = false, broken_ = false;
  char buffer_[4096];
  size_t begin_ = 0, end_ = 0;  // of what is in the buffer
};

}  // namespace

void ServeBounded(int fd, SSL_CTX* tls, const HttpBounds& bounds, absl::FunctionRef<bool()> stopping,
                  absl::FunctionRef<bool(httplib::Stream& stream, bool last, bool* closed)> request) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  const std::unique_ptr<SSL, void (*)(SSL*)> session(tls == nullptr ? nullptr : SSL_new(tls), SSL_free);
  if (session != nullptr) SSL_set_fd(session.get(), fd);
  if (tls == nullptr || session != nullptr) {
    BoundedStream stream(fd, session.get(), bounds, stopping);
    bool good = stream.Handshake();
    for (int i = 1; good && i <= bounds.requests && !stopping() && stream.AwaitRequest(); ++i) {
      bool closed = false;
      good = request(stream, i == bounds.requests, &closed) && !closed && !stream.broken();
    }
    // Says that nothing was cut off; waits for no answer.
    if (good && session != nullptr) SSL_shutdown(session.get());
  }
  ERR_clear_error();
  shutdown(fd, SHUT_RDWR);
  close(fd);
}

}  // namespace rlhf
