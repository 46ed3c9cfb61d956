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

namespace {

// Nobody can do anything about an admin who is missing but who runs the coordinator; jobs need none to go on.
absl::Status WithoutAdmin(bool first, const absl::Status& status, absl::string_view remedy) {
  if (first) return status;
  spdlog::error("no token works any more that is admin of all projects: {}; {}", std::string(status.message()),
                std::string(remedy));
  return absl::OkStatus();
}

absl::StatusOr<v1::TokenRow> PrepareBootstrap(Tokens* tokens, const std::string& file, absl::Time now,
                                              WriteBatch* batch) {
  const absl::StatusOr<std::string> token = ReadFile(file);
  if (!token.ok()) {
    return Annotate(
        token.status(),
        "there is no admin's token, so one is expected in the file of --bootstrap-token-file (rlhfctl token "
        "create --bootstrap makes one)");
  }
  const absl::StatusOr<v1::TokenRow> row = BootstrapTokenRow(*token, now);
  if (!row.ok()) return Annotate(row.status(), file);
  RLHF_RETURN_IF_ERROR(tokens->PrepareAccept(*row, batch));
  return row;
}

// Of every role; those that were prepared when one fails are in `minted` too.
absl::Status PrepareFirst(Tokens* tokens, std::vector<Tokens::Minted>* minted, WriteBatch* batch) {
  for (const v1::TokenRole role : {v1::ADMIN, v1::SUBMITTER, v1::RATER, v1::OVERSEER}) {
    Tokens::Request request;
    request.subject = RoleName(role);
    request.project = role == v1::ADMIN || role == v1::OVERSEER ? "*" : "default";
    request.roles = {role};
    request.ttl = kFirstTokensLife;
    RLHF_ASSIGN_OR_RETURN(Tokens::Minted made, tokens->PrepareMint(request, batch));
    minted->push_back(std::move(made));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TakeUpBootstrapToken(Tokens* tokens, Oversight* oversight, StateStore* store, const std::string& file,
                                  absl::Time now) {
  if (tokens->AdminUntil() > now) return absl::OkStatus();
  const bool first = tokens->List().empty();
  WriteBatch batch;
  const absl::StatusOr<v1::TokenRow> row = PrepareBootstrap(tokens, file, now, &batch);
  if (!row.ok()) {
    return WithoutAdmin(
        first, row.status(),
        absl::StrCat("put a new one into ", file, " (rlhfctl token create --bootstrap) and start again"));
  }
  oversight->Audit("bootstrap", "token.create", row->id(), "allowed",
                   {{"subject", row->subject()}, {"project", "*"}, {"roles", "admin"}}, &batch);
  RLHF_RETURN_IF_ERROR(store->CommitAndWait(std::move(batch)));
  tokens->ApplyMint(row->id());
  spdlog::info("the admin token of {} is accepted for {} days; make others, and revoke it", file,
               absl::ToInt64Hours(kLife) / 24);
  return absl::OkStatus();
}

absl::Status MintFirstTokens(Tokens* tokens, Oversight* oversight, StateStore* store, const std::string& file) {
  if (tokens->AdminUntil() != absl::InfinitePast()) {
    spdlog::info("there is an admin already; {} is left as it is", file);
    return absl::OkStatus();
  }
  const bool first = tokens->List().empty();
  WriteBatch batch;
  std::vector<Tokens::Minted> minted;
  absl::Status status = PrepareFirst(tokens, &minted, &batch);
  nlohmann::ordered_json secrets;
  for (const Tokens::Minted& made : minted) secrets[made.row.subject()] = made.secret;
  // The file first: a crash in between leaves a file that the next start replaces, never tokens that nobody has.
  if (status.ok()) status = WriteSecretFile(file, absl::StrCat(secrets.dump(2), "\n"));
  if (!status.ok()) {
    for (const Tokens::Minted& made : minted) tokens->AbandonMint(made.row.id());
    return WithoutAdmin(first, status, "mend that and start again");
  }
  for (const Tokens::Minted& made : minted) {
    oversight->Audit("bootstrap", "token.create", made.row.id(), "allowed",
                     {{"subject", made.row.subject()}, {"project", made.row.project()}, {"roles", made.row.subject()}},
                     &batch);
  }
  RLHF_RETURN_IF_ERROR(store->CommitAndWait(std::move(batch)));
  for (const Tokens::Minted& made : minted) tokens->ApplyMint(made.row.id());
  spdlog::info("one token of each role is in {}", file);
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
