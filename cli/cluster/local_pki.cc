#include "cli/cluster/local_pki.h"

#include "cli/ca_folder.h"
#include "cli/secret_file.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "common/tls.h"

namespace rlhf::cli {
namespace {

constexpr char kDomain[] = "rlhf.local";
constexpr int kPairDays = 30;

}  // namespace

absl::Status LocalPki::Issue(absl::Time now) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, OpenOrMakeCa(folder_, kDomain));
  for (const Member& member : members_) {
    RLHF_ASSIGN_OR_RETURN(const IssuedCertificate issued,
                          IssueCertificate(ca, kDomain, member.role, member.name, member.hosts, kPairDays));
    const std::string stem = folder_ + "/" + member.name;
    RLHF_RETURN_IF_ERROR(WriteFileDurably(stem + ".pem", issued.cert_pem));
    RLHF_RETURN_IF_ERROR(WriteSecretFile(stem + ".key", issued.key_pem));
  }
  issued_ = now;
  return absl::OkStatus();
}

absl::Status LocalPki::RenewWhenDue(absl::Time now) {
  if (now - issued_ < absl::Hours(24 * kPairDays) * 2 / 3) return absl::OkStatus();
  return Issue(now);
}

}  // namespace rlhf::cli
