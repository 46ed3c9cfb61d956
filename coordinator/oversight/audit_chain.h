// The audit log: each record holds the hash of the one before, and the head is signed now and then, so that neither a
// changed record nor a cut tail goes unnoticed (docs/oversight.md says what only heads that are kept elsewhere tell).
// Loop thread only, but for what only reads: List, ListHeads, All and Verify are for any thread once Recover has
// returned, also while records are added, and not for the loop: they wait for the store, and a log has millions of
// records.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/signature.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/oversight_service.pb.h"

namespace rlhf::coordinator {

class AuditChain final : public WriteBatch::Sealer {
 public:
  AuditChain(const Clock* clock, StateStore* store) : clock_(clock), store_(store) {}
  // With a signer, which is to be set before: signs what it finds, durably; a key that did not sign the newest head is
  // put on record first ("audit.key"). From then on there is always a head by it. Blocks.
  absl::Status Recover();
  void SetSigner(std::shared_ptr<const Signer> signer) { signer_ = std::move(signer); }
  const Signer* signer() const { return signer_.get(); }

  // Adds a record; it becomes durable with the batch, and takes its place in the chain when the batch is committed (on
  // the loop): one that never is leaves no gap, and two that are committed the other way round break nothing.
  void Append(const std::string& subject, const std::string& action, const std::string& object,
              const std::string& decision, const std::map<std::string, std::string>& details, WriteBatch* batch);
  // Signs the head, unless there is no key or nothing new since the last one. Commits by itself.
  void SignHead();

  absl::StatusOr<v1::ListAuditResponse> List(const v1::ListAuditRequest& request) const;
  absl::StatusOr<v1::ListAuditHeadsResponse> ListHeads(const v1::ListAuditHeadsRequest& request) const;
  // Those that are wanted, read one by one from end to end. Cancelled when `gone` says that nobody waits for them.
  absl::StatusOr<std::vector<v1::AuditRecord>> All(const std::function<bool(const v1::AuditRecord&)>& wanted = nullptr,
                                                   const std::function<bool()>& gone = nullptr) const;
  // Recomputes the whole chain, and looks for every head in it; with a key the newest head has to be by it. Ends early,
  // as not intact, when `gone` says that nobody waits for it.
  v1::VerifyAuditResponse Verify(const std::function<bool()>& gone = nullptr) const;

 private:
  void Seal(std::vector<WriteBatch::Op>* ops) override;
  absl::Status BeginSigning(const v1::AuditHead& newest);
  v1::AuditHead PutHead(WriteBatch* batch);  // of the newest record; nothing where it has one

  const Clock* const clock_;
  StateStore* const store_;
  std::shared_ptr<const Signer> signer_;
  uint64_t sequence_ = 0, signed_ = 0;
  std::string last_sha256_;
};

}  // namespace rlhf::coordinator
