// Prometheus metrics, passed in rather than global, and the plain HTTP endpoint that serves them with the probes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace prometheus {
class Registry;
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace rlhf {

// Thread-safe. Returned references live as long as the registry.
class MetricsRegistry {
 public:
  using Labels = std::map<std::string, std::string>;
  explicit MetricsRegistry(const std::string& role);  // adds rlhf_build_info and process_* metrics
  ~MetricsRegistry();
  prometheus::Counter& Counter(const std::string& name, const std::string& help, const Labels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help, const std::vector<double>& buckets,
                                   const Labels& labels = {});
  // Removes the series of a gauge or counter family that carry all of these labels.
  void Remove(const std::string& name, const Labels& labels);
  // Runs before every exposition, to refresh gauges that mirror state.
  void OnCollect(std::function<void()> refresh);
  std::string Text() const;  // exposition format 0.0.4

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Serves /metrics, /healthz (200 while the process lives) and /readyz (200 or 503 with the reason).
class HttpEndpoint {
 public:
  struct Response {
    int status = 200;
    std::string content_type = "text/plain; charset=utf-8";
    std::string body;
  };
  // address "127.0.0.1:0" binds a free port. `ready` returns an empty string, or why not.
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(const std::string& address, MetricsRegistry* metrics,
                                                             std::function<std::string()> ready);
  virtual ~HttpEndpoint() = default;  // stops and joins
  virtual int port() const = 0;
};

}  // namespace rlhf
