#include "coordinator/auth/tokens.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "artifact/digest.h"
#include "common/durable_file.h"
#include "common/fleet_authorizer.h"
#include "common/status_util.h"
#include "coordinator/auth/secrets.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

constexpr char kPseudonymKey[] = "pseudonym_key";
constexpr absl::Duration kLongestLife = absl::Hours(24 * 400);
constexpr size_t kLongestToken = 256;

void SetTime(absl::Time time, google::protobuf::Timestamp* out) {
  const int64_t seconds = absl::ToUnixSeconds(time);
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}
absl::Time TimeOf(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

bool HasRole(const v1::TokenRow& row, v1::TokenRole role) {
  return std::find(row.roles().begin(), row.roles().end(), role) != row.roles().end();
}

absl::Status Refuse(const std::string& message, const char* label, std::string* why) {
  if (why != nullptr) *why = label;
  return Unauthenticated(message);
}

absl::Status Validate(const Tokens::Request& request) {
  RLHF_RETURN_IF_ERROR(CheckText("subject", request.subject, 128));
  if (request.project != "*") RLHF_RETURN_IF_ERROR(CheckName("project", request.project));
  if (request.roles.empty()) return absl::InvalidArgumentError("roles: expected at least one, found none");
  for (const v1::TokenRole role : request.roles) {
    if (role == v1::TOKEN_ROLE_UNSPECIFIED || !v1::TokenRole_IsValid(role)) {
      return absl::InvalidArgumentError(absl::StrCat("roles: ", static_cast<int>(role), " is not a role"));
    }
  }
  if (request.ttl <= absl::ZeroDuration() || request.ttl > kLongestLife) {
    return absl::InvalidArgumentError(absl::StrCat("ttl_seconds: expected 1 to ", absl::ToInt64Seconds(kLongestLife),
                                                   ", found ", absl::ToInt64Seconds(request.ttl)));
  }
  return absl::OkStatus();
}

}  // namespace

std::string RoleName(v1::TokenRole role) {
  return absl::AsciiStrToLower(v1::TokenRole_Name(role));
}

absl::StatusOr<std::unique_ptr<Tokens>> Tokens::Open(StateStore* store, const Clock* clock) {
  std::unique_ptr<Tokens> tokens(new Tokens(store, clock));
  RLHF_RETURN_IF_ERROR(tokens->Recover());
  return tokens;
}

absl::Status Tokens::Recover() {
  absl::Status bad;
  absl::MutexLock lock(&mu_);
  const auto read = [&](absl::string_view key, absl::string_view value) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Entry entry;
    if (!entry.row.ParseFromArray(value.data(), static_cast<int>(value.size()))) {
      bad = absl::DataLossError(absl::StrCat("the token row \"", key, "\" cannot be read; restore a backup"));
      return false;
    }
    const std::string id = entry.row.id();
    entries_[id] = std::move(entry);
    return true;
  };
  RLHF_RETURN_IF_ERROR(store_->Scan(Table::kTokens, "", read));
  RLHF_RETURN_IF_ERROR(bad);
  const absl::StatusOr<std::string> key = store_->Get(Table::kMeta, kPseudonymKey);
  if (key.ok()) {
    pseudonym_key_ = *key;
    return absl::OkStatus();
  }
  if (!absl::IsNotFound(key.status())) return key.status();
  RLHF_ASSIGN_OR_RETURN(pseudonym_key_, RandomHex(32));
  WriteBatch batch;
  batch.Put(Table::kMeta, kPseudonymKey, pseudonym_key_);
  return store_->CommitAndWait(std::move(batch));
}

absl::StatusOr<v1::TokenRow> Tokens::Verify(const std::string& token, std::string* why) const {
  const std::vector<std::string> parts = absl::StrSplit(token.substr(0, kLongestToken + 1), '_');
  if (token.size() > kLongestToken || parts.size() != 3 || parts[0] != "rlhf" || parts[2].empty()) {
    return Refuse("the token is malformed: expected rlhf_<id>_<secret>", "malformed_token", why);
  }
  const std::string hash = artifact::Sha256Hex(parts[2]);
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(parts[1]);
  if (it == entries_.end() || !it->second.active || !SecretsEqual(it->second.row.sha256(), hash)) {
    return Refuse("the token is not one of this service's; ask an admin for one (rlhfctl token create)",
                  "unknown_token", why);
  }
  const v1::TokenRow& row = it->second.row;
  if (row.revoked()) {
    return Refuse(absl::StrCat("the token ", row.id(), " was revoked; ask an admin for another"), "revoked_token", why);
  }
  const absl::Time expires = TimeOf(row.expires_at());
  if (clock_->WallNow() >= expires) {
    return Refuse(
        absl::StrCat("the token ", row.id(), " expired at ",
                     absl::FormatTime(absl::RFC3339_sec, expires, absl::UTCTimeZone()), "; ask an admin for another"),
        "expired_token", why);
  }
  return row;
}

