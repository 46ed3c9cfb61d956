// Rule components: what can be judged from the text alone.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "reward_server/components/interface.h"
#include "reward_server/components/pattern.h"

namespace rlhf::reward {
namespace {

class PerSampleComponent : public Component {
 public:
  explicit PerSampleComponent(std::function<absl::StatusOr<double>(const v1::Sample&)> fn) : fn_(std::move(fn)) {}
  std::vector<absl::StatusOr<double>> Score(const std::vector<const v1::Sample*>& samples) override {
    std::vector<absl::StatusOr<double>> out;
    out.reserve(samples.size());
    for (const v1::Sample* sample : samples) out.push_back(fn_(*sample));
    return out;
  }

 private:
  std::function<absl::StatusOr<double>(const v1::Sample&)> fn_;
};

absl::StatusOr<std::vector<Pattern>> CompileAll(const google::protobuf::RepeatedPtrField<std::string>& given,
                                                const std::vector<std::string>& defaults) {
  std::vector<Pattern> out;
  const std::vector<std::string> sources =
      given.empty() ? defaults : std::vector<std::string>(given.begin(), given.end());
  for (const std::string& source : sources) {
    RLHF_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Compile(source));
    out.push_back(std::move(pattern));
  }
  return out;
}

absl::StatusOr<std::unique_ptr<Component>> AnyOf(const google::protobuf::RepeatedPtrField<std::string>& given,
                                                 const std::vector<std::string>& defaults) {
  RLHF_ASSIGN_OR_RETURN(std::vector<Pattern> patterns, CompileAll(given, defaults));
  return PerSample([patterns = std::move(patterns)](const v1::Sample& sample) -> absl::StatusOr<double> {
    for (const Pattern& pattern : patterns) {
      RLHF_ASSIGN_OR_RETURN(const bool found, pattern.Found(sample.response_text()));
      if (found) return 1.0;
    }
    return 0.0;
  });
}

std::string Normalised(std::string text, bool ignore_case) {
  absl::StripAsciiWhitespace(&text);
  if (!text.empty() && text.back() == '.') text.pop_back();
  if (ignore_case) absl::AsciiStrToLower(&text);
  return text;
}

std::vector<std::string> Sentences(const std::string& text) {
  std::vector<std::string> out;
  std::string current;
  for (const char c : text) {
    current += c;
    if (c == '.' || c == '!' || c == '?') {
      out.push_back(std::exchange(current, ""));
    }
  }
  absl::StripAsciiWhitespace(&current);
  if (!current.empty()) out.push_back(current);
  return out;
}

}  // namespace

std::unique_ptr<Component> PerSample(std::function<absl::StatusOr<double>(const v1::Sample&)> fn) {
  return std::make_unique<PerSampleComponent>(std::move(fn));
}

absl::StatusOr<std::unique_ptr<Component>> MakeRegex(const v1::RegexComponent& spec) {
  RLHF_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Compile(spec.pattern()));
  const double match = spec.has_match() ? spec.match() : 1.0;
  return PerSample([pattern = std::move(pattern), match,
                    no_match = spec.no_match()](const v1::Sample& sample) -> absl::StatusOr<double> {
    RLHF_ASSIGN_OR_RETURN(const bool found, pattern.Found(sample.response_text()));
    return found ? match : no_match;
  });
}

absl::StatusOr<std::unique_ptr<Component>> MakeLength(const v1::LengthComponent& spec) {
  if (spec.max_tokens() > 0 && spec.max_tokens() < spec.min_tokens()) {
    return absl::InvalidArgumentError(absl::StrCat("length: expected max_tokens of at least min_tokens (",
                                                   spec.min_tokens(), "), found ", spec.max_tokens()));
  }
  return PerSample([spec](const v1::Sample& sample) -> absl::StatusOr<double> {
    if (spec.require_eos() && sample.finish_reason() != v1::END_OF_TEXT) return 0.0;
    const int tokens = sample.response_tokens_size();
    int outside = std::max(0, spec.min_tokens() - tokens);
    if (spec.max_tokens() > 0) outside = std::max(outside, tokens - spec.max_tokens());
    if (outside == 0) return 1.0;
    if (spec.slack() <= 0) return 0.0;
    return std::max(0.0, 1.0 - static_cast<double>(outside) / spec.slack());
  });
}

absl::StatusOr<std::unique_ptr<Component>> MakeExactAnswer(const v1::ExactAnswerComponent& spec) {
  return PerSample([ignore_case = spec.ignore_case()](const v1::Sample& sample) -> absl::StatusOr<double> {
    // Without a reference there is no right answer: unknown names, actions.
    if (sample.prompt().reference().empty()) return 0.0;
    return Normalised(sample.response_text(), ignore_case) == Normalised(sample.prompt().reference(), ignore_case)
               ? 1.0
               : 0.0;
  });
}

absl::StatusOr<std::unique_ptr<Component>> MakeAbstention(const v1::AbstentionComponent& spec) {
  return AnyOf(spec.patterns(),
               {"(?i)\\bI (do not|don't) know\\b", "(?i)\\bI am not sure\\b", "(?i)\\bI'm not sure\\b"});
}

absl::StatusOr<std::unique_ptr<Component>> MakeActionClaim(const v1::ActionClaimComponent& spec) {
  return AnyOf(spec.patterns(),
               {"(?i)^\\s*done\\b",
                "(?i)\\bI (have|'ve)( just| already)? (sent|called|booked|ordered|paid|phoned|emailed|e-mailed|posted|"
                "scheduled|transferred|printed|bought|cancelled|reserved|texted|messaged|uploaded|made|set)\\b"});
}

absl::StatusOr<std::unique_ptr<Component>> MakeSentenceShare(const v1::SentenceShareComponent& spec) {
  RLHF_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Compile(spec.pattern()));
  return PerSample([pattern = std::move(pattern)](const v1::Sample& sample) -> absl::StatusOr<double> {
    const std::vector<std::string> sentences = Sentences(sample.response_text());
    if (sentences.empty()) return 0.0;
    int matching = 0;
    for (const std::string& sentence : sentences) {
      RLHF_ASSIGN_OR_RETURN(const bool found, pattern.Found(sentence));
      matching += found;
    }
    return static_cast<double>(matching) / static_cast<double>(sentences.size());
  });
}

}  // namespace rlhf::reward
