// Serves to other rollout workers what this one received of a version: the bytes as they came, verified, and while the
// rest is still on its way. Thread-safe.
//
// One version is held, in the form in which it came (whole or as a delta); the next one, or Drop, ends the streams of
// it, whose readers go on elsewhere. So the memory is that of one version, however slow its readers are.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "client/cpp/weights_stream.h"
#include "rlhf/v1/weights_service.grpc.pb.h"

namespace rlhf::rollout {

// A version's stream that is being received, or is there. Thread-safe.
class RelayedWeights {
 public:
  // A stream that waits for bytes. Called once for each time that Await had none.
  class Reader {
   public:
    virtual ~Reader() = default;
    virtual void Wake() = 0;
  };

  // `bytes` live as long as their owner; the receiver writes them, but none before what Verified named.
  RelayedWeights(v1::WeightsManifest manifest, bool delta, absl::Span<const uint8_t> bytes,
                 std::shared_ptr<const void> owner)
      : manifest_(std::move(manifest)), delta_(delta), bytes_(bytes), owner_(std::move(owner)) {}

  const v1::WeightsManifest& manifest() const { return manifest_; }
  bool delta() const { return delta_; }
  absl::Span<const uint8_t> bytes() const { return bytes_; }
  const std::shared_ptr<const void>& owner() const { return owner_; }
  bool complete() const;

  // The receiver: all bytes before `end` are verified.
  void Verified(uint64_t end);
  // Nothing more comes, and nothing more is sent: why.
  void End(const absl::Status& why);

  // Up to where bytes may be sent; more than `at`, or `at`: then the reader is woken when there are more, and is not to
  // be touched by the caller any more. Else why there are none.
  absl::StatusOr<uint64_t> Await(uint64_t at, Reader* reader);
  // True: it waited, and will not be woken. False: its next Await says Cancelled.
  bool Cancel(Reader* reader);
  void Forget(Reader* reader);  // at its end

 private:
  const v1::WeightsManifest manifest_;
  const bool delta_;
  const absl::Span<const uint8_t> bytes_;
  const std::shared_ptr<const void> owner_;

  mutable absl::Mutex mu_;
  uint64_t verified_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status ended_ ABSL_GUARDED_BY(mu_);
  std::set<Reader*> waiting_ ABSL_GUARDED_BY(mu_), cancelled_ ABSL_GUARDED_BY(mu_);
};

class WeightRelay : public client::WeightsServer {
 public:
  ~WeightRelay() override { Drop(); }

  // What is received from now on; the version before is dropped.
  std::shared_ptr<RelayedWeights> Begin(v1::WeightsManifest manifest, bool delta, absl::Span<const uint8_t> bytes,
                                        std::shared_ptr<const void> owner);
  void Drop();

  grpc::ServerUnaryReactor* GetManifest(grpc::CallbackServerContext* context, const v1::GetManifestRequest* request,
                                        v1::WeightsManifest* response) override;
  client::WeightsWriter* Stream(const v1::StreamWeightsRequest& request) override;

 private:
  // NotFound: nothing of it is here yet. FailedPrecondition: another form or a newer version is.
  absl::StatusOr<std::shared_ptr<RelayedWeights>> Find(const std::string& job_id,
                                                       const v1::PolicyVersion& version) const;

  mutable absl::Mutex mu_;
  std::shared_ptr<RelayedWeights> held_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::rollout
