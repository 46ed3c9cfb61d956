// The gold score of each category in windows of steps, and where it fell. Pure logic.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

inline constexpr char kGoldPrefix[] = "gold/";  // of a step's values: and a category

class GoldWindows {
 public:
  // Of so many steps each.
  explicit GoldWindows(int window) : size_(static_cast<size_t>(window)) {}
  // The window that ends with the last of a job's `steps`, of which all but the last were added before or are given up.
  // Its value of a category is the mean over the prompts of its steps. Steps of earlier releases do not say how many
  // those are: it is then the mean over steps, if each has the category.
  void Add(const std::vector<v1::MonitorStep>& steps);

  struct Fall {
    std::string category;
    double from = 0, to = 0;  // of an earlier window, of the last one
  };
  // The largest fall, by category, of the last window below an earlier one that is more than `bound` and more than
  // chance: the best of many windows of some hundred answers lies above the last by noise alone. More than chance: a
  // permutation test of the two windows' prompts (Pitman 1937; by its normal approximation) finds it at a share of the
  // 1 % that a job in which nothing falls may raise, however long it is: the job's window w has 2/(w·(w + 1)) of that,
  // divided by categories and earlier windows (Bonferroni).
  // Where windows do not say how many prompts they have, `bound` alone decides. Takes time for each window, but only
  // while a category is below its best by more than `bound`.
  std::vector<Fall> FallsOver(double bound) const;

 private:
  struct Window {
    double value = 0, best = 0;       // best: of this one and those before
    double prompts = 0, squares = 0;  // of the differences from the value, summed; no prompts: not known
  };
  static std::optional<Window> Of(const std::string& category, absl::Span<const v1::MonitorStep> steps);
  static bool MoreThanChance(const Window& from, const Window& to, double questions);

  size_t size_;
  std::vector<std::map<std::string, Window>> windows_;  // by the step that ends it; the first `size_` - 1 are empty
};

}  // namespace rlhf::coordinator
