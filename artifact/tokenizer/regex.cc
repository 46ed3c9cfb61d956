#define PCRE2_CODE_UNIT_WIDTH 8
#include "artifact/tokenizer/regex.h"

#include <pcre2.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

// Steps of one match: enough to go back over a whole text several times, too few for an explosion.
constexpr uint32_t kStepsOfAnyMatch = 10'000, kStepsOfAByte = 16, kMostSteps = 50'000'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kPatternBytes = 16 << 10;
// PCRE2's limits are for one place where a match may begin, and a hostile expression takes as much at each. So a call
// looks at this many places, and the clock is read between calls.
constexpr size_t kPlacesOfACall = 256;
constexpr uint64_t kMatchesBetweenLooks = 64;
constexpr std::chrono::seconds kLongest(5);

}  // namespace

struct Regex::Program {
  pcre2_code* code = nullptr;
  bool compiled = false;  // to machine code
  ~Program() { pcre2_code_free(code); }
};

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  if (pattern.size() > kPatternBytes)
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression: expected at most ", kPatternBytes, " bytes, found ", pattern.size()));
  auto translated = TranslateRegex(pattern);
  if (!translated.ok()) return translated.status();
  int error = 0;
  PCRE2_SIZE at = 0;
  auto program = std::make_shared<Program>();
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> compile(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(compile.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(compile.get(), 100);
  program->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT, &error, &at, compile.get());
  if (program->code == nullptr) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(error, text, sizeof(text));
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression \"", pattern, "\": ", reinterpret_cast<const char*>(text)));
  }
  program->compiled = pcre2_jit_compile(program->code, PCRE2_JIT_COMPLETE) == 0;
  Regex out;
  out.program_ = std::move(program);
  return out;
}

Regex::Matcher::Matcher(const Regex& regex, absl::string_view text)
    : regex_(regex),
      text_(text),
      data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  auto* context = static_cast<pcre2_match_context*>(context_);
  const uint64_t steps = kStepsOfAnyMatch + kStepsOfAByte * static_cast<uint64_t>(text.size());
  pcre2_set_match_limit(context, static_cast<uint32_t>(std::min<uint64_t>(steps, kMostSteps)));
  pcre2_set_heap_limit(context, kHeapLimitKib);
}

Regex::Matcher::~Matcher() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
}

bool Regex::Matcher::Late() {
  const auto now = std::chrono::steady_clock::now();
  if (!started_) started_ = now;
  if (now - *started_ <= kLongest) return false;
  status_ = absl::ResourceExhaustedError(absl::StrCat("matching a regular expression in a text of ", text_.size(),
                                                      " bytes takes longer than ", kLongest.count(),
                                                      " s: shorten the text, or simplify the tokenizer's expression"));
  return true;
}

bool Regex::Matcher::Next(size_t* begin, size_t* end) {
  auto* data = static_cast<pcre2_match_data*>(data_);
  auto* context = static_cast<pcre2_match_context*>(context_);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
  const Program& program = *regex_.program_;
  if (++matches_ % kMatchesBetweenLooks == 0 && Late()) return false;
  while (at_ <= text_.size()) {
    size_t last = std::min(text_.size(), at_ + kPlacesOfACall);
    while (last < text_.size() && (static_cast<unsigned char>(text_[last]) & 0xC0) == 0x80) ++last;
    pcre2_set_offset_limit(context, last);
    int found = program.compiled
                    ? pcre2_jit_match(program.code, subject, text_.size(), at_, 0, data, context)
                    : pcre2_match(program.code, subject, text_.size(), at_, PCRE2_NO_UTF_CHECK, data, context);
    // Machine code has a small stack of its own; the interpreter may take kHeapLimitKib.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(program.code, subject, text_.size(), at_, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
    }
    if (found == PCRE2_ERROR_NOMATCH) {
      if (last == text_.size() || Late()) return false;
      at_ = last;
      continue;
    }
    if (found < 0) {
      status_ = absl::ResourceExhaustedError(
          absl::StrCat("matching a regular expression in a text of ", text_.size(), " bytes failed (PCRE2 error ",
                       found, "): shorten the text, or simplify the tokenizer's expression"));
      return false;
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
    const size_t start = range[0], stop = std::max(range[0], range[1]);
    if (start == stop && stop == last_end_) {
      at_ += std::max<size_t>(1, Utf8Length(text_.substr(at_)));
      continue;
    }
    at_ = last_end_ = stop;
    *begin = start;
    *end = stop;
    return true;
  }
  return false;
}

bool Regex::MayMatchNothing() const {
  uint32_t may = 0;
  pcre2_pattern_info(program_->code, PCRE2_INFO_MATCHEMPTY, &may);
  return may != 0;
}

absl::StatusOr<bool> Regex::MatchesAtStart(absl::string_view text) const {
  Matcher matcher(*this, text);
  size_t begin = 0, end = 0;
  const bool found = matcher.Next(&begin, &end);
  if (!matcher.status().ok()) return matcher.status();
  return found && begin == 0;
}

absl::Status Regex::ForEachMatch(absl::string_view text, const std::function<void(size_t, size_t)>& visit) const {
  return Each(text, visit);
}

}  // namespace rlhf::artifact
