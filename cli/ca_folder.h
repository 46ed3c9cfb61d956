// A CA in a folder of its own, ca.pem and ca.key: what `rlhfctl pki` and `rlhfctl up` issue certificates with.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/tls.h"

namespace rlhf::cli {

// The folder's CA; FailedPrecondition when it has none.
absl::StatusOr<CertificateAuthority> OpenCa(const std::string& folder);
// The same, made for ten years where there is none. The key can be read by the owner alone, as a folder
// that is made for it, and never leaves that.
absl::StatusOr<CertificateAuthority> OpenOrMakeCa(const std::string& folder, const std::string& domain);

}  // namespace rlhf::cli
