// Whether what a program printed has arrived.
#pragma once

#include "absl/status/status.h"

namespace rlhf {

// Writes out what printf and std::cout still hold. Once a write to the standard output has failed, then or before: what
// WriteError (durable_file.h) says of it. To be asked before a program ends with success: what is buffered is else
// lost without a word. Any thread.
absl::Status FlushStandardOutput();

}  // namespace rlhf
