#include "common/metrics.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include "common/bounded_http.h"
#include "common/host_port.h"
#include "tests/testing/ipv6.h"

namespace rlhf {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST(MetricsTest, SameNameAndLabelsAreTheSameSeries) {
  MetricsRegistry metrics("learner");
  auto& first = metrics.Counter("steps_total", "Steps.", {{"job", "a"}});
  EXPECT_EQ(&first, &metrics.Counter("steps_total", "Steps.", {{"job", "a"}}));
  EXPECT_NE(&first, &metrics.Counter("steps_total", "Steps.", {{"job", "b"}}));
  first.Increment(3);
  metrics.Histogram("seconds", "Time.", {1, 2}).Observe(1.5);
  EXPECT_THAT(metrics.Text(), AllOf(HasSubstr("# TYPE steps_total counter"), HasSubstr("steps_total{job=\"a\"} 3\n"),
                                    HasSubstr("seconds_bucket{le=\"2\"} 1\n"), HasSubstr("seconds_count 1\n")));
}

TEST(MetricsTest, ProcessAndBuild) {
  MetricsRegistry metrics("learner");
  const std::string text = metrics.Text();
  EXPECT_THAT(text,
              testing::ContainsRegex("rlhf_build_info\\{role=\"learner\",version=\"0\\.1\\.0\\+[0-9a-f]+\"\\} 1"));
  for (const char* name : {"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"}) {
    const size_t at = text.find(std::string("\n") + name + " ");
    ASSERT_NE(at, std::string::npos) << name;
    EXPECT_GT(std::stod(text.substr(text.find(' ', at) + 1)), 0) << name;
  }
  const auto value = [&text](const std::string& name) {
    return std::stod(text.substr(text.find("\n" + name + " ") + name.size() + 2));
  };
  EXPECT_GT(value("process_resident_memory_bytes"), 1e6) << "bytes, not pages";
  EXPECT_NEAR(value("process_cpu_seconds_total"), static_cast<double>(clock()) / CLOCKS_PER_SEC, 0.5) << "not ticks";
  EXPECT_GT(value("process_start_time_seconds"), 1.6e9) << "since the epoch, not since the machine started";
}

TEST(MetricsTest, RemovesSeriesByLabels) {
  MetricsRegistry metrics("coordinator");
  metrics.Gauge("samples", "Samples.", {{"job", "a"}, {"state", "queued"}}).Set(1);
  metrics.Gauge("samples", "Samples.", {{"job", "a"}, {"state", "leased"}}).Set(2);
  metrics.Gauge("samples", "Samples.", {{"job", "b"}, {"state", "leased"}}).Set(3);
  metrics.Remove("samples", {{"job", "a"}});
  metrics.Remove("no such family", {});
  metrics.Gauge("samples", "Samples.", {{"job", "c"}, {"state", "leased"}}).Set(5);
  metrics.Remove("samples", {{"job", "c"}, {"state", "leased"}});
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("job=\"c\"")));
  EXPECT_THAT(metrics.Text(), AllOf(Not(HasSubstr("job=\"a\"")), HasSubstr("samples{job=\"b\",state=\"leased\"} 3")));
  metrics.Gauge("samples", "Samples.", {{"job", "a"}, {"state", "queued"}}).Set(4);
  EXPECT_THAT(metrics.Text(), HasSubstr("samples{job=\"a\",state=\"queued\"} 4"));
}

