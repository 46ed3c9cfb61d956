#include "coordinator/jobs/gold_windows.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace rlhf::coordinator {
namespace {

constexpr double kFalseAlarms = 0.01;  // of a job in which nothing falls

}  // namespace

std::optional<GoldWindows::Window> GoldWindows::Of(const std::string& category,
                                                   absl::Span<const v1::MonitorStep> steps) {
  Window window;
  size_t with = 0, counted = 0;
  double means = 0, sum = 0;
  for (const v1::MonitorStep& step : steps) {
    const auto mean = step.values().find(absl::StrCat(kGoldPrefix, category));
    if (mean == step.values().end()) continue;
    ++with;
    means += mean->second;
    const auto spread = step.gold().find(category);
    if (spread == step.gold().end()) continue;
    ++counted;
    window.prompts += static_cast<double>(spread->second.prompts());
    sum += static_cast<double>(spread->second.prompts()) * spread->second.mean();
  }
  if (counted < with) {
    if (with < steps.size()) return std::nullopt;
    window.value = means / static_cast<double>(with);
    window.prompts = 0;
    return window;
  }
  if (window.prompts == 0) return std::nullopt;
  window.value = sum / window.prompts;
  for (const v1::MonitorStep& step : steps) {
    const auto spread = step.gold().find(category);
    if (spread == step.gold().end()) continue;
    const double off = spread->second.mean() - window.value;
    window.squares += spread->second.squares() + static_cast<double>(spread->second.prompts()) * off * off;
  }
  return window;
}

void GoldWindows::Add(const std::vector<v1::MonitorStep>& steps) {
  windows_.resize(steps.size() - 1);
  std::map<std::string, Window>& added = windows_.emplace_back();
  if (steps.size() < size_) return;
  const absl::Span<const v1::MonitorStep> last = absl::MakeConstSpan(steps).last(size_);
  for (const v1::MonitorStep& step : last) {
    for (const auto& [name, value] : step.values()) {
      absl::string_view category = name;
      if (!absl::ConsumePrefix(&category, kGoldPrefix) || added.contains(std::string(category))) continue;
      std::optional<Window> window = Of(std::string(category), last);
      if (!window.has_value()) continue;
      window->best = window->value;
      for (size_t i = windows_.size() - 1; i-- > 0;) {
        const auto before = windows_[i].find(std::string(category));
        if (before == windows_[i].end()) continue;
        window->best = std::max(window->best, before->second.best);
        break;
      }
      added.emplace(category, *window);
    }
  }
}

bool GoldWindows::MoreThanChance(const Window& from, const Window& to, double questions) {
  if (from.prompts == 0 || to.prompts == 0) return true;
  // Which window a prompt is in, drawn at random: the variance of the difference of means is that of all values, times
  // 1/n + 1/m. As it has the fall itself in it, windows in which nothing varies are not certain however few they are.
  const double all = from.prompts + to.prompts, fall = from.value - to.value;
  const double squares = from.squares + to.squares + from.prompts * to.prompts / all * fall * fall;
  if (all < 3 || squares <= 0) return false;
  const double deviation = std::sqrt(squares / (all - 1) * (1 / from.prompts + 1 / to.prompts));
  return std::erfc(fall / deviation / std::sqrt(2.0)) / 2 < kFalseAlarms / questions;
}

std::vector<GoldWindows::Fall> GoldWindows::FallsOver(double bound) const {
  std::vector<Fall> falls;
  if (windows_.size() < size_) return falls;
  const auto windows = static_cast<double>(windows_.size() - size_ + 1);
  const double earlier_ones = static_cast<double>(windows_.back().size()) * (windows - 1);
  // The sum of 2/(w·(w + 1)) over all windows but the first is 1.
  const double questions = earlier_ones * windows * (windows + 1) / 2;
  for (const auto& [category, last] : windows_.back()) {
    if (last.best - last.value <= bound) continue;
    Fall fall{.category = category, .from = last.value, .to = last.value};
    for (size_t i = 0; i + 1 < windows_.size(); ++i) {
      const auto earlier = windows_[i].find(category);
      if (earlier == windows_[i].end() || earlier->second.value <= fall.from) continue;
      if (earlier->second.value - last.value > bound && MoreThanChance(earlier->second, last, questions))
        fall.from = earlier->second.value;
    }
    if (fall.from > fall.to) falls.push_back(fall);
  }
  return falls;
}

}  // namespace rlhf::coordinator
