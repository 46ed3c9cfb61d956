// One turn of a conversation.
#pragma once

#include <string>

namespace rlhf::artifact {

struct ChatMessage {
  std::string role;     // "system", "user", "assistant", …: as the model's chat template knows it
  std::string content;  // UTF-8
};

}  // namespace rlhf::artifact
