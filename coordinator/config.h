// What the coordinator is told when it starts: flags, mirrored by a YAML file of the same keys (flags win).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rlhf::coordinator {

struct CoordinatorConfig {
  std::string data_dir;          // required: rows and payloads; one coordinator at a time
  std::string store = "sqlite";  // or postgresql://USER@HOST/DATABASE?passfile=FILE: rows are there, and of several
                                 // coordinators with this database and a shared data_dir one leads
  std::string artifact_root;     // default DATA_DIR/artifacts
  std::string fleet_address = "127.0.0.1:0";
  std::string api_address = "127.0.0.1:0";
  std::string http_address = "127.0.0.1:0";
  std::string web_address = "127.0.0.1:0";  // pages for people, with the API's certificate
  std::string advertise_address;  // host by which others reach this process; for the log and the ports file only
  std::string tls_ca, tls_cert, tls_key;  // fleet listener, and what is presented to reward servers
  std::string api_cert, api_key;          // default: the fleet's
  std::string trust_domain;               // of fleet certificates; default: any the CA signed
  bool insecure = false;                  // no TLS and no tokens on any listener
  std::string bootstrap_tokens;           // where a start without an admin writes one token of each role, as JSON
  std::string audit_key_file;             // Ed25519 private key that signs audit heads and model cards; made if absent
  std::string bootstrap_token_file;       // holds an admin token, taken up at start where nobody is admin
  std::string ports_file;                 // where the bound ports are written once ready
  std::string log_level = "info";
  bool log_json = false;
  std::string trace_dir;         // where spans are kept; empty: nowhere
  int heartbeat_ms = 3000;       // bounds [10, 60000]
  int lease_ms = 9000;           // a session's life without a heartbeat; more than heartbeat_ms
  int no_progress_ms = 60000;    // a lease's life without progress; at least lease_ms
  int weights_fan_out = 2;       // rollout workers that a process sends a version's weights to; bounds [0, 64]
  int min_free_mb = 64;          // on the volumes of state and artifacts: with less, jobs pause; bounds [0, 1048576]
  int receive_memory_mb = 1024;  // for what clients have sent and nobody has read to its end; bounds [128, 1048576]
  int grace_ms = 10000;          // for calls to finish on SIGTERM

  bool check_config = false;
};

// `arguments` without the program's name. Cancelled with the text to print for --help and --version.
absl::StatusOr<CoordinatorConfig> ParseConfig(const std::vector<std::string>& arguments);

}  // namespace rlhf::coordinator
