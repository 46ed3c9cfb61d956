// Bearer tokens of the API listener: "rlhf_<id>_<secret>", of which only a SHA-256 is stored.
//
// Verify is for any thread and never touches the store. The rest is for the loop thread, in two steps: what Prepare…
// put into a batch takes effect with Apply…, once that batch is durable (the caller adds its audit record to the same
// batch).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// "viewer", "submitter", "rater", "overseer", "admin".
std::string RoleName(v1::TokenRole role);

class Tokens {
 public:
  struct Minted {
    v1::TokenRow row;    // without the hash
    std::string secret;  // the whole token; shown once
  };
  struct Request {
    std::string subject;
    std::string project = "default";
    std::vector<v1::TokenRole> roles;
    absl::Duration ttl = absl::Hours(24 * 30);
  };
  // Reads all rows; on the first start also makes the installation's secret for pseudonyms.
  static absl::StatusOr<std::unique_ptr<Tokens>> Open(StateStore* store, const Clock* clock);

  // Unauthenticated with UNAUTHENTICATED_CALLER; `why` (optional) is a metric's label: "malformed_token",
  // "unknown_token", "expired_token", "revoked_token".
  absl::StatusOr<v1::TokenRow> Verify(const std::string& token, std::string* why = nullptr) const;

  // InvalidArgument for a bad request; FailedPrecondition when the subject would be admin and overseer at once.
  absl::StatusOr<Minted> PrepareMint(const Request& request, WriteBatch* batch);
  void ApplyMint(const std::string& id);
  void AbandonMint(const std::string& id);
  // A token that was made elsewhere; apply or abandon it as a minted one. AlreadyExists when its id or its secret was
  // ever one of this service's: what expired or was revoked does not come back. FailedPrecondition as for a minted one.
  absl::Status PrepareAccept(const v1::TokenRow& row, WriteBatch* batch);
  // NotFound for an unknown id. Revoking twice is fine.
  absl::Status PrepareRevoke(const std::string& id, WriteBatch* batch) const;
  void ApplyRevoke(const std::string& id);

  std::vector<v1::TokenRow> List() const;  // without hashes, newest first
  // Until when somebody is admin of all projects, by the tokens that work now, but the one of this id; InfinitePast
  // when nobody is.
  absl::Time AdminUntil(const std::string& without_id = "") const;
  // How a subject appears in comparisons: the same on every call, and not the subject's name.
  std::string Pseudonym(const std::string& subject) const;

 private:
  Tokens(StateStore* store, const Clock* clock) : store_(store), clock_(clock) {}
  absl::Status Recover();
  // FailedPrecondition when with the row its subject would be admin and overseer.
  absl::Status CheckRoles(const v1::TokenRow& row) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  struct Entry {
    v1::TokenRow row;
    bool active = true;
  };
  StateStore* const store_;
  const Clock* const clock_;
  std::string pseudonym_key_;
  mutable absl::Mutex mu_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mu_);
};

// Writes a file that only its owner can read, durably.
absl::Status WriteSecretFile(const std::string& path, const std::string& content);

}  // namespace rlhf::coordinator
