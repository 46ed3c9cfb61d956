// A model's chat template: a conversation becomes the prompt that the model was trained on.
//
// Templates are Jinja as `transformers` runs it; the supported part is an interpreter of our own with limits on steps,
// nesting and output. Thread-safe: const after parsing.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "artifact/chat_message.h"

namespace rlhf::artifact {

struct ChatOptions {
  bool add_generation_prompt = true;  // ends where the assistant answers
  // What strftime_now sees. Unset: the function is undefined, and templates fall back to their own date: a prompt must
  // not depend on the day, or a replay would not give the same tokens.
  std::optional<absl::Time> now;
};

struct RenderedChat {
  std::string text;
  // Ascending offsets inside special tokens that came from the messages: they are plain text, those of the template are
  // tokens (EncodeOptions::plain_at).
  std::vector<size_t> plain_at;
};

class ChatTemplate {
 public:
  // name: for errors. variables: what the template sees besides the conversation, such as bos_token. InvalidArgument
  // "NAME: line N: …" names what is not supported.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(absl::string_view source, const std::string& name,
                                                             std::map<std::string, std::string> variables);
  // The template of a model directory: chat_template.jinja, else tokenizer_config.json's chat_template (of several the
  // one named "default"). NotFound when the model has none.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& model_dir);
  ~ChatTemplate();

  // special_tokens: the texts that the tokenizer would read as special. InvalidArgument when the template refuses the
  // conversation; ResourceExhausted past a limit.
  absl::StatusOr<RenderedChat> Render(absl::Span<const ChatMessage> messages,
                                      absl::Span<const std::string> special_tokens,
                                      const ChatOptions& options = {}) const;

 private:
  struct Program;
  ChatTemplate();
  std::unique_ptr<const Program> program_;
};

}  // namespace rlhf::artifact
