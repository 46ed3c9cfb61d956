// JSON-lines logging to stdout through spdlog. Call InitLogging once in main; before that, lines are plain.
#pragma once

#include <string>

#include <spdlog/spdlog.h>

namespace rlhf {

// level: "debug", "info", "warn", "error". Every line carries role and instance.
void InitLogging(const std::string& role, const std::string& instance, const std::string& level, bool json);

}  // namespace rlhf
