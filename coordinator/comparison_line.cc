#include "coordinator/comparison_line.h"

#include <map>

#include <nlohmann/json.hpp>

namespace rlhf::coordinator {

std::string ComparisonLine(const v1::Comparison& comparison) {
  const bool second = comparison.preference() == v1::SECOND;
  nlohmann::ordered_json line;
  line["prompt"] = comparison.prompt().text();
  for (const v1::ChatMessage& message : comparison.prompt().messages())
    line["messages"].push_back({{"role", message.role()}, {"content", message.content()}});
  line["chosen"] = (second ? comparison.second() : comparison.first()).text();
  line["rejected"] = (second ? comparison.first() : comparison.second()).text();
  if (comparison.preference() == v1::TIE) line["tie"] = true;
  if (comparison.strength() > 0) line["strength"] = comparison.strength();
  if (!comparison.prompt().category().empty()) line["category"] = comparison.prompt().category();
  std::map<std::string, std::string> tags(comparison.prompt().tags().begin(), comparison.prompt().tags().end());
  for (const auto& [key, value] : comparison.tags()) tags[key] = value;
  if (!tags.empty()) line["tags"] = tags;
  const auto& chosen = second ? comparison.second_ratings() : comparison.first_ratings();
  const auto& rejected = second ? comparison.first_ratings() : comparison.second_ratings();
  for (const auto& [criterion, value] : std::map<std::string, double>(chosen.begin(), chosen.end())) {
    const auto other = rejected.find(criterion);
    if (other != rejected.end()) line["ratings"][criterion] = {value, other->second};
  }
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool IsTrainingComparison(const v1::Comparison& comparison) {
  return !comparison.planted() && comparison.kind() != v1::FEEDBACK_RATING;
}

std::string SftLine(const v1::Comparison& comparison) {
  const std::string& source = comparison.second().source();
  const bool theirs = source == "edited" || (source == "written" && comparison.preference() == v1::SECOND);
  if (comparison.planted() || !theirs || comparison.second().text().empty()) return "";
  nlohmann::ordered_json line;
  line["prompt"] = comparison.prompt().text();
  for (const v1::ChatMessage& message : comparison.prompt().messages())
    line["messages"].push_back({{"role", message.role()}, {"content", message.content()}});
  line["response"] = comparison.second().text();
  if (!comparison.prompt().category().empty()) line["category"] = comparison.prompt().category();
  if (!comparison.prompt().tags().empty()) {
    line["tags"] =
        std::map<std::string, std::string>(comparison.prompt().tags().begin(), comparison.prompt().tags().end());
  }
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace rlhf::coordinator