TEST(MetricsTest, RefreshesBeforeEveryExposition) {
  MetricsRegistry metrics("coordinator");
  int runs = 0;
  metrics.OnCollect([&] { metrics.Gauge("runs", "Runs.").Set(++runs); });
  EXPECT_THAT(metrics.Text(), HasSubstr("\nruns 1\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("\nruns 2\n"));
}

TEST(HttpEndpointTest, ServesMetricsAndProbes) {
  MetricsRegistry metrics("coordinator");
  std::string not_ready = "the store is being read";
  auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, [&] { return not_ready; });
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  httplib::Client client("127.0.0.1", (*endpoint)->port());
  const auto text = client.Get("/metrics");
  ASSERT_TRUE(text);
  EXPECT_EQ(text->status, 200);
  EXPECT_THAT(text->get_header_value("Content-Type"), HasSubstr("version=0.0.4"));
  EXPECT_THAT(text->body, HasSubstr("rlhf_build_info"));
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  const auto waiting = client.Get("/readyz");
  EXPECT_EQ(waiting->status, 503);
  EXPECT_EQ(waiting->body, "the store is being read\n");
  not_ready.clear();
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  EXPECT_EQ(client.Get("/other")->status, 404);
}

int ConnectToEndpoint(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

// A kubelet asks a pod at its address, whichever family that is of.
TEST(HttpEndpointTest, EveryAddressIsOfBothFamilies) {
  MetricsRegistry metrics("coordinator");
  for (const char* every : {"0.0.0.0:0", "[::]:0", ":0"}) {
    const auto endpoint = HttpEndpoint::Start(every, &metrics, {});
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    for (const char* host : {"127.0.0.1", "::1"}) {
      if (host[0] == ':' && !HasIpv6()) continue;
      const auto alive = httplib::Client(host, (*endpoint)->port()).Get("/healthz");
      ASSERT_TRUE(alive) << every << " at " << host;
      EXPECT_EQ(alive->status, 200);
    }
    const std::string taken = "0.0.0.0:" + std::to_string((*endpoint)->port());
    EXPECT_TRUE(absl::IsUnavailable(HttpEndpoint::Start(taken, &metrics, {}).status())) << every;
  }
  const auto one = HttpEndpoint::Start("127.0.0.1:0", &metrics, {});
  ASSERT_TRUE(one.ok());
  if (HasIpv6()) {
    EXPECT_FALSE(httplib::Client("::1", (*one)->port()).Get("/healthz"));
  }
}

TEST(HostPortTest, AddressesOfIpv6HaveBrackets) {
  EXPECT_EQ(JoinHostPort("10.0.0.1", 7010), "10.0.0.1:7010");
  EXPECT_EQ(JoinHostPort("worker.example", 7010), "worker.example:7010");
  EXPECT_EQ(JoinHostPort("fd00::7", 7010), "[fd00::7]:7010");
  EXPECT_EQ(JoinHostPort("[fd00::7]", 7010), "[fd00::7]:7010");
  const auto parsed = ParseHostPort(JoinHostPort("fd00::7", 7010), "an address");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->host, "fd00::7");
  EXPECT_EQ(parsed->port, 7010);
}

// A scanner's, or a scraper's that died: what asks for a request behind them is answered.
TEST(HttpEndpointTest, ConnectionsThatSayNothingHoldNobodyUpForLong) {
  MetricsRegistry metrics("coordinator");
  const auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, {});
  ASSERT_TRUE(endpoint.ok());
  std::vector<int> silent;
  for (int i = 0; i < 24; ++i) silent.push_back(ConnectToEndpoint((*endpoint)->port()));
  httplib::Client client("127.0.0.1", (*endpoint)->port());
  client.set_read_timeout(20, 0);  // they would take a minute with two threads and five seconds each
  const auto alive = client.Get("/healthz");
  ASSERT_TRUE(alive);
  EXPECT_EQ(alive->status, 200);
  for (const int one : silent) close(one);
}

// Whoever reaches the port could fill this process's memory.
TEST(HttpEndpointTest, RequestsWithoutEndAreCutOff) {
  MetricsRegistry metrics("coordinator");
  const auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, {});
  ASSERT_TRUE(endpoint.ok());
  const std::string much(64 << 10, 'a');
  struct Kind {
    const char* what;
    std::string head, piece;
  };
  for (const Kind& kind :
       {Kind{"chunks", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "10000\r\n" + much + "\r\n"},
        Kind{"a body of no length", "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", much},
        Kind{"headers", "GET /metrics HTTP/1.1\r\n", "X: " + std::string(4000, 'a') + "\r\n"}}) {
    const int fd = ConnectToEndpoint((*endpoint)->port());
    EXPECT_EQ(send(fd, kind.head.data(), kind.head.size(), MSG_NOSIGNAL), static_cast<ssize_t>(kind.head.size()));
    size_t sent = 0;
    while (sent < 64u << 20) {
      const ssize_t n = send(fd, kind.piece.data(), kind.piece.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += static_cast<size_t>(n);
    }
    EXPECT_LT(sent, 16u << 20) << kind.what << ": what the sockets hold, and not all there is";
    close(fd);
  }
  httplib::Client client("127.0.0.1", (*endpoint)->port());
  EXPECT_EQ(client.Get("/healthz")->status, 200);
}

