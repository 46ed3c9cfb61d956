#include "coordinator/jobs/pattern_spec.h"

#include <cstdint>
#include <memory>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {

std::string PatternProblem(const std::string& pattern, int groups) {
  int error = 0;
  PCRE2_SIZE at = 0;
  const std::unique_ptr<pcre2_code, void (*)(pcre2_code*)> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP, &error, &at,
                    nullptr),
      pcre2_code_free);
  if (code == nullptr) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(error, text, sizeof(text));
    return absl::StrCat("expected a regular expression (PCRE2), found \"", pattern.substr(0, 200),
                        "\": ", reinterpret_cast<const char*>(text), " at character ", at);
  }
  uint32_t found = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_CAPTURECOUNT, &found);
  if (static_cast<int>(found) >= groups) return "";
  return absl::StrCat("expected a regular expression with ", groups, groups == 1 ? " group" : " groups",
                      " in parentheses, found \"", pattern.substr(0, 200), "\" with ", found);
}

}  // namespace rlhf::coordinator
