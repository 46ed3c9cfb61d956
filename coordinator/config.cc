#include "coordinator/config.h"

#include <unistd.h>

#include <algorithm>
#include <sstream>

#include <yaml-cpp/yaml.h>
#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/durable_file.h"
#include "common/process.h"
#include "common/spec_loader.h"
#include "common/status_util.h"
#include "coordinator/store/postgres_store.h"

namespace rlhf::coordinator {
namespace {

void Declare(CLI::App* app, CoordinatorConfig* config, std::string* file) {
  const auto option = [app](const std::string& name, auto& value, const std::string& help) {
    return app->add_option(name, value, help)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->capture_default_str();
  };
  option("--config", *file, "YAML file with these keys, without the dashes; flags win");
  option("--data-dir", config->data_dir, "folder of the coordinator's state (required)");
  option("--store", config->store,
         "sqlite (a file in the data folder), or postgresql://USER@HOST/DATABASE?passfile=FILE: coordinators with the "
         "same database and data folder stand by for each other");
  option("--artifact-root", config->artifact_root, "folder of artifacts; default DATA_DIR/artifacts");
  option("--fleet-address", config->fleet_address, "host:port for workers, learners and reward servers");
  option("--api-address", config->api_address, "host:port for people and scripts");
  option("--http-address", config->http_address, "host:port for metrics and probes");
  option("--web-address,--web", config->web_address, "host:port of the web pages");
  option("--advertise-address", config->advertise_address, "host by which others reach this process");
  option("--tls-ca", config->tls_ca, "PEM of the fleet's CA");
  option("--tls-cert", config->tls_cert, "PEM of this process's fleet certificate");
  option("--tls-key", config->tls_key, "PEM of its key");
  option("--api-cert", config->api_cert, "PEM of the API listener's certificate; default: the fleet's");
  option("--api-key", config->api_key, "PEM of its key");
  option("--trust-domain", config->trust_domain, "SPIFFE domain of fleet certificates; default: any");
  app->add_flag("--insecure", config->insecure, "neither TLS nor tokens; for tests");
  option("--bootstrap-tokens", config->bootstrap_tokens,
         "where nobody is admin, as on the first start, write one token of each role to this file");
  option("--audit-key-file", config->audit_key_file,
         "Ed25519 private key (PEM) that signs the audit log's head and model cards; made if absent");
  option("--bootstrap-token-file", config->bootstrap_token_file,
         "file with an admin token to accept at start where nobody is admin (rlhfctl token create --bootstrap)");
  option("--ports-file", config->ports_file, "write the bound ports to this file once ready");
  option("--log-level", config->log_level, "debug, info, warn or error");
  app->add_flag("--log-json", config->log_json, "log lines as JSON");
  option("--trace-dir", config->trace_dir, "keep spans of traced calls there, as OTLP/JSON lines");
  option("--heartbeat-ms", config->heartbeat_ms, "how often the fleet reports");
  option("--lease-ms", config->lease_ms, "a session's life without a heartbeat");
  option("--no-progress-ms", config->no_progress_ms, "a lease's life without progress on it");
  option("--weights-fan-out", config->weights_fan_out,
         "to how many rollout workers a process sends a version's weights, the learner and each worker; 0: the learner "
         "to all of them");
  option("--min-free-mb", config->min_free_mb,
         "jobs pause while a volume of state or artifacts has less room, and go on by themselves when it has more");
  option("--receive-memory-mb", config->receive_memory_mb,
         "memory for what clients of both gRPC listeners have sent and nobody has read to its end; past it calls end");
  option("--grace-ms", config->grace_ms, "how long calls may take to finish on SIGTERM");
  app->add_flag("--check-config", config->check_config, "check the configuration and exit");
}

// The file as arguments, so that both take the same way.
absl::StatusOr<std::vector<std::string>> ArgumentsOf(const std::string& file, const CLI::App& app) {
  RLHF_ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":", error.mark.line + 1, ":", error.mark.column + 1, ": ", error.msg));
  }
  std::vector<std::string> arguments;
  if (root.IsNull()) return arguments;
  if (!root.IsMap())
    return absl::InvalidArgumentError(absl::StrCat(file, ":1:1: expected a mapping of keys to values"));
  for (const auto& item : root) {
    const YAML::Mark mark = item.first.Mark();
    const std::string where = absl::StrCat(file, ":", mark.line + 1, ":", mark.column + 1, ": ");
    if (!item.first.IsScalar()) return absl::InvalidArgumentError(absl::StrCat(where, "expected a key"));
    const std::string key = absl::StrReplaceAll(item.first.Scalar(), {{"_", "-"}});
    const CLI::Option* option = app.get_option_no_throw(absl::StrCat("--", key));
    if (option == nullptr || key == "config" || key == "check-config" || key == "help" || key == "version") {
      std::vector<std::string> names;
      for (const CLI::Option* known : app.get_options()) names.push_back(known->get_single_name());
      const std::string nearest = NearestName(key, names);
      return absl::InvalidArgumentError(absl::StrCat(
          where, "unknown key \"", key, "\"",
          nearest.empty() ? "; --help lists the keys" : absl::StrCat("; the nearest is \"", nearest, "\"")));
    }
    if (!item.second.IsScalar()) return absl::InvalidArgumentError(absl::StrCat(where, key, ": expected one value"));
    arguments.push_back(absl::StrCat("--", key, "=", item.second.Scalar()));
  }
  return arguments;
}

