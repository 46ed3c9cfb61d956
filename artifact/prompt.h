// Prompts as jobs know them: a text, or a conversation that the model's own chat template renders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "artifact/chat_message.h"
#include "artifact/tokenizer.h"

namespace rlhf::artifact {

// The tokens that an answer is generated from. With messages: the chat template's text up to where the assistant
// answers, as it is. Without: the text, and what the tokenizer's post-processor puts around it. Special tokens written
// in either are plain text. NotFound when there are messages and the model has no chat template.
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Tokenizer& tokenizer, absl::string_view text,
                                                  absl::Span<const ChatMessage> messages);

// A prompt and an answer to it as a reward model reads them, where it is trained and where it scores: their tokens and
// the end of text, at which the score is read, whatever ended the answer: `answer` has no end of text of its own. Of
// one that fills `context` with its prompt the last token gives way to it; what is longer, and of a tokenizer that has
// no end of text, stays as it is.
std::vector<int32_t> EndForReward(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt,
                                  absl::Span<const int32_t> answer, int64_t context);
// The same of texts. As EncodePrompt.
absl::StatusOr<std::vector<int32_t>> EncodeForReward(const Tokenizer& tokenizer, absl::string_view prompt,
                                                     absl::Span<const ChatMessage> messages, absl::string_view response,
                                                     int64_t context);

// What people are shown of a conversation: a single message as it is, several with their roles, a paragraph each.
std::string ShownText(absl::Span<const ChatMessage> messages);

// From a message type with `messages` of `role` and `content`: rlhf.v1.Prompt.
template <typename Prompt>
std::vector<ChatMessage> MessagesOf(const Prompt& prompt) {
  std::vector<ChatMessage> out;
  for (const auto& message : prompt.messages()) out.push_back({message.role(), message.content()});
  return out;
}
// The reverse: appends to it.
template <typename Prompt>
void SetMessages(absl::Span<const ChatMessage> messages, Prompt* prompt) {
  for (const ChatMessage& message : messages) {
    auto* out = prompt->add_messages();
    out->set_role(message.role);
    out->set_content(message.content);
  }
}

}  // namespace rlhf::artifact
