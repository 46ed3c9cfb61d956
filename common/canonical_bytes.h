// Bytes of a message that are the same whenever its content is: what is hashed or compared must not depend on the
// order in which a map's entries lie in memory. Thread-safe.
#pragma once

#include <string>

#include "google/protobuf/message_lite.h"

namespace rlhf {

std::string CanonicalBytes(const google::protobuf::MessageLite& message);

}  // namespace rlhf
