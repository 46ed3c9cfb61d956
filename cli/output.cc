#include "cli/output.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/printable.h"
#include "common/spec_loader.h"

namespace rlhf::cli {
namespace {

// Columns a terminal shows, counting UTF-8 sequences as one.
size_t Width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

void Table::Row(std::vector<std::string> cells) {
  for (std::string& cell : cells) cell = Printable(cell);
  rows_.push_back(std::move(cells));
}

std::string Table::Text() const {
  std::vector<size_t> widths(header_.size());
  for (size_t column = 0; column < header_.size(); ++column) {
    widths[column] = Width(header_[column]);
    for (const auto& row : rows_)
      widths[column] = std::max(widths[column], column < row.size() ? Width(row[column]) : 0);
  }
  std::string out;
  const auto append = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t column = 0; column < cells.size(); ++column) {
      line += cells[column];
      if (column + 1 < cells.size()) line += std::string(widths[column] - Width(cells[column]) + 2, ' ');
    }
    absl::StripTrailingAsciiWhitespace(&line);  // the last cells may be empty
    out += line + "\n";
  };
  append(header_);
  for (const auto& row : rows_) append(row);
  return out;
}

std::string MessageToJson(const google::protobuf::Message& message) {
  return ToJson(message);
}

std::string MessageToYaml(const google::protobuf::Message& message) {
  return ToYaml(message);
}

void PrintMessage(const std::string& output, const google::protobuf::Message& message) {
  if (output == "yaml") {
    std::fputs(ToYaml(message).c_str(), stdout);
  } else {
    std::printf("%s\n", ToJson(message).c_str());
  }
}

std::string Expiry(absl::Time at, absl::Time now) {
  return absl::StrCat(at <= now ? "expired " : "", absl::FormatTime("%Y-%m-%d %H:%M UTC", at, absl::UTCTimeZone()));
}

std::string Short(const std::string& digest) {
  return digest.substr(0, std::min<size_t>(digest.size(), 19));
}

std::string Number(double value) {
  return absl::StrFormat("%.4g", value);
}

std::string Bytes(uint64_t bytes) {
  if (bytes < 1000) return absl::StrFormat("%d B", bytes);
  if (bytes < 1000000) return absl::StrFormat("%.1f kB", static_cast<double>(bytes) / 1e3);
  if (bytes < 1000000000) return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6);
  return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace rlhf::cli
