#include "artifact/prompt.h"

#include "absl/strings/str_cat.h"

namespace rlhf::artifact {

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Tokenizer& tokenizer, absl::string_view text,
                                                  absl::Span<const ChatMessage> messages) {
  if (messages.empty()) return tokenizer.Encode(text);
  return tokenizer.EncodeChat(messages);
}

std::vector<int32_t> EndForReward(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt,
                                  absl::Span<const int32_t> answer, int64_t context) {
  std::vector<int32_t> tokens(prompt.begin(), prompt.end());
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  const auto size = static_cast<int64_t>(tokens.size());
  if (!tokenizer.eos_id() || size > context) return tokens;
  if (size == context && !answer.empty()) tokens.pop_back();
  tokens.push_back(*tokenizer.eos_id());
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> EncodeForReward(const Tokenizer& tokenizer, absl::string_view prompt,
                                                     absl::Span<const ChatMessage> messages, absl::string_view response,
                                                     int64_t context) {
  const absl::StatusOr<std::vector<int32_t>> tokens = EncodePrompt(tokenizer, prompt, messages);
  if (!tokens.ok()) return tokens;
  const absl::StatusOr<std::vector<int32_t>> answer = tokenizer.Encode(response, {.add_special_tokens = false});
  if (!answer.ok()) return answer;
  return EndForReward(tokenizer, *tokens, *answer, context);
}

std::string ShownText(absl::Span<const ChatMessage> messages) {
  if (messages.size() == 1) return messages[0].content;
  std::string out;
  for (const ChatMessage& message : messages)
    absl::StrAppend(&out, out.empty() ? "" : "\n\n", message.role, ": ", message.content);
  return out;
}

}  // namespace rlhf::artifact
