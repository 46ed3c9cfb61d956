#include "cli/connection.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {
namespace {

std::string Beside(const std::filesystem::path& context_file, const std::string& path) {
  return path.empty() ? path : (context_file.parent_path() / path).string();  // or `path`, when it is absolute
}

constexpr char kHere[] = "rlhfctl/of-this-machine";

// A context file's text, which may be left out.
absl::StatusOr<std::string> Text(const nlohmann::json& json, const char* key, const std::string& file) {
  if (!json.contains(key)) return "";
  if (!json[key].is_string())
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", key, ": expected a text, found ", json[key].dump()));
  return json[key].get<std::string>();
}

absl::Status ReadContext(const ConnectionFlags& flags, client::ChannelOptions* options, std::string* token_file) {
  const std::string& file = flags.context_file;
  auto text = ReadFile(file);
  if (!text.ok()) {
    if (!flags.address.empty() && absl::IsNotFound(text.status())) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("no coordinator is named: expected --address, or a context file at ", file,
                     " (rlhfctl up writes one; --context names another)"));
  }
  const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("address") || !json["address"].is_string())
    return absl::InvalidArgumentError(absl::StrCat(file, ": expected a JSON object with \"address\""));
  if (flags.address.empty()) {
    RLHF_ASSIGN_OR_RETURN(options->address, Text(json, "address", file));
    const auto insecure = json.find("insecure");
    options->tls.insecure = options->tls.insecure || (insecure != json.end() && *insecure == true);
  }
  RLHF_ASSIGN_OR_RETURN(const std::string ca_file, Text(json, "ca_file", file));
  RLHF_ASSIGN_OR_RETURN(const std::string token, Text(json, "token_file", file));
  if (options->tls.ca_file.empty()) options->tls.ca_file = Beside(file, ca_file);
  if (token_file->empty()) *token_file = Beside(file, token);
  return absl::OkStatus();
}

// Never shows what it found: a token, or a part of one.
absl::StatusOr<std::string> ReadToken(const std::string& file) {
  auto text = ReadFile(file);
  if (!text.ok()) return Annotate(text.status(), "token file");
  absl::string_view token = *text;
  absl::ConsumePrefix(&token, "\xef\xbb\xbf");  // a byte order mark
  token = absl::StripAsciiWhitespace(token);
  const auto in_a_token = [](char c) {  // RFC 6750, b64token
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("-._~+/=", c);
  };
  if (!token.empty() && std::all_of(token.begin(), token.end(), in_a_token)) return std::string(token);
  const char* found = token.empty()                    ? "nothing"
                      : absl::StrContains(token, '\n') ? "more than one line"
                                                       : "other characters than letters, digits and -._~+/=";
  return absl::InvalidArgumentError(
      absl::StrCat("token file ", file, ": expected a token on one line and nothing else, found ", found));
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannelOf(const ConnectionFlags& flags) {
  client::ChannelOptions options;
  std::string token_file = flags.token_file;
  options.address = flags.address;
  options.tls.ca_file = flags.ca_file;
  options.tls.insecure = flags.insecure;
  // Another address gets the context's token only where the context's CA vouches for who is there.
  if (options.address.empty() || (!options.tls.insecure && options.tls.ca_file.empty()))
    RLHF_RETURN_IF_ERROR(ReadContext(flags, &options, &token_file));
  if (!token_file.empty()) {
    RLHF_ASSIGN_OR_RETURN(options.bearer_token, ReadToken(token_file));
  }
  return client::MakeChannel(options);
}

}  // namespace

absl::Status Here(absl::Status status) {
  if (!status.ok()) status.SetPayload(kHere, absl::Cord());
  return status;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ConnectionFlags& flags) {
  auto channel = MakeChannelOf(flags);
  if (!channel.ok()) return Here(channel.status());
  return channel;
}

std::string AuditPublicKeyFile(const ConnectionFlags& flags) {
  if (!flags.address.empty()) return "";
  const auto json = nlohmann::json::parse(ReadFile(flags.context_file).value_or(""), nullptr, false);
  return json.is_object() ? Beside(flags.context_file, Text(json, "audit_public_key", "").value_or("")) : "";
}

std::unique_ptr<grpc::ClientContext> CallContext(absl::Duration timeout) {
  return client::MakeContext(timeout);
}

int Fail(const absl::Status& status) {
  std::string next;
  int code = v1::EXIT_ERROR;
  const bool here = status.GetPayload(kHere).has_value();
  switch (here && !absl::IsInvalidArgument(status) ? absl::StatusCode::kUnknown : status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      if (absl::StrContains(status.message(), "andshake failed")) {  // "Handshake", "handshake", by gRPC's release
        next =
            "somebody is there, and is no coordinator that the CA vouches for: give its CA with --ca, or another "
            "context";
        break;
      }
      // One with a reason is a coordinator's own word.
      if (ReasonOf(status) == v1::ERROR_REASON_UNSPECIFIED)
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
  std::fflush(stdout);
  std::fprintf(stderr, "rlhfctl: error: %s (%s)\n", std::string(status.message()).c_str(),
               absl::StatusCodeToString(status.code()).c_str());
  if (!next.empty()) std::fprintf(stderr, "rlhfctl: %s\n", next.c_str());
  return code;
}

}  // namespace rlhf::cli
