#include "client/cpp/member_flags.h"

#include <utility>

#include <CLI/CLI.hpp>

#include "common/build_version.h"
#include "common/process.h"

namespace rlhf::client {

void AddMemberFlags(CLI::App* app, const std::string& program, MemberFlags* flags) {
  app->set_version_flag("--version", VersionLine(program));
  app->set_config("--config", "", "A file with the same keys as the flags");
  app->allow_config_extras(CLI::config_extras_mode::error);
  app->add_flag("--check-config", flags->check_config, "Parse the configuration and exit");
  app->add_option("--coordinator", flags->coordinator,
                  "Fleet address of the coordinator, host:port; of several: IP:PORT,IP:PORT or dns:///NAME:PORT")
      ->required();
  app->add_option("--instance", flags->instance, "Stable name of this process; equals the certificate's instance")
      ->required();
  app->add_option("--http-address", flags->http_address, "Plain HTTP for metrics and probes")->capture_default_str();
  app->add_option("--ports-file", flags->ports_file, "Where to write the bound ports, as JSON");
  app->add_option("--artifact-root", flags->artifact_root, "The shared artifact root, when mounted");
  app->add_option("--device", flags->device, "cpu or cuda:N")->capture_default_str();
  app->add_option("--threads", flags->threads, "Compute threads")->check(CLI::Range(1, 1024))->capture_default_str();
  app->add_flag("--insecure", flags->tls.insecure, "Plaintext, for trials");
  app->add_option("--tls-ca", flags->tls.ca_file, "CA certificates, PEM");
  app->add_option("--tls-cert", flags->tls.cert_file, "This process's certificate, PEM");
  app->add_option("--tls-key", flags->tls.key_file, "Its key, PEM");
  app->add_option("--trust-domain", flags->trust_domain,
                  "SPIFFE domain of the certificates of who calls this process; default: any");
  app->add_option("--log-level", flags->log_level, "debug, info, warn or error")->capture_default_str();
  app->add_flag("--log-json", flags->log_json, "Log JSON lines");
  app->add_option("--trace-dir", flags->trace_dir, "Keep spans there, as OTLP/JSON lines");
}

ChannelOptions ToCoordinator(const MemberFlags& flags) {
  ChannelOptions options;
  options.address = flags.coordinator;
  options.tls = flags.tls;
  return options;
}

RpcServerOptions ListenerOf(const MemberFlags& flags, const std::string& address, Authorizer authorizer,
                            grpc::Service* service, MetricsRegistry* metrics) {
  RpcServerOptions options;
  options.address = address;
  options.tls = flags.tls;
  options.require_client_certificate = true;
  options.authorizer = std::move(authorizer);
  options.services = {service};
  options.metrics = metrics;
  return options;
}

v1::RegisterRequest IdentityOf(const MemberFlags& flags, v1::Role role) {
  v1::RegisterRequest identity;
  identity.set_role(role);
  identity.set_instance_id(flags.instance);
  identity.set_protocol_version(kProtocolVersion);
  identity.set_build_version(BuildVersion());
  identity.set_device(flags.device);
  return identity;
}

}  // namespace rlhf::client
