// What names and texts from outside must look like.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace rlhf::coordinator {

// Projects: lower-case letters, digits and '-', 1 to 63 characters.
absl::Status CheckName(absl::string_view field, absl::string_view value);
// Aliases: letters, digits, '.', '_', '-' and '/', 1 to 128 characters, starting with a letter or digit.
absl::Status CheckAlias(absl::string_view field, absl::string_view value);
// The same, and not one that only a gate may give: "approved/…". PermissionDenied with RESERVED_ALIAS.
absl::Status CheckFreeAlias(absl::string_view field, absl::string_view value);
// Not empty, at most so many bytes, no control characters.
absl::Status CheckText(absl::string_view field, absl::string_view value, size_t longest);
inline constexpr size_t kLongestInstance = 256;  // of a process's instance_id, in bytes

// What a person may write freely, to be read by people: a reason, a comment. At most kLongestRemark bytes; it goes into
// rows that lists and logs repeat.
inline constexpr size_t kLongestRemark = 4096;
absl::Status CheckRemark(absl::string_view field, absl::string_view value);
// One that is too long, cut, with a note of how long it was.
std::string CutRemark(absl::string_view value);
// A request id: at most 256 bytes; it is a key of the store.
absl::Status CheckRequestId(absl::string_view value);
// A path inside an artifact: relative, '/'-separated, no empty part, no "." or "..", no control characters, no hidden
// first part.
absl::Status CheckRelativePath(absl::string_view field, absl::string_view value);
// 64 lower-case hexadecimal digits.
bool IsSha256(absl::string_view value);

}  // namespace rlhf::coordinator
