#include "rollout_worker/weight_relay.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf::rollout {
namespace {

// Sends what there is, and what comes; one write in flight, so a slow reader costs no memory.
class RelayStream final : public client::WeightsWriter, public RelayedWeights::Reader {
 public:
  RelayStream(std::shared_ptr<RelayedWeights> weights, uint64_t begin, uint64_t end)
      : weights_(std::move(weights)), at_(begin), end_(end) {
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      Next();
    } else {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the reader went away"));
    }
  }
  void OnCancel() override {
    if (weights_->Cancel(this)) Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the reader went away"));
  }
  void OnDone() override {
    weights_->Forget(this);
    delete this;
  }
  void Wake() override { Next(); }

 private:
  void Next() {
    if (at_ >= end_) {
      Finish(grpc::Status::OK);
      return;
    }
    const uint64_t at = at_;
    const absl::StatusOr<uint64_t> there = weights_->Await(at, this);
    if (!there.ok()) {
      Finish(ToGrpc(there.status()));
      return;
    }
    if (*there == at) return;  // another thread may have finished this by now
    const uint64_t size = std::min(client::kWeightsChunkBytes, std::min(*there, end_) - at_);
    chunk_ = client::ChunkBuffer(at_, weights_->bytes().subspan(at_, size), weights_->owner());
    at_ += size;
    StartWrite(&chunk_);
  }

  const std::shared_ptr<RelayedWeights> weights_;
  uint64_t at_;
  const uint64_t end_;
  grpc::ByteBuffer chunk_;
};

}  // namespace

bool RelayedWeights::complete() const {
  absl::MutexLock lock(&mu_);
  return ended_.ok() && verified_ == bytes_.size();
}

void RelayedWeights::Verified(uint64_t end) {
  std::set<Reader*> waiting;
  {
    absl::MutexLock lock(&mu_);
    verified_ = end;
    waiting.swap(waiting_);
  }
  // Whoever takes a reader out of the set acts for it: see Cancel.
  for (Reader* reader : waiting) reader->Wake();
}

void RelayedWeights::End(const absl::Status& why) {
  std::set<Reader*> waiting;
  {
    absl::MutexLock lock(&mu_);
    ended_ = why;
    waiting.swap(waiting_);
  }
  for (Reader* reader : waiting) reader->Wake();
}

absl::StatusOr<uint64_t> RelayedWeights::Await(uint64_t at, Reader* reader) {
  absl::MutexLock lock(&mu_);
  if (!ended_.ok()) return ended_;
  if (cancelled_.count(reader) > 0) return absl::CancelledError("the reader went away");
  if (verified_ > at) return verified_;
  waiting_.insert(reader);
  return at;
}

bool RelayedWeights::Cancel(Reader* reader) {
  absl::MutexLock lock(&mu_);
  if (waiting_.erase(reader) > 0) return true;
  cancelled_.insert(reader);
  return false;
}

void RelayedWeights::Forget(Reader* reader) {
  absl::MutexLock lock(&mu_);
  waiting_.erase(reader);
  cancelled_.erase(reader);
}

std::shared_ptr<RelayedWeights> WeightRelay::Begin(v1::WeightsManifest manifest, bool delta,
                                                   absl::Span<const uint8_t> bytes, std::shared_ptr<const void> owner) {
  Drop();  // before the caller fills the next one
  auto weights = std::make_shared<RelayedWeights>(std::move(manifest), delta, bytes, std::move(owner));
  absl::MutexLock lock(&mu_);
  held_ = weights;
  return weights;
}

void WeightRelay::Drop() {
  std::shared_ptr<RelayedWeights> held;
  {
    absl::MutexLock lock(&mu_);
    held.swap(held_);
  }
  if (held != nullptr) held->End(absl::FailedPreconditionError("this version is superseded here: ask the next source"));
}

absl::StatusOr<std::shared_ptr<RelayedWeights>> WeightRelay::Find(const std::string& job_id,
                                                                  const v1::PolicyVersion& version) const {
  absl::MutexLock lock(&mu_);
  const v1::PolicyVersion* const held = held_ == nullptr ? nullptr : &held_->manifest().version();
  const bool same_job = held != nullptr && held_->manifest().job_id() == job_id;
  if (same_job && held->step() == version.step() && held->digest() == version.digest()) return held_;
  const std::string found =
      held == nullptr ? "nothing" : absl::StrCat("version ", held->step(), " of job ", held_->manifest().job_id());
  const std::string text = absl::StrCat("version ", version.step(), " of job ", job_id, " is not here, but ", found,
                                        ": ask the next source");
  if (same_job && held->step() > version.step()) return absl::FailedPreconditionError(text);
  return absl::NotFoundError(text);
}

grpc::ServerUnaryReactor* WeightRelay::GetManifest(grpc::CallbackServerContext* context,
                                                   const v1::GetManifestRequest* request,
                                                   v1::WeightsManifest* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto weights = Find(request->job_id(), request->version());
  if (!weights.ok()) {
    reactor->Finish(ToGrpc(weights.status()));
  } else if (!(*weights)->complete()) {
    reactor->Finish(ToGrpc(absl::NotFoundError(
        absl::StrCat("version ", request->version().step(), " is still being received here: ask the next source"))));
  } else {
    *response = (*weights)->manifest();
    reactor->Finish(grpc::Status::OK);
  }
  return reactor;
}

client::WeightsWriter* WeightRelay::Stream(const v1::StreamWeightsRequest& request) {
  if (request.device_generation() != 0) {
    return new client::RefusedWeights(
        absl::FailedPreconditionError("a rollout worker holds nothing in GPU memory for others: ask the learner"));
  }
  auto found = Find(request.job_id(), request.version());
  if (!found.ok()) return new client::RefusedWeights(found.status());
  std::shared_ptr<RelayedWeights> weights = *std::move(found);
  if (weights->delta() != request.delta()) {
    return new client::RefusedWeights(absl::FailedPreconditionError(
        absl::StrCat("version ", request.version().step(), " is held here ", weights->delta() ? "as a delta" : "whole",
                     " only: ask the next source")));
  }
  const absl::StatusOr<client::StreamRange> range = client::RangeOf(request, weights->bytes().size());
  if (!range.ok()) return new client::RefusedWeights(range.status());
  return new RelayStream(std::move(weights), range->begin, range->end);
}

}  // namespace rlhf::rollout
