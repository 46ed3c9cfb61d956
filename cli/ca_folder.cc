#include "cli/ca_folder.h"

#include "absl/strings/str_cat.h"
#include "cli/secret_file.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::cli {

absl::StatusOr<CertificateAuthority> OpenCa(const std::string& folder) {
  const absl::StatusOr<std::string> key = ReadFile(folder + "/ca.key");
  if (absl::IsNotFound(key.status())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "expected a CA in ", folder,
        " (ca.pem and ca.key), found none: give the folder that has it with --dir; rlhfctl pki init makes a "
        "new CA, which nobody trusts yet"));
  }
  RLHF_RETURN_IF_ERROR(key.status());
  RLHF_ASSIGN_OR_RETURN(const std::string cert, ReadFile(folder + "/ca.pem"));
  return CertificateAuthority{cert, *key};
}

absl::StatusOr<CertificateAuthority> OpenOrMakeCa(const std::string& folder, const std::string& domain) {
  absl::StatusOr<CertificateAuthority> found = OpenCa(folder);
  if (!absl::IsFailedPrecondition(found.status())) return found;
  RLHF_RETURN_IF_ERROR(MakePrivateFolder(folder));
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, MakeCertificateAuthority(domain, 3650));
  // The key last: a folder with a key has its certificate, too.
  RLHF_RETURN_IF_ERROR(WriteFileDurably(folder + "/ca.pem", ca.cert_pem));
  RLHF_RETURN_IF_ERROR(WriteSecretFile(folder + "/ca.key", ca.key_pem));
  return ca;
}

}  // namespace rlhf::cli