TEST(HttpEndpointTest, RequestsThatTrickleInHoldNobodyUpForLong) {
  MetricsRegistry metrics("coordinator");
  const auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, {});
  ASSERT_TRUE(endpoint.ok());
  std::atomic<bool> stop{false};
  std::vector<std::thread> slow;
  std::vector<int> sockets;
  for (int i = 0; i < 8; ++i) {
    sockets.push_back(ConnectToEndpoint((*endpoint)->port()));
    slow.emplace_back([&stop, fd = sockets.back()] {
      const std::string head = "GET /metrics HTTP/1.1\r\nX: ";
      if (send(fd, head.data(), head.size(), MSG_NOSIGNAL) < 0) return;
      while (!stop && send(fd, "a", 1, MSG_NOSIGNAL) == 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // they have all threads
  httplib::Client client("127.0.0.1", (*endpoint)->port());
  client.set_read_timeout(20, 0);
  const auto alive = client.Get("/healthz");
  ASSERT_TRUE(alive) << "kept out";
  EXPECT_EQ(alive->status, 200);
  stop = true;
  for (std::thread& thread : slow) thread.join();
  for (const int fd : sockets) close(fd);
}

// It has two minutes for it; a process that is told to stop does not wait for that.
TEST(HttpEndpointTest, WhoTakesAnAnswerSlowlyDelaysNoStop) {
  MetricsRegistry metrics("coordinator");
  for (int i = 0; i < 4000; ++i)
    metrics.Gauge("rlhf_large", "", {{"label", std::string(4000, 'x') + std::to_string(i)}});
  auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, {});
  ASSERT_TRUE(endpoint.ok());
  const int fd = ConnectToEndpoint((*endpoint)->port());
  const std::string head = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_EQ(send(fd, head.data(), head.size(), MSG_NOSIGNAL), static_cast<ssize_t>(head.size()));
  std::string piece(300'000, '\0');
  ASSERT_GT(recv(fd, piece.data(), piece.size(), 0), 0);
  std::atomic<bool> ended{false};
  std::thread slow([&] {
    while (!ended && recv(fd, piece.data(), piece.size(), 0) > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
  });
  const auto started = std::chrono::steady_clock::now();
  endpoint->reset();
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(4));
  ended = true;
  slow.join();
  close(fd);
}

// Of all that wait for a thread, one after the other would be a long time.
TEST(ServeBoundedTest, ConnectionsOnWhichNobodyAsksDelayNoStop) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> tls(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  for (SSL_CTX* const context : {static_cast<SSL_CTX*>(nullptr), tls.get()}) {
    for (const bool at_once : {true, false}) {  // stopping as it begins, or while it waits
      int ends[2];
      ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
      HttpBounds bounds;
      bounds.idle = bounds.silence = bounds.request = absl::Minutes(1);
      int asked = 0;
      const auto started = std::chrono::steady_clock::now();
      ServeBounded(
          ends[0], context, bounds, [&] { return at_once || ++asked > 2; },
          [](httplib::Stream&, bool, bool*) { return false; });
      EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::milliseconds(900))
          << (context == nullptr ? "plain" : "TLS") << (at_once ? ", at once" : ", while it waits");
      close(ends[1]);
    }
  }
}

// Whoever asks to be told to go on would have the time of an answer for its body.
TEST(HttpEndpointTest, NobodyIsToldToGoOn) {
  MetricsRegistry metrics("coordinator");
  const auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, {});
  ASSERT_TRUE(endpoint.ok());
  const int fd = ConnectToEndpoint((*endpoint)->port());
  const std::string head = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n";
  ASSERT_EQ(send(fd, head.data(), head.size(), MSG_NOSIGNAL), static_cast<ssize_t>(head.size()));
  std::string answer;
  char buffer[512];
  for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, static_cast<size_t>(n));
  close(fd);
  EXPECT_THAT(answer, Not(HasSubstr("100 Continue")));
}

TEST(HttpEndpointTest, RefusesATakenPortAndABadAddress) {
  MetricsRegistry metrics("coordinator");
  auto first = HttpEndpoint::Start("127.0.0.1:0", &metrics, {});
  ASSERT_TRUE(first.ok());
  const std::string same = "127.0.0.1:" + std::to_string((*first)->port());
  const auto second = HttpEndpoint::Start(same, &metrics, {});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(same));
  for (const char* bad : {"", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:65536"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(HttpEndpoint::Start(bad, &metrics, {}).status())) << bad;
  }
}

}  // namespace
}  // namespace rlhf
