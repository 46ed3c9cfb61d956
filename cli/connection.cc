#include "cli/connection.h"

#include <cstdio>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {
namespace {

std::string Beside(const std::filesystem::path& context_file, const std::string& path) {
  if (path.empty() || std::filesystem::path(path).is_absolute()) return path;
  return (context_file.parent_path() / path).string();
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ConnectionFlags& flags) {
  client::ChannelOptions options;
  std::string token_file = flags.token_file;
  options.address = flags.address;
  options.tls.ca_file = flags.ca_file;
  options.tls.insecure = flags.insecure;
  if (options.address.empty()) {
    auto text = ReadFile(flags.context_file);
    if (!text.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("no coordinator is named: expected --address, or a context file at ", flags.context_file,
                       " (rlhfctl up writes one; --context names another)"));
    }
    const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("address") || !json["address"].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(flags.context_file, ": expected a JSON object with \"address\""));
    }
    options.address = json["address"].get<std::string>();
    options.tls.insecure = options.tls.insecure || json.value("insecure", false);
    if (options.tls.ca_file.empty()) options.tls.ca_file = Beside(flags.context_file, json.value("ca_file", ""));
    if (token_file.empty()) token_file = Beside(flags.context_file, json.value("token_file", ""));
  }
  if (!token_file.empty()) {
    auto token = ReadFile(token_file);
    if (!token.ok()) return Annotate(token.status(), "token file");
    options.bearer_token = std::string(absl::StripAsciiWhitespace(*token));
  }
  return client::MakeChannel(options);
}

std::string AuditPublicKeyFile(const ConnectionFlags& flags) {
  if (!flags.address.empty()) return "";
  const auto json = nlohmann::json::parse(ReadFile(flags.context_file).value_or(""), nullptr, false);
  return json.is_object() ? Beside(flags.context_file, json.value("audit_public_key", "")) : "";
}

std::unique_ptr<grpc::ClientContext> CallContext(absl::Duration timeout) {
  return client::MakeContext(timeout);
}

int Fail(const absl::Status& status) {
  std::string next;
  int code = v1::EXIT_ERROR;
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      next = "is the coordinator running there? `rlhfctl up` starts one";
      code = v1::EXIT_UNREACHABLE;
      break;
    case absl::StatusCode::kUnauthenticated:
      next = "name a token with --token-file; an admin makes one with `rlhfctl token create`";
      code = v1::EXIT_DENIED;
      break;
    case absl::StatusCode::kPermissionDenied:
      next = "use a token whose role and project allow it";
      code = v1::EXIT_DENIED;
      break;
    case absl::StatusCode::kNotFound:
      next = "`rlhfctl list` shows the jobs, `rlhfctl models list` and `rlhfctl data list` the artifacts";
      break;
    case absl::StatusCode::kInvalidArgument:
      code = v1::EXIT_USAGE;
      break;
    default:
      break;
  }
  std::fprintf(stderr, "rlhfctl: error: %s (%s)\n", std::string(status.message()).c_str(),
               absl::StatusCodeToString(status.code()).c_str());
  if (!next.empty()) std::fprintf(stderr, "rlhfctl: %s\n", next.c_str());
  return code;
}

}  // namespace rlhf::cli
