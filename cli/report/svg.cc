#include "cli/report/svg.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace rlhf::cli {
namespace {

constexpr double kWidth = 420, kHeight = 220, kLeft = 52, kRight = 10, kTop = 28, kBottom = 34;
constexpr size_t kMostDots = 12;
constexpr const char* kColours[] = {"var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)"};

// A step of 1, 2 or 5 times a power of ten that gives about `count` ticks.
double NiceStep(double span, int count) {
  const double raw = span / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (power * factor >= raw) return power * factor;
  }
  return power * 10;
}

}  // namespace

std::string HtmlEscape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string LineChart(const std::string& title, const std::string& x_label, const std::vector<Series>& series) {
  double x_min = std::numeric_limits<double>::infinity(), x_max = -x_min, y_min = x_min, y_max = -x_min;
  for (const Series& one : series) {
    for (const auto& [x, y] : one.points) {
      x_min = std::min(x_min, x);
      x_max = std::max(x_max, x);
      y_min = std::min(y_min, y);
      y_max = std::max(y_max, y);
    }
  }
  if (!(x_min <= x_max)) return "";
  if (x_max == x_min) x_max = x_min + 1;
  if (y_max == y_min) {
    y_max += 0.5;
    y_min -= 0.5;
  }
  const double margin = (y_max - y_min) * 0.06;
  y_min -= margin;
  y_max += margin;
  const auto x_at = [&](double x) { return kLeft + (x - x_min) / (x_max - x_min) * (kWidth - kLeft - kRight); };
  const auto y_at = [&](double y) {
    return kHeight - kBottom - (y - y_min) / (y_max - y_min) * (kHeight - kTop - kBottom);
  };

  std::string out = absl::StrFormat(
      "<svg class=\"chart\" viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"%s\"><text class=\"title\" x=\"%g\" "
      "y=\"16\">%s</text>",
      kWidth, kHeight, HtmlEscape(title), kLeft, HtmlEscape(title));
  const double y_step = NiceStep(y_max - y_min, 4);
  for (double y = std::ceil(y_min / y_step) * y_step; y <= y_max; y += y_step) {
    absl::StrAppendFormat(&out,
                          "<line class=\"grid\" x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"tick\" "
                          "x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%g</text>",
                          kLeft, kWidth - kRight, y_at(y), y_at(y), kLeft - 5, y_at(y) + 3,
                          std::abs(y) < y_step / 1e6 ? 0.0 : y);
  }
  const double x_step = NiceStep(x_max - x_min, 6);
  for (double x = std::ceil(x_min / x_step) * x_step; x <= x_max; x += x_step) {
    absl::StrAppendFormat(&out, "<text class=\"tick\" x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%g</text>", x_at(x),
                          kHeight - kBottom + 14, x);
  }
  absl::StrAppendFormat(&out, "<text class=\"tick\" x=\"%g\" y=\"%g\" text-anchor=\"end\">%s</text>", kWidth - kRight,
                        kHeight - 4, HtmlEscape(x_label));
  int colour = 0;
  for (const Series& one : series) {
    if (one.points.empty()) continue;
    std::string path;
    for (const auto& [x, y] : one.points)
      absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", x_at(x), y_at(y));
    const char* stroke = kColours[colour % 4];
    absl::StrAppendFormat(&out, "<path class=\"line\" style=\"stroke:%s\" d=\"%s\"/>", stroke, path);
    // Few points are seen as such; a single one is no line at all.
    for (size_t i = 0; one.points.size() <= kMostDots && i < one.points.size(); ++i) {
      absl::StrAppendFormat(&out, "<circle r=\"2.5\" cx=\"%.1f\" cy=\"%.1f\" style=\"fill:%s\"/>",
                            x_at(one.points[i].first), y_at(one.points[i].second), stroke);
    }
    if (series.size() > 1) {
      absl::StrAppendFormat(&out,
                            "<text class=\"tick\" x=\"%g\" y=\"%g\" text-anchor=\"end\" style=\"fill:%s\">%s</text>",
                            kWidth - kRight, 16.0 + 12.0 * colour, stroke, HtmlEscape(one.name));
    }
    ++colour;
  }
  return out + "</svg>\n";
}

}  // namespace rlhf::cli
