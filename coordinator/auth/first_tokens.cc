#include "coordinator/auth/first_tokens.h"

#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "artifact/digest.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kLife = absl::Hours(24 * 30);
constexpr absl::Duration kFirstTokensLife = absl::Hours(24 * 365);

bool IsHex(const std::string& text, size_t length) {
  return text.size() == length && absl::c_all_of(text, [](unsigned char c) { return absl::ascii_isxdigit(c); });
}

}  // namespace

absl::StatusOr<v1::TokenRow> BootstrapTokenRow(const std::string& token, absl::Time now) {
  const std::vector<std::string> parts = absl::StrSplit(absl::StripAsciiWhitespace(token), '_');
  if (parts.size() != 3 || parts[0] != "rlhf" || !IsHex(parts[1], 12) || !IsHex(parts[2], 64)) {
    return absl::InvalidArgumentError(
        "expected a token as `rlhfctl token create --bootstrap` makes it (rlhf_<12 hex digits>_<64 hex digits>)");
  }
  v1::TokenRow row;
  row.set_id(parts[1]);
  row.set_sha256(artifact::Sha256Hex(parts[2]));
  row.set_subject("bootstrap-admin");
  row.set_project("*");
  row.add_roles(v1::ADMIN);
  row.mutable_created_at()->set_seconds(absl::ToUnixSeconds(now));
  row.mutable_expires_at()->set_seconds(absl::ToUnixSeconds(now + kLife));
  return row;
}

absl::StatusOr<std::string> TakeUpBootstrapToken(StateStore* store, const std::string& file, absl::Time now) {
  bool any = false;
  RLHF_RETURN_IF_ERROR(store->Scan(Table::kTokens, "", [&any](absl::string_view, absl::string_view) {
    any = true;
    return false;
  }));
  if (any) return std::string();
  const absl::StatusOr<std::string> token = ReadFile(file);
  if (!token.ok())
    return Annotate(token.status(),
                    "there are no tokens yet, so the first is expected in the file of "
                    "--bootstrap-token-file (rlhfctl token create --bootstrap makes one)");
  const absl::StatusOr<v1::TokenRow> row = BootstrapTokenRow(*token, now);
  if (!row.ok()) return Annotate(row.status(), file);
  WriteBatch batch;
  batch.Put(Table::kTokens, row->id(), row->SerializeAsString());
  spdlog::info("the admin token of {} is accepted; revoke it when there are others", file);
  RLHF_RETURN_IF_ERROR(store->CommitAndWait(std::move(batch)));
  return row->id();
}

absl::Status AuditBootstrapToken(Oversight* oversight, StateStore* store, const std::string& id) {
  WriteBatch batch;
  oversight->Audit("bootstrap", "token.create", id, "allowed",
                   {{"subject", "bootstrap-admin"}, {"project", "*"}, {"roles", "admin"}}, &batch);
  return store->CommitAndWait(std::move(batch));
}

absl::Status MintFirstTokens(Tokens* tokens, Oversight* oversight, StateStore* store, const std::string& file) {
  if (!tokens->List().empty()) {
    spdlog::info("there are tokens already; {} is left as it is", file);
    return absl::OkStatus();
  }
  nlohmann::ordered_json secrets;
  WriteBatch batch;
  std::vector<std::string> ids;
  for (const v1::TokenRole role : {v1::ADMIN, v1::SUBMITTER, v1::RATER, v1::OVERSEER}) {
    Tokens::Request request;
    request.subject = RoleName(role);
    request.project = role == v1::ADMIN || role == v1::OVERSEER ? "*" : "default";
    request.roles = {role};
    request.ttl = kFirstTokensLife;
    RLHF_ASSIGN_OR_RETURN(const Tokens::Minted minted, tokens->PrepareMint(request, &batch));
    oversight->Audit("bootstrap", "token.create", minted.row.id(), "allowed",
                     {{"subject", request.subject}, {"project", request.project}, {"roles", request.subject}}, &batch);
    secrets[request.subject] = minted.secret;
    ids.push_back(minted.row.id());
  }
  // The file first: a crash in between leaves a file that the next start replaces, never tokens that nobody has.
  RLHF_RETURN_IF_ERROR(WriteSecretFile(file, absl::StrCat(secrets.dump(2), "\n")));
  RLHF_RETURN_IF_ERROR(store->CommitAndWait(std::move(batch)));
  for (const std::string& id : ids) tokens->ApplyMint(id);
  spdlog::info("one token of each role is in {}", file);
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
