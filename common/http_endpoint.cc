#include "common/http_endpoint.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include <httplib.h>

#include "absl/strings/str_cat.h"
#include "common/bounded_http.h"
#include "common/host_port.h"
#include "common/http_bind.h"
#include "common/task_queue.h"

namespace rlhf {
namespace {

constexpr char kPlainText[] = "text/plain; charset=utf-8";
constexpr char kExposition[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr int kThreads = 4;
constexpr size_t kWaiting = 64;  // connections; more wait in the kernel

class HttplibEndpoint final : public HttpEndpoint {
 public:
  HttplibEndpoint(MetricsRegistry* metrics, std::function<std::string()> ready, std::function<std::string()> alive)
      : ready_(std::move(ready)), alive_(std::move(alive)) {
    server_.new_task_queue = [] { return new BoundedTaskQueue(kThreads, kWaiting); };
    server_.set_payload_max_length(1 << 16);
    server_.Get("/metrics", [metrics](const httplib::Request&, httplib::Response& response) {
      response.set_content(metrics->Text(), kExposition);
    });
    server_.Get("/healthz",
                [this](const httplib::Request&, httplib::Response& response) { Answer(alive_, "ok\n", &response); });
    server_.Get("/readyz",
                [this](const httplib::Request&, httplib::Response& response) { Answer(ready_, "ready\n", &response); });
  }
  ~HttplibEndpoint() override {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const HostPort& address) {
    port_ = BindHttp(address, &server_);
    if (port_ <= 0) {
      return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", JoinHostPort(address.host, address.port),
                                                 ": the port is taken or the address is not of this host"));
    }
    thread_ = std::thread([this] {
      server_.listen_after_bind();
      ended_ = true;
    });
    // stop() of a server that does not run yet does nothing, and joining would then wait for ever.
    while (!server_.is_running() && !ended_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return absl::OkStatus();
  }
  int port() const override { return port_; }

 private:
  static void Answer(const std::function<std::string()>& why_not, const char* yes, httplib::Response* response) {
    const std::string reason = why_not ? why_not() : "";
    response->status = reason.empty() ? 200 : 503;
    response->set_content(reason.empty() ? yes : absl::StrCat(reason, "\n"), kPlainText);
  }

  const std::function<std::string()> ready_, alive_;
  // A scrape every few seconds needs no kept connection, and a kept one would hold a thread and delay stopping.
  BoundedHttpServer<httplib::Server> server_{HttpBounds{.requests = 1}};
  std::thread thread_;
  std::atomic<bool> ended_{false};
  int port_ = -1;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(const std::string& address, MetricsRegistry* metrics,
                                                                  std::function<std::string()> ready) {
  return StartHttpEndpoint(address, metrics, std::move(ready), nullptr);
}

absl::StatusOr<std::unique_ptr<HttpEndpoint>> StartHttpEndpoint(const std::string& address, MetricsRegistry* metrics,
                                                                std::function<std::string()> ready,
                                                                std::function<std::string()> alive) {
  const absl::StatusOr<HostPort> parsed = ParseHostPort(address, "metrics address");
  if (!parsed.ok()) return parsed.status();
  auto endpoint = std::make_unique<HttplibEndpoint>(metrics, std::move(ready), std::move(alive));
  if (absl::Status status = endpoint->Listen(*parsed); !status.ok()) return status;
  return endpoint;
}

}  // namespace rlhf
