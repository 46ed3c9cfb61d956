// pki init, pki issue: a CA of one's own and the fleet's certificates.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cli/ca_folder.h"
#include "cli/commands/commands.h"
#include "cli/kubernetes.h"
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

// What the coordinator is called in a cluster of the base manifests.
std::vector<std::string> ServiceHosts(const std::string& name_space) {
  const std::string service = "rlhf-coordinator";
  return {service, absl::StrCat(service, ".", name_space), absl::StrCat(service, ".", name_space, ".svc"),
          absl::StrCat(service, ".", name_space, ".svc.cluster.local")};
}

absl::Status Init(const PkiFlags& flags) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, OpenOrMakeCa(flags.dir, flags.domain));
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
  } else {
    std::printf("%s holds the CA and a certificate of each role, for %d days; keep ca.key to yourself\n",
                flags.dir.c_str(), flags.days);
  }
  return absl::OkStatus();
}

absl::Status Issue(const PkiFlags& flags) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, OpenCa(flags.dir));
  RLHF_ASSIGN_OR_RETURN(const IssuedCertificate issued,
                        IssueCertificate(ca, flags.domain, flags.role, flags.instance, flags.hosts, flags.days));
  const std::string stem = absl::StrCat(flags.dir, "/", flags.instance);
  RLHF_RETURN_IF_ERROR(WriteFileDurably(stem + ".pem", issued.cert_pem));
  RLHF_RETURN_IF_ERROR(WriteSecretFile(stem + ".key", issued.key_pem));
  std::printf("%s.pem and %s.key\n", stem.c_str(), stem.c_str());
  return absl::OkStatus();
}

int Done(const absl::Status& status) {
  return status.ok() ? static_cast<int>(v1::EXIT_OK) : Fail(status);
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
  auto* issue = pki->add_subcommand("issue", "A certificate of one instance, by the folder's CA");
  common(issue);
  issue->add_option("--role", flags->role, "Its role")
      ->required()
      ->check(CLI::IsMember({"coordinator", "learner", "rollout_worker", "reward_server"}));
  issue->add_option("--instance", flags->instance, "Its name")->required();
  issue->callback([=] { *run = [=] { return Done(Issue(*flags)); }; });
}

}  // namespace rlhf::cli
