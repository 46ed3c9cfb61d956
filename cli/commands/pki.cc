// pki init, pki issue, pki renew: a CA of one's own and the fleet's certificates.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cli/ca_folder.h"
#include "cli/certificate_check.h"
#include "cli/commands/commands.h"
#include "cli/kubernetes.h"
#include "cli/kubernetes_names.h"
#include "cli/secret_file.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "common/tls.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {
namespace {

struct PkiFlags {
  std::string dir = "rlhf-pki", domain = "rlhf", name_space = "rlhf", role, instance;
  std::vector<std::string> hosts;
  int days = 365;
  bool kubernetes = false;
};

const char* const kRoles[] = {"coordinator", "learner", "rollout_worker", "reward_server"};

std::string Dashed(const std::string& role) {
  return absl::StrReplaceAll(role, {{"_", "-"}});
}

// The folder's CA, which is to be of the domain that is asked for.
absl::StatusOr<CertificateAuthority> CaOf(const PkiFlags& flags, bool may_make) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca,
                        may_make ? OpenOrMakeCa(flags.dir, flags.domain) : OpenCa(flags.dir));
  if (const absl::Status status = CheckAuthority(ca, flags.domain); !status.ok()) return Annotate(status, flags.dir);
  return ca;
}

// What the coordinator is called in a cluster of the base manifests.
std::vector<std::string> ServiceHosts(const std::string& name_space) {
  const std::string service = "rlhf-coordinator";
  return {service, absl::StrCat(service, ".", name_space), absl::StrCat(service, ".", name_space, ".svc"),
          absl::StrCat(service, ".", name_space, ".svc.cluster.local")};
}

// A certificate of each role: as Secrets on stdout, or as files of the folder.
absl::Status IssueRoles(const PkiFlags& flags, const CertificateAuthority& ca) {
  if (flags.kubernetes) RLHF_RETURN_IF_ERROR(CheckNamespace(flags.name_space));
  std::string manifests;
  for (const std::string role : kRoles) {
    std::vector<std::string> hosts;
    if (role == "coordinator") {
      hosts = flags.hosts;
      if (flags.kubernetes) {
        const std::vector<std::string> service = ServiceHosts(flags.name_space);
        hosts.insert(hosts.end(), service.begin(), service.end());
      }
    }
    // Speaks for every pod whose name begins with it.
    const std::string instance = flags.kubernetes ? "rlhf-" + Dashed(role) : Dashed(role);
    RLHF_ASSIGN_OR_RETURN(const IssuedCertificate issued,
                          IssueCertificate(ca, flags.domain, role, instance, hosts, flags.days));
    if (flags.kubernetes) {
      manifests += SecretManifest("rlhf-" + Dashed(role) + "-tls", flags.name_space,
                                  {{"ca.crt", ca.cert_pem}, {"tls.crt", issued.cert_pem}, {"tls.key", issued.key_pem}});
      continue;
    }
    const std::string stem = absl::StrCat(flags.dir, "/", Dashed(role));
    RLHF_RETURN_IF_ERROR(WriteFileDurably(stem + ".pem", issued.cert_pem));
    RLHF_RETURN_IF_ERROR(WriteSecretFile(stem + ".key", issued.key_pem));
  }
  if (flags.kubernetes) {
    std::printf("%s%s", manifests.c_str(),
                SecretManifest("rlhf-client-ca", flags.name_space, {{"ca.crt", ca.cert_pem}}).c_str());
  }
  return absl::OkStatus();
}

absl::Status Init(const PkiFlags& flags) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, CaOf(flags, /*may_make=*/true));
  RLHF_RETURN_IF_ERROR(IssueRoles(flags, ca));
  if (!flags.kubernetes) {
    std::printf("%s holds the CA and a certificate of each role, for %d days; keep ca.key to yourself\n",
                flags.dir.c_str(), flags.days);
  }
  return absl::OkStatus();
}

