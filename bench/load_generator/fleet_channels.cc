#include "bench/load_generator/fleet_channels.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::bench {
namespace {

constexpr char kDomain[] = "bench";
constexpr int kDays = 1;

}  // namespace

absl::StatusOr<FleetChannels> FleetChannels::Make(const std::string& dir, bool insecure) {
  FleetChannels channels;
  channels.dir_ = dir;
  channels.insecure_ = insecure;
  if (insecure) return channels;
  RLHF_ASSIGN_OR_RETURN(channels.ca_, MakeCertificateAuthority(kDomain, kDays));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(dir, "/ca.pem"), channels.ca_.cert_pem));
  RLHF_RETURN_IF_ERROR(channels.Issue("coordinator", "coordinator").status());
  return channels;
}

TlsFiles FleetChannels::coordinator() const {
  TlsFiles files;
  files.insecure = insecure_;
  files.ca_file = absl::StrCat(dir_, "/ca.pem");
  files.cert_file = absl::StrCat(dir_, "/coordinator.pem");
  files.key_file = absl::StrCat(dir_, "/coordinator.key");
  return files;
}

TlsFiles FleetChannels::api() const {
  TlsFiles files;
  files.insecure = insecure_;
  files.ca_file = absl::StrCat(dir_, "/ca.pem");
  return files;
}

absl::StatusOr<TlsFiles> FleetChannels::Issue(const std::string& role, const std::string& instance) const {
  TlsFiles files = coordinator();
  files.cert_file = absl::StrCat(dir_, "/", instance, ".pem");
  files.key_file = absl::StrCat(dir_, "/", instance, ".key");
  if (insecure_) return files;
  RLHF_ASSIGN_OR_RETURN(const IssuedCertificate issued, IssueCertificate(ca_, kDomain, role, instance, {}, kDays));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(files.cert_file, issued.cert_pem));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(files.key_file, issued.key_pem));
  return files;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> FleetChannels::Connect(const std::string& address,
                                                                      const std::string& role,
                                                                      const std::string& instance) const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  arguments.SetMaxSendMessageSize(64 << 20);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!insecure_) {
    RLHF_ASSIGN_OR_RETURN(const IssuedCertificate issued, IssueCertificate(ca_, kDomain, role, instance, {}, kDays));
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = ca_.cert_pem;
    options.pem_cert_chain = issued.cert_pem;
    options.pem_private_key = issued.key_pem;
    credentials = grpc::SslCredentials(options);
  }
  if (!absl::StrContains(address, ',')) return grpc::CreateCustomChannel(address, credentials, arguments);
  RLHF_ASSIGN_OR_RETURN(const std::string target, client::TargetOf(address, &arguments));
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  if (!insecure_) arguments.SetSslTargetNameOverride("127.0.0.1");
  return grpc::CreateCustomChannel(target, credentials, arguments);
}

}  // namespace rlhf::bench
