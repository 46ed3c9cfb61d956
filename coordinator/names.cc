#include "coordinator/names.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_util.h"
#include "common/utf8_cut.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kLongestRequestId = 256;

bool IsControl(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}

absl::Status Bad(absl::string_view field, absl::string_view expected, absl::string_view found) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": expected ", expected, ", found \"", absl::CHexEscape(found.substr(0, 80)), "\""));
}

}  // namespace

absl::Status CheckName(absl::string_view field, absl::string_view value) {
  const bool good = !value.empty() && value.size() <= 63 && std::all_of(value.begin(), value.end(), [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
  });
  return good ? absl::OkStatus() : Bad(field, "lower-case letters, digits and '-', at most 63", value);
}

absl::Status CheckAlias(absl::string_view field, absl::string_view value) {
  const bool good = !value.empty() && value.size() <= 128 && absl::ascii_isalnum(value[0]) &&
                    std::all_of(value.begin(), value.end(), [](char c) {
                      return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' || c == '/';
                    });
  return good ? absl::OkStatus()
              : Bad(field, "letters, digits, '.', '_', '-' and '/', at most 128, a letter or digit first", value);
}

absl::Status CheckFreeAlias(absl::string_view field, absl::string_view value) {
  if (absl::Status status = CheckAlias(field, value); !status.ok()) return status;
  if (!absl::StartsWith(value, "approved/")) return absl::OkStatus();
  return WithReason(
      absl::PermissionDeniedError(absl::StrCat(
          field, ": only a gate that people approved publishes under \"approved/\", found \"", value, "\"")),
      v1::RESERVED_ALIAS);
}

absl::Status CheckText(absl::string_view field, absl::string_view value, size_t longest) {
  const bool good = !value.empty() && value.size() <= longest && std::none_of(value.begin(), value.end(), IsControl);
  return good ? absl::OkStatus()
              : Bad(field, absl::StrCat("1 to ", longest, " bytes without control characters"), value);
}

absl::Status CheckRemark(absl::string_view field, absl::string_view value) {
  if (value.size() <= kLongestRemark) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": expected at most ", kLongestRemark, " bytes, found ", value.size()));
}

std::string CutRemark(absl::string_view value) {
  if (value.size() <= kLongestRemark) return std::string(value);
  const std::string note = absl::StrCat("… (cut: it had ", value.size(), " bytes)");
  return absl::StrCat(value.substr(0, Utf8Cut(value, kLongestRemark - note.size())), note);
}

absl::Status CheckRequestId(absl::string_view value) {
  if (value.size() <= kLongestRequestId) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("request_id: expected at most ", kLongestRequestId, " bytes, found ", value.size()));
}

absl::Status CheckRelativePath(absl::string_view field, absl::string_view value) {
  bool good = !value.empty() && value.size() <= 512 && value[0] != '.' && value[0] != '/' &&
              std::none_of(value.begin(), value.end(), IsControl);
  for (const absl::string_view part : absl::StrSplit(value, '/')) {
    good = good && !part.empty() && part != "." && part != "..";
  }
  return good ? absl::OkStatus() : Bad(field, "a relative path without empty parts, \".\" or \"..\"", value);
}

bool IsSha256(absl::string_view value) {
  return value.size() == 64 && std::all_of(value.begin(), value.end(),
                                           [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}

}  // namespace rlhf::coordinator
