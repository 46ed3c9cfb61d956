// The API's texts are UTF-8: gRPC drops a message that holds others, and says only that the call is not there.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace rlhf::cli {

// InvalidArgument "NAME:LINE: expected UTF-8, found the byte 0xe9" for a text that is other than UTF-8.
absl::Status CheckUtf8(absl::string_view text, const std::string& name);
// The same of a command line ("argument 2"); what names a file or folder that is there may have any bytes.
absl::Status CheckArguments(int argc, const char* const* argv);

}  // namespace rlhf::cli
