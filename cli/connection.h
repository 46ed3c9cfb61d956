// How rlhfctl reaches a coordinator: flags, or the context file that `rlhfctl up` and administrators write.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"

namespace rlhf::cli {

// A context file is JSON: {"address": "host:port", "ca_file": "…", "token_file": "…", "insecure": false,
// "audit_public_key": "…"}; paths are relative to the file.
struct ConnectionFlags {
  std::string context_file = ".rlhf/client.json";
  std::string address, ca_file, token_file;  // override the context file's
  bool insecure = false;
  std::string project;           // empty: the token's, and for listings all that the caller may see
  std::string output = "table";  // table, json, yaml
};

// Reads the context, CA and token; connects with the first call. With --address alone the context's CA is used if there
// is one, and its token with its CA only. Every error is of this machine (Here).
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ConnectionFlags& flags);

// The file that the context names as the audit log's public key; empty when it names none, or when --address is given
// and so no context is read.
std::string AuditPublicKeyFile(const ConnectionFlags& flags);

// A context with a deadline; every call has one.
std::unique_ptr<grpc::ClientContext> CallContext(absl::Duration timeout = absl::Seconds(30));

// Marks an error as one of this machine (a file, a folder, a flag) and not of a call.
absl::Status Here(absl::Status status);

// The process exit code of a failed call (rlhf.v1.ExitCode), after printing "rlhfctl: error: …" with the next step to
// stderr. What is marked by Here gets neither a call's exit code nor advice about the service: EXIT_USAGE when it is
// InvalidArgument, else EXIT_ERROR.
int Fail(const absl::Status& status);

}  // namespace rlhf::cli