absl::Status CheckAddress(const std::string& key, const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, ": expected host:port with a port of 0 to 65535, found \"", address, "\""));
  }
  return absl::OkStatus();
}

absl::Status CheckReadable(const std::string& key, const std::string& file) {
  if (file.empty())
    return absl::InvalidArgumentError(absl::StrCat(key, ": expected a file, found nothing (or give --insecure)"));
  if (access(file.c_str(), R_OK) != 0) return absl::InvalidArgumentError(absl::StrCat(key, ": cannot read ", file));
  return absl::OkStatus();
}

absl::Status Complete(CoordinatorConfig* config) {
  if (config->data_dir.empty()) return absl::InvalidArgumentError("data-dir: expected a folder, found nothing");
  if (config->artifact_root.empty()) config->artifact_root = absl::StrCat(config->data_dir, "/artifacts");
  if (config->store != "sqlite") RLHF_RETURN_IF_ERROR(CheckPostgresUri(config->store));
  RLHF_RETURN_IF_ERROR(CheckAddress("fleet-address", config->fleet_address));
  RLHF_RETURN_IF_ERROR(CheckAddress("api-address", config->api_address));
  RLHF_RETURN_IF_ERROR(CheckAddress("http-address", config->http_address));
  RLHF_RETURN_IF_ERROR(CheckAddress("web-address", config->web_address));
  if (config->heartbeat_ms < 10 || config->heartbeat_ms > 60'000) {
    return absl::InvalidArgumentError(absl::StrCat("heartbeat-ms: expected 10 to 60000, found ", config->heartbeat_ms));
  }
  if (config->min_free_mb < 0 || config->min_free_mb > 1'048'576) {
    return absl::InvalidArgumentError(absl::StrCat("min-free-mb: expected 0 to 1048576, found ", config->min_free_mb));
  }
  if (config->receive_memory_mb < 128 || config->receive_memory_mb > 1'048'576) {
    return absl::InvalidArgumentError(
        absl::StrCat("receive-memory-mb: expected 128 (two messages) to 1048576, found ", config->receive_memory_mb));
  }
  if (config->weights_fan_out < 0 || config->weights_fan_out > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("weights-fan-out: expected 0 to 64, found ", config->weights_fan_out));
  }
  if (config->no_progress_ms < config->lease_ms) {
    return absl::InvalidArgumentError(absl::StrCat("no-progress-ms: expected at least lease-ms (", config->lease_ms,
                                                   "), found ", config->no_progress_ms));
  }
  if (config->lease_ms <= config->heartbeat_ms) {
    return absl::InvalidArgumentError(absl::StrCat("lease-ms: expected more than heartbeat-ms (", config->heartbeat_ms,
                                                   "), found ", config->lease_ms));
  }
  if (config->grace_ms < 0)
    return absl::InvalidArgumentError(absl::StrCat("grace-ms: expected 0 or more, found ", config->grace_ms));
  const std::vector<std::string> levels = {"debug", "info", "warn", "error"};
  if (std::find(levels.begin(), levels.end(), config->log_level) == levels.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("log-level: expected debug, info, warn or error, found \"", config->log_level, "\""));
  }
  if (config->insecure) return absl::OkStatus();
  RLHF_RETURN_IF_ERROR(CheckReadable("tls-ca", config->tls_ca));
  RLHF_RETURN_IF_ERROR(CheckReadable("tls-cert", config->tls_cert));
  RLHF_RETURN_IF_ERROR(CheckReadable("tls-key", config->tls_key));
  if (config->api_cert.empty() != config->api_key.empty()) {
    return absl::InvalidArgumentError("api-cert, api-key: expected both or neither");
  }
  if (config->api_cert.empty()) {
    config->api_cert = config->tls_cert;
    config->api_key = config->tls_key;
  }
  RLHF_RETURN_IF_ERROR(CheckReadable("api-cert", config->api_cert));
  return CheckReadable("api-key", config->api_key);
}

}  // namespace

absl::StatusOr<CoordinatorConfig> ParseConfig(const std::vector<std::string>& arguments) {
  CoordinatorConfig config;
  std::string file;
  CLI::App app("The coordinator: jobs, the ledger of samples, the fleet, feedback and oversight.", "rlhf-coordinator");
  Declare(&app, &config, &file);
  app.set_version_flag("--version", VersionLine("rlhf-coordinator"));
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--config" && i + 1 < arguments.size()) file = arguments[i + 1];
    if (absl::StartsWith(arguments[i], "--config=")) file = arguments[i].substr(9);
  }
  std::vector<std::string> all;
  if (!file.empty()) {
    RLHF_ASSIGN_OR_RETURN(all, ArgumentsOf(file, app));
  }
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::reverse(all.begin(), all.end());  // as CLI11 wants them
  try {
    app.parse(all);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    if (app.exit(error, out, err) == 0) return absl::CancelledError(out.str());
    return absl::InvalidArgumentError(absl::StrCat(error.what(), "; --help lists the flags"));
  }
  RLHF_RETURN_IF_ERROR(Complete(&config));
  return config;
}

}  // namespace rlhf::coordinator
