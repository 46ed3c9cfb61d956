#define PCRE2_CODE_UNIT_WIDTH 8
#include "reward_server/components/pattern.h"

#include <pcre2.h>

#include "absl/strings/str_cat.h"

namespace rlhf::reward {
namespace {

constexpr uint32_t kMatchSteps = 1000000;

std::string ErrorText(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

absl::StatusOr<Pattern> Pattern::Compile(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                                   &error, &at, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pattern \"", pattern, "\" is not a valid regular expression: ", ErrorText(error), " at character ", at));
  }
  return Pattern(pattern, std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); }));
}

absl::StatusOr<bool> Pattern::Found(const std::string& text) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), &pcre2_match_context_free);
  pcre2_set_match_limit(context.get(), kMatchSteps);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free);
  const int found =
      pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, data.get(), context.get());
  if (found >= 0) return true;
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found == PCRE2_ERROR_NOMEMORY)
    return absl::ResourceExhaustedError(absl::StrCat("pattern \"", source_, "\": ", ErrorText(found)));
  // The same pattern needs the same steps on the same text: to wait would be for nothing.
  if (found == PCRE2_ERROR_MATCHLIMIT || found == PCRE2_ERROR_DEPTHLIMIT || found == PCRE2_ERROR_HEAPLIMIT) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern \"", source_, "\" needs more than ", kMatchSteps, " steps on this text: simplify it"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("pattern \"", source_, "\" cannot be matched on this text: ", ErrorText(found)));
}

}  // namespace rlhf::reward
