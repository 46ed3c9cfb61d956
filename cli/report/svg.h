// Line charts as inline SVG that read well in light and dark.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace rlhf::cli {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x, y; finite
};
// A chart of 420 × 220 units with axes, ticks and, for several series, a legend. Empty series are left out.
std::string LineChart(const std::string& title, const std::string& x_label, const std::vector<Series>& series);
std::string HtmlEscape(const std::string& text);

}  // namespace rlhf::cli
