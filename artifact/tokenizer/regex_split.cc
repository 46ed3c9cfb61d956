#define PCRE2_CODE_UNIT_WIDTH 8
#include "artifact/tokenizer/regex_split.h"

#include <pcre2.h>

#include "absl/strings/str_cat.h"

namespace rlhf::artifact {

absl::StatusOr<RegexSplit> RegexSplit::Compile(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                                   &error, &at, nullptr);
  if (code == nullptr) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(error, text, sizeof(text));
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression \"", pattern, "\": ", reinterpret_cast<const char*>(text), " at ", at));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return RegexSplit(std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); }));
}

absl::Status RegexSplit::Split(absl::string_view text, std::vector<absl::string_view>* pieces) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free);
  size_t at = 0, rest = 0;
  while (at < text.size()) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK,
                                  data.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      return absl::ResourceExhaustedError(
          absl::StrCat("splitting a text of ", text.size(), " bytes failed (PCRE2 error ", found, ")"));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    if (range[1] == range[0]) {
      ++at;
      continue;
    }
    if (range[0] > rest) pieces->push_back(text.substr(rest, range[0] - rest));
    pieces->push_back(text.substr(range[0], range[1] - range[0]));
    at = rest = range[1];
  }
  if (rest < text.size()) pieces->push_back(text.substr(rest));
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
