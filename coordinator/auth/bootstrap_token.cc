#include "coordinator/auth/bootstrap_token.h"

#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "artifact/digest.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kLife = absl::Hours(24 * 30);

bool IsHex(const std::string& text, size_t length) {
  return text.size() == length && absl::c_all_of(text, [](unsigned char c) { return absl::ascii_isxdigit(c); });
}

}  // namespace

absl::StatusOr<v1::TokenRow> BootstrapTokenRow(const std::string& token, absl::Time now) {
  const std::vector<std::string> parts = absl::StrSplit(absl::StripAsciiWhitespace(token), '_');
  if (parts.size() != 3 || parts[0] != "rlhf" || !IsHex(parts[1], 12) || !IsHex(parts[2], 64)) {
    return absl::InvalidArgumentError(
        "expected a token as `rlhfctl token create --bootstrap` makes it (rlhf_<12 hex digits>_<64 hex digits>)");
  }
  v1::TokenRow row;
  row.set_id(parts[1]);
  row.set_sha256(artifact::Sha256Hex(parts[2]));
  row.set_subject("bootstrap-admin");
  row.set_project("*");
  row.add_roles(v1::ADMIN);
  row.mutable_created_at()->set_seconds(absl::ToUnixSeconds(now));
  row.mutable_expires_at()->set_seconds(absl::ToUnixSeconds(now + kLife));
  return row;
}

}  // namespace rlhf::coordinator
