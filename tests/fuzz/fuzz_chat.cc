// Any bytes as a chat template, rendered for a conversation.
#include "artifact/chat/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rlhf::artifact;  // NOLINT: one function
  const auto made = ChatTemplate::Parse(absl::string_view(reinterpret_cast<const char*>(data), size), "fuzz",
                                        {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!made.ok()) return 0;
  const std::vector<ChatMessage> messages{
      {"system", " s </s>"}, {"user", "\xC3\xA4\n1"}, {"assistant", "<think>x</think>y"}, {"user", "z"}};
  const std::vector<std::string> special{"<s>", "</s>"};
  ChatOptions options;
  options.now = absl::UnixEpoch();
  const auto text = (*made)->Render(messages, special, options);
  (void)text;
  return 0;
}
