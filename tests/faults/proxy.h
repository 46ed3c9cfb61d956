// A TCP proxy on loopback that can cut and delay what passes through it, each way by itself, and reset its connections.
// What is held back is passed on when the cut heals, as a network does whose packets are sent again.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/durable_file.h"

namespace rlhf {

class Proxy {
 public:
  // Connections to port() go to the coordinator's fleet port, as soon as its ports file (SetPortsFile) names it.
  Proxy() : Proxy(INADDR_LOOPBACK) {}
  // Connections to kAside:port() go to 127.0.0.1:port(): for a server that is told its port and advertises kAside.
  static std::unique_ptr<Proxy> Aside() { return std::unique_ptr<Proxy>(new Proxy(INADDR_LOOPBACK + 1)); }
  static constexpr char kAside[] = "127.0.0.2";
  ~Proxy() {
    stopping_ = true;
    thread_.join();
    close(listener_);
  }
  int port() const { return port_; }
  void SetPortsFile(const std::string& path) {
    absl::MutexLock lock(&mu_);
    ports_file_ = path;
  }
  // To the target (up), and back from it (down).
  void Cut(bool up, bool down) {
    up_.cut = up;
    down_.cut = down;
  }
  void Heal() { Cut(false, false); }
  // Ends every connection there is at once, with a reset at both ends; whatever is under way is lost.
  void Reset() { reset_ = true; }
  void Delay(absl::Duration each_way) { delay_ms_ = absl::ToInt64Milliseconds(each_way); }

 private:
  explicit Proxy(in_addr_t host) : target_is_port_(host != INADDR_LOOPBACK) {
    sockaddr_in at = Loopback(0);
    at.sin_addr.s_addr = htonl(host);
    socklen_t size = sizeof(at);
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&at), size), 0);
    EXPECT_EQ(listen(listener_, 64), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&at), &size), 0);
    port_ = ntohs(at.sin_port);
    thread_ = std::thread([this] { Run(); });
  }

  struct Way {
    std::atomic<bool> cut{false};
  };
  struct Held {
    absl::Time due;
    std::string bytes;
  };
  struct Side {
    int from, to;
    const Way* way;
    std::deque<Held> held;
    size_t bytes = 0;
    bool ended = false;
  };
  struct Pair {
    int client, server;
    Side up, down;
  };
  static constexpr size_t kHeldAtMost = 4 << 20;  // then the sender feels it, as through a full link

  static sockaddr_in Loopback(int port) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(static_cast<uint16_t>(port));
    return at;
  }

  int Target() {
    if (target_is_port_) return port_;
    absl::MutexLock lock(&mu_);
    const auto ports = nlohmann::json::parse(ReadFile(ports_file_).value_or(""), nullptr, false);
    return ports.is_object() ? ports.value("fleet", 0) : 0;
  }

  void Accept() {
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) return;
    const int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at = Loopback(Target());
    if (connect(server, reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0) {
      close(client);
      close(server);
      return;
    }
    auto pair = std::make_unique<Pair>();
    pair->client = client;
    pair->server = server;
    pair->up = {client, server, &up_, {}};
    pair->down = {server, client, &down_, {}};
    pairs_.push_back(std::move(pair));
  }

  // False when the connection is over.
  bool Pump(Side& side) {
    char buffer[1 << 16];
    while (side.bytes < kHeldAtMost && !side.ended) {
      const ssize_t n = recv(side.from, buffer, sizeof(buffer), MSG_DONTWAIT);
      if (n > 0) {
        side.held.push_back(
            {absl::Now() + absl::Milliseconds(delay_ms_.load()), std::string(buffer, static_cast<size_t>(n))});
        side.bytes += static_cast<size_t>(n);
      } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        break;
      } else {
        side.ended = true;
      }
    }
    while (!side.way->cut && !side.held.empty() && side.held.front().due <= absl::Now()) {
      std::string& bytes = side.held.front().bytes;
      const ssize_t n = send(side.to, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0) return errno == EAGAIN || errno == EINTR;
      side.bytes -= static_cast<size_t>(n);
      bytes.erase(0, static_cast<size_t>(n));
      if (bytes.empty()) side.held.pop_front();
    }
    // A way that is cut hides the end, too.
    return !(side.ended && side.held.empty() && !side.way->cut);
  }

  void Run() {
    while (!stopping_) {
      std::vector<pollfd> waiting = {{listener_, POLLIN, 0}};
      for (const auto& pair : pairs_) {
        if (!pair->up.ended && pair->up.bytes < kHeldAtMost) waiting.push_back({pair->client, POLLIN, 0});
        if (!pair->down.ended && pair->down.bytes < kHeldAtMost) waiting.push_back({pair->server, POLLIN, 0});
      }
      poll(waiting.data(), waiting.size(), 5);
      if (waiting.front().revents != 0) Accept();
      if (reset_.exchange(false)) {
        for (const auto& pair : pairs_) {
          const linger at_once{.l_onoff = 1, .l_linger = 0};
          for (const int end : {pair->client, pair->server}) {
            setsockopt(end, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
            close(end);
          }
        }
        pairs_.clear();
      }
      std::erase_if(pairs_, [this](const auto& pair) {
        const bool up = Pump(pair->up), down = Pump(pair->down);
        if (up && down) return false;
        close(pair->client);
        close(pair->server);
        return true;
      });
    }
    for (const auto& pair : pairs_) {
      close(pair->client);
      close(pair->server);
    }
  }

  const bool target_is_port_;
  int listener_ = -1, port_ = 0;
  absl::Mutex mu_;
  std::string ports_file_ ABSL_GUARDED_BY(mu_);
  std::atomic<int64_t> delay_ms_{0};
  Way up_, down_;
  std::atomic<bool> stopping_{false}, reset_{false};
  std::vector<std::unique_ptr<Pair>> pairs_;  // the thread's
  std::thread thread_;
};

}  // namespace rlhf
