#include "cli/utf8.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::cli {
namespace {

// Of the first byte that belongs to no character; the text's size when there is none.
size_t FirstBadByte(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = artifact::Utf8Length(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

std::string Expected(absl::string_view text, size_t bad) {
  return absl::StrFormat("expected UTF-8, found the byte 0x%02x", static_cast<unsigned char>(text[bad]));
}

}  // namespace

absl::Status CheckUtf8(absl::string_view text, const std::string& name) {
  const size_t bad = FirstBadByte(text);
  if (bad == text.size()) return absl::OkStatus();
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(bad), '\n');
  return absl::InvalidArgumentError(absl::StrCat(name, ":", line, ": ", Expected(text, bad)));
}

absl::Status CheckArguments(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const absl::string_view argument = argv[i];
    const size_t bad = FirstBadByte(argument);
    if (bad == argument.size()) continue;
    std::error_code error;
    const size_t equals = argument.find('=');
    const absl::string_view value = equals == absl::string_view::npos ? argument : argument.substr(equals + 1);
    if (std::filesystem::exists(std::string(argument), error) || std::filesystem::exists(std::string(value), error))
      continue;
    return absl::InvalidArgumentError(absl::StrCat("argument ", i, " of the command line: ", Expected(argument, bad)));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::cli
