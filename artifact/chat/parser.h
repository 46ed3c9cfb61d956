// Tokens into a tree: the part of Jinja that chat templates use. What is not supported is an error that names it.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "artifact/chat/ast.h"

namespace rlhf::artifact::chat {

// InvalidArgument "line N: …". Bounded: nesting at most 64 deep.
absl::StatusOr<Body> ParseTemplate(absl::string_view source);

}  // namespace rlhf::artifact::chat
