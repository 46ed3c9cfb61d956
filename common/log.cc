#include "common/log.h"

#include <ctime>
#include <memory>
#include <utility>

#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rlhf {
namespace {

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

}  // namespace

void InitLogging(const std::string& role, const std::string& instance, const std::string& level, bool json) {
  spdlog::sink_ptr sink;
  if (json) {
    sink = std::make_shared<spdlog::sinks::stdout_sink_mt>();
    sink->set_formatter(std::make_unique<JsonFormatter>(role, instance));
  } else {
    sink = std::make_shared<spdlog::sinks::stdout_color_sink_mt>();
    // A percent sign in a name would be read as a pattern flag.
    const std::string who = absl::StrCat(role, "/", instance);
    std::string escaped;
    for (const char c : who) escaped.append(c == '%' ? 2 : 1, c);
    sink->set_pattern(absl::StrCat("%Y-%m-%d %H:%M:%S.%e %^%l%$ ", escaped, " %v"));
  }
  auto logger = std::make_shared<spdlog::logger>("rlhf", std::move(sink));
  logger->set_level(spdlog::level::from_str(level == "warn" ? "warning" : level));
  // A log that is still in a buffer when the process dies is the one that was needed.
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace rlhf