// The new key is for whoever could read the old one.
absl::Status ReplaceKey(const std::string& path, const std::string& pem) {
  struct stat before {};
  const bool known = stat(path.c_str(), &before) == 0;
  RLHF_RETURN_IF_ERROR(WriteSecretFile(path, pem));
  if (!known) return absl::OkStatus();
  if (chown(path.c_str(), before.st_uid, before.st_gid) != 0 || chmod(path.c_str(), before.st_mode & 0640) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot give ", path, " to those who could read it before"));
  return absl::OkStatus();
}

// Of all certificates of the folder, with the names they have. Nothing is written before all are issued.
absl::Status RenewFiles(const PkiFlags& flags, const CertificateAuthority& ca) {
  std::map<std::string, IssuedCertificate> renewed;  // by stem
  for (const auto& entry : std::filesystem::directory_iterator(flags.dir)) {
    std::filesystem::path stem = entry.path();
    if (stem.extension() != ".pem" || stem.filename() == "ca.pem") continue;
    stem.replace_extension();
    if (!std::filesystem::exists(stem.string() + ".key")) continue;  // none that was issued here
    RLHF_ASSIGN_OR_RETURN(CertificateNames names, NamesOfFile(entry.path().string()));
    if (names.identity.role == "coordinator")
      names.hosts.insert(names.hosts.end(), flags.hosts.begin(), flags.hosts.end());
    RLHF_ASSIGN_OR_RETURN(renewed[stem.string()], IssueCertificate(ca, names.identity.domain, names.identity.role,
                                                                   names.identity.instance, names.hosts, flags.days));
  }
  if (renewed.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("expected certificates in ", flags.dir,
                     " (NAME.pem and NAME.key), found none: rlhfctl pki init "
                     "makes one of each role; in a cluster they are Secrets: --kubernetes"));
  }
  for (const auto& [stem, issued] : renewed) {
    RLHF_RETURN_IF_ERROR(WriteFileDurably(stem + ".pem", issued.cert_pem));
    RLHF_RETURN_IF_ERROR(ReplaceKey(stem + ".key", issued.key_pem));
    std::printf("%s.pem\n", stem.c_str());
  }
  std::printf("%d certificates renewed for %d days; the CA is the same\n", static_cast<int>(renewed.size()),
              flags.days);
  return absl::OkStatus();
}

absl::Status Renew(const PkiFlags& flags) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, CaOf(flags, /*may_make=*/false));
  return flags.kubernetes ? IssueRoles(flags, ca) : RenewFiles(flags, ca);
}

absl::Status Issue(const PkiFlags& flags) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, CaOf(flags, /*may_make=*/false));
  RLHF_ASSIGN_OR_RETURN(const IssuedCertificate issued,
                        IssueCertificate(ca, flags.domain, flags.role, flags.instance, flags.hosts, flags.days));
  const std::string stem = absl::StrCat(flags.dir, "/", flags.instance);
  RLHF_RETURN_IF_ERROR(WriteFileDurably(stem + ".pem", issued.cert_pem));
  RLHF_RETURN_IF_ERROR(WriteSecretFile(stem + ".key", issued.key_pem));
  std::printf("%s.pem and %s.key\n", stem.c_str(), stem.c_str());
  return absl::OkStatus();
}

int Done(const absl::Status& status) {
  return status.ok() ? static_cast<int>(v1::EXIT_OK) : Fail(Here(status));
}

}  // namespace

void AddPkiCommands(CLI::App& app, Run* run) {
  const auto flags = std::make_shared<PkiFlags>();
  auto* pki = app.add_subcommand("pki", "A CA of one's own and the fleet's certificates");
  pki->require_subcommand(1);
  const auto common = [&](CLI::App* command) {
    command->add_option("--dir", flags->dir, "Folder of the CA and the certificates")->capture_default_str();
    command->add_option("--domain", flags->domain, "SPIFFE trust domain")->capture_default_str();
    command->add_option("--days", flags->days, "Life of the certificates")
        ->check(CLI::Range(1, 3650))
        ->capture_default_str();
    command->add_option("--host", flags->hosts, "A name or address clients use; may be repeated");
  };
  auto* init = pki->add_subcommand("init", "Make a CA (or use the folder's) and a certificate of each role");
  common(init);
  init->add_flag("--kubernetes", flags->kubernetes, "Print Secrets for kubectl apply -f - instead of writing files");
  init->add_option("--namespace", flags->name_space, "Namespace of the Secrets")->capture_default_str();
  init->callback([=] { *run = [=] { return Done(Init(*flags)); }; });
  auto* renew = pki->add_subcommand("renew", "The folder's certificates anew, with the names they have, by its CA");
  common(renew);
  renew->add_flag("--kubernetes", flags->kubernetes,
                  "Print Secrets of each role for kubectl apply -f - instead; --host and --domain as for init");
  renew->add_option("--namespace", flags->name_space, "Namespace of the Secrets")->capture_default_str();
  renew->callback([=] { *run = [=] { return Done(Renew(*flags)); }; });
  auto* issue = pki->add_subcommand("issue", "A certificate of one instance, by the folder's CA");
  common(issue);
  issue->add_option("--role", flags->role, "Its role")
      ->required()
      ->check(CLI::IsMember({"coordinator", "learner", "rollout_worker", "reward_server"}));
  issue->add_option("--instance", flags->instance, "Its name")->required();
  issue->callback([=] { *run = [=] { return Done(Issue(*flags)); }; });
}

}  // namespace rlhf::cli
