// A file whose content lies in several places, such as a model's tensors: written from there, without a copy of the
// whole.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace rlhf {

enum class Durability {
  kSynced,  // survives power loss once the call has returned OK: fsync of the file and of its folder
  kCached,  // survives the process only; the system writes it out when it likes
};

// The parts, joined in order, into a temporary file in the same folder, which is then renamed: readers see the old
// content or the whole new one. Blocks; any thread. Statuses are WriteError's (durable_file.h); a failure leaves the
// old content and no temporary file.
absl::Status WriteFileParts(const std::string& path, absl::Span<const absl::string_view> parts, Durability durability);

}  // namespace rlhf
