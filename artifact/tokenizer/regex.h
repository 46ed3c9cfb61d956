// Regular expressions of tokenizer.json: written for Oniguruma (Ruby's syntax), run by PCRE2. Thread-safe after
// Compile.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf::artifact {

// The same expression in PCRE2's syntax with UTF and UCP. InvalidArgument names what the two do not share. Classes are
// spelled out where the libraries disagree: \s is White_Space, \w is Alphabetic, M*, Nd, Pc and Latin-1's numbers;
// scripts are Script, not Script_Extensions; ^ and $ match at lines.
absl::StatusOr<std::string> TranslateRegex(absl::string_view pattern);
// Quotes a literal text.
std::string EscapeRegex(absl::string_view text);

class Regex {
 public:
  // pattern: Oniguruma's syntax. InvalidArgument for what is not supported or does not compile.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);

  // Whether some text has an empty match.
  bool MayMatchNothing() const;
  // Whether the first match in valid UTF-8 begins at its beginning. Fails as ForEachMatch does.
  absl::StatusOr<bool> MatchesAtStart(absl::string_view text) const;
  // Calls visit(begin, end) for every match in valid UTF-8, in order; an empty match right after another is left out.
  // ResourceExhausted when a match costs more than the limits on steps and memory, or the text more than 5 s.
  absl::Status ForEachMatch(absl::string_view text, const std::function<void(size_t, size_t)>& visit) const;
  // The same for where speed matters.
  template <typename Visit>
  absl::Status Each(absl::string_view text, Visit visit) const {
    Matcher matcher(*this, text);
    size_t begin = 0, end = 0;
    while (matcher.Next(&begin, &end)) visit(begin, end);
    return matcher.status();
  }

 private:
  class Matcher {
   public:
    Matcher(const Regex& regex, absl::string_view text);
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;
    bool Next(size_t* begin, size_t* end);
    absl::Status status() const { return status_; }

   private:
    // True, with a status, when the text has taken too long.
    bool Late();

    const Regex& regex_;
    absl::string_view text_;
    void* data_;
    void* context_;
    size_t at_ = 0, last_end_ = std::string::npos;
    uint64_t matches_ = 0;
    std::optional<std::chrono::steady_clock::time_point> started_;  // at the first look at the clock
    absl::Status status_;
  };
  struct Program;
  std::shared_ptr<const Program> program_;
};

}  // namespace rlhf::artifact
