// What rollout workers, reward servers and learners are all told when they start, and what follows from it: how they
// reach the coordinator, listen, and register.
#pragma once

#include <string>

#include <grpcpp/grpcpp.h>

#include "client/cpp/channel.h"
#include "common/metrics.h"
#include "common/rpc_server.h"
#include "common/tls.h"
#include "rlhf/v1/fleet_service.pb.h"

namespace CLI {
class App;
}

namespace rlhf::client {

struct MemberFlags {
  std::string coordinator, instance;            // required
  std::string http_address = "127.0.0.1:0";     // metrics and probes
  std::string ports_file, artifact_root;        // empty: none
  std::string device = "cpu";                   // not parsed yet
  std::string trust_domain;                     // of the certificates of who calls; empty: any that the CA has signed
  std::string log_level = "info", trace_dir;    // no trace_dir: no spans are kept
  bool log_json = false, check_config = false;  // check_config: parse and exit
  int threads = 1;
  TlsFiles tls;
};

// `flags` outlives the parsing. With them come --version, and --config for a file with the same keys.
void AddMemberFlags(CLI::App* app, const std::string& program, MemberFlags* flags);

ChannelOptions ToCoordinator(const MemberFlags& flags);
// A listener for other members of the fleet. `service` and `metrics` outlive the server.
RpcServerOptions ListenerOf(const MemberFlags& flags, const std::string& address, Authorizer authorizer,
                            grpc::Service* service, MetricsRegistry* metrics);
// Without an address and slots.
v1::RegisterRequest IdentityOf(const MemberFlags& flags, v1::Role role);

}  // namespace rlhf::client