absl::StatusOr<Tokens::Minted> Tokens::PrepareMint(const Request& request, WriteBatch* batch) {
  RLHF_RETURN_IF_ERROR(Validate(request));
  std::string id, secret;
  RLHF_ASSIGN_OR_RETURN(id, RandomHex(6));
  RLHF_ASSIGN_OR_RETURN(secret, RandomHex(32));
  Entry entry;
  entry.active = false;
  v1::TokenRow& row = entry.row;
  row.set_id(id);
  row.set_sha256(artifact::Sha256Hex(secret));
  row.set_subject(request.subject);
  row.set_project(request.project);
  for (const v1::TokenRole role : request.roles) {
    if (!HasRole(row, role)) row.add_roles(role);
  }
  const absl::Time now = clock_->WallNow();
  SetTime(now, row.mutable_created_at());
  SetTime(now + request.ttl, row.mutable_expires_at());

  absl::MutexLock lock(&mu_);
  RLHF_RETURN_IF_ERROR(CheckRoles(row));
  batch->Put(Table::kTokens, id, row.SerializeAsString());
  Minted minted;
  minted.row = row;
  minted.row.clear_sha256();
  minted.secret = absl::StrCat("rlhf_", id, "_", secret);
  entries_[id] = std::move(entry);
  return minted;
}

absl::Status Tokens::CheckRoles(const v1::TokenRow& row) const {
  // One subject is one person: what counts is the union of all their tokens that still work.
  const absl::Time now = clock_->WallNow();
  bool admin = HasRole(row, v1::ADMIN), overseer = HasRole(row, v1::OVERSEER);
  for (const auto& [id, other] : entries_) {
    if (other.row.subject() != row.subject() || other.row.revoked() || TimeOf(other.row.expires_at()) <= now) continue;
    admin = admin || HasRole(other.row, v1::ADMIN);
    overseer = overseer || HasRole(other.row, v1::OVERSEER);
  }
  if (!admin || !overseer) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("\"", row.subject(),
                                                    "\" would be admin and overseer; the roles exclude each other: "
                                                    "choose another person, or revoke their other token first"));
}

absl::Status Tokens::PrepareAccept(const v1::TokenRow& row, WriteBatch* batch) {
  absl::MutexLock lock(&mu_);
  for (const auto& [id, other] : entries_) {
    if (id != row.id() && !SecretsEqual(other.row.sha256(), row.sha256())) continue;
    return absl::AlreadyExistsError(absl::StrCat("the token ", id, " was one of this service's before",
                                                 other.row.revoked() ? ", and was revoked" : "",
                                                 "; expected one that is new"));
  }
  RLHF_RETURN_IF_ERROR(CheckRoles(row));
  batch->Put(Table::kTokens, row.id(), row.SerializeAsString());
  entries_[row.id()] = {row, /*active=*/false};
  return absl::OkStatus();
}

void Tokens::ApplyMint(const std::string& id) {
  absl::MutexLock lock(&mu_);
  entries_[id].active = true;
}

void Tokens::AbandonMint(const std::string& id) {
  absl::MutexLock lock(&mu_);
  entries_.erase(id);
}

absl::Status Tokens::PrepareRevoke(const std::string& id, WriteBatch* batch) const {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(id);
  if (it == entries_.end() || !it->second.active) {
    return absl::NotFoundError(absl::StrCat("no token has the id \"", id, "\"; rlhfctl token list shows them"));
  }
  v1::TokenRow row = it->second.row;
  row.set_revoked(true);
  batch->Put(Table::kTokens, id, row.SerializeAsString());
  return absl::OkStatus();
}

void Tokens::ApplyRevoke(const std::string& id) {
  absl::MutexLock lock(&mu_);
  entries_[id].row.set_revoked(true);
}

std::vector<v1::TokenRow> Tokens::List() const {
  std::vector<v1::TokenRow> rows;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [id, entry] : entries_) {
      if (!entry.active) continue;
      rows.push_back(entry.row);
      rows.back().clear_sha256();
    }
  }
  std::stable_sort(rows.begin(), rows.end(), [](const v1::TokenRow& a, const v1::TokenRow& b) {
    return TimeOf(a.created_at()) > TimeOf(b.created_at());
  });
  return rows;
}

absl::Time Tokens::AdminUntil(const std::string& without_id) const {
  const absl::Time now = clock_->WallNow();
  absl::Time until = absl::InfinitePast();
  absl::MutexLock lock(&mu_);
  for (const auto& [id, entry] : entries_) {
    const absl::Time expires = TimeOf(entry.row.expires_at());
    if (id != without_id && entry.active && !entry.row.revoked() && entry.row.project() == "*" &&
        HasRole(entry.row, v1::ADMIN) && expires > now) {
      until = std::max(until, expires);
    }
  }
  return until;
}

std::string Tokens::Pseudonym(const std::string& subject) const {
  return absl::StrCat("rater-", artifact::Sha256Hex(absl::StrCat(pseudonym_key_, "/", subject)).substr(0, 12));
}

absl::Status WriteSecretFile(const std::string& path, const std::string& content) {
  const std::string temporary = absl::StrCat(path, ".tmp-", getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", temporary));
  size_t written = 0;
  int error = 0;
  while (written < content.size() && error == 0) {
    const ssize_t n = write(fd, content.data() + written, content.size() - written);
    if (n >= 0) {
      written += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (error == 0 && fsync(fd) != 0) error = errno;
  close(fd);
  if (error == 0 && rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    unlink(temporary.c_str());
    return absl::ErrnoToStatus(error, absl::StrCat("cannot write ", path));
  }
  const size_t slash = path.rfind('/');
  return FsyncDir(slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash));
}

}  // namespace rlhf::coordinator
