#include "artifact/prompt.h"

#include "absl/strings/str_cat.h"

namespace rlhf::artifact {

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Tokenizer& tokenizer, absl::string_view text,
                                                  absl::Span<const ChatMessage> messages) {
  if (messages.empty()) return tokenizer.Encode(text);
  return tokenizer.EncodeChat(messages);
}

std::string ShownText(absl::Span<const ChatMessage> messages) {
  if (messages.size() == 1) return messages[0].content;
  std::string out;
  for (const ChatMessage& message : messages)
    absl::StrAppend(&out, out.empty() ? "" : "\n\n", message.role, ": ", message.content);
  return out;
}

}  // namespace rlhf::artifact
