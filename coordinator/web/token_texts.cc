#include "coordinator/web/token_texts.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kMostTokenizers = 4;
constexpr size_t kMostReadings = 16;
constexpr size_t kLongestCharacter = 4;  // bytes, so at most as many byte-level tokens
constexpr char kReplacement[] = "\xEF\xBF\xBD";

}  // namespace

struct TokenTexts::Reading {
  absl::Notification over;
  absl::StatusOr<std::shared_ptr<const artifact::Tokenizer>> tokenizer;
};

absl::StatusOr<std::shared_ptr<const artifact::Tokenizer>> TokenTexts::TokenizerOf(const std::string& digest) {
  std::shared_ptr<Reading> reading;
  {
    absl::MutexLock lock(&mu_);
    if (const auto it = tokenizers_.find(digest); it != tokenizers_.end()) return it->second;
    if (readings_.size() >= kMostReadings && readings_.count(digest) == 0)
      return absl::UnavailableError("too many models are being read; try again");
    std::shared_ptr<Reading>& known = readings_[digest];
    if (known == nullptr) {
      known = std::make_shared<Reading>();
      thread_->Run([this, digest, reading = known] {
        const auto load = [&]() -> absl::StatusOr<std::shared_ptr<const artifact::Tokenizer>> {
          RLHF_ASSIGN_OR_RETURN(const std::string dir, root_.Path(digest));
          return artifact::Tokenizer::Load(dir);
        };
        reading->tokenizer = load();
        {
          absl::MutexLock lock(&mu_);
          readings_.erase(digest);
          if (reading->tokenizer.ok()) {
            if (tokenizers_.size() >= kMostTokenizers) tokenizers_.erase(tokenizers_.begin());
            tokenizers_[digest] = *reading->tokenizer;
          }
        }
        reading->over.Notify();
      });
    }
    reading = known;
  }
  if (!reading->over.WaitForNotificationWithTimeout(kPatience)) {
    return absl::UnavailableError(
        absl::StrCat("the volume of ", root_.root(), " has not answered for ", absl::FormatDuration(kPatience)));
  }
  return reading->tokenizer;
}

absl::StatusOr<std::vector<std::string>> TokenTexts::Of(const std::string& model_digest,
                                                        const std::vector<int32_t>& tokens) {
  RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<const artifact::Tokenizer> tokenizer, TokenizerOf(model_digest));
  const auto decode = [&](size_t begin, size_t end) {
    return tokenizer->Decode({tokens.begin() + begin, tokens.begin() + end}, /*skip_special_tokens=*/false);
  };
  // Some decoders take the space from a text's beginning: what a token adds is seen behind the ones before it.
  size_t before = 0;
  std::string base;
  const auto added = [&](size_t begin, size_t end) -> absl::StatusOr<std::string> {
    RLHF_ASSIGN_OR_RETURN(const std::string joined, decode(before, end));
    if (absl::StartsWith(joined, base)) return joined.substr(base.size());
    return decode(begin, end);
  };
  std::vector<std::string> texts(tokens.size());
  for (size_t i = 0; i < tokens.size();) {
    size_t end = i + 1;
    RLHF_ASSIGN_OR_RETURN(std::string text, added(i, end));
    const size_t furthest = std::min(tokens.size(), i + kLongestCharacter);
    for (size_t longer = i + 2; absl::StrContains(text, kReplacement) && longer <= furthest; ++longer) {
      RLHF_ASSIGN_OR_RETURN(std::string joined, added(i, longer));
      if (absl::StrContains(joined, kReplacement)) continue;
      text = std::move(joined);
      end = longer;
    }
    texts[end - 1] = std::move(text);
    before = i;
    RLHF_ASSIGN_OR_RETURN(base, decode(i, end));
    i = end;
  }
  return texts;
}

std::string SampledModelOf(const std::string& job_json) {
  const auto job = nlohmann::json::parse(job_json, nullptr, /*allow_exceptions=*/false);
  for (const auto& [kind, field] :
       {std::pair("/spec/ppo", "policy"), {"/spec/sample", "model"}, {"/spec/evaluate", "model"}}) {
    const nlohmann::json spec = job.value(nlohmann::json::json_pointer(kind), nlohmann::json());
    if (!spec.is_object()) continue;
    const std::string reference = spec.value(field, "");
    const nlohmann::json resolved = job.value("resolved", nlohmann::json::object());
    return resolved.value(reference, reference);
  }
  return "";
}

}  // namespace rlhf::coordinator
