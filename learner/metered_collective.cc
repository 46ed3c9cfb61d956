#include "learner/metered_collective.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/status_util.h"

namespace rlhf::learner {
namespace {

using Waited = std::function<void(absl::Duration)>;
using Called = std::function<void()>;

class MeteredPending final : public Collective::Pending {
 public:
  MeteredPending(std::unique_ptr<Collective::Pending> pending, const Waited* waited, const Called* called)
      : pending_(std::move(pending)), waited_(waited), called_(called) {}
  absl::Status Wait() override {
    (*called_)();
    const absl::Time began = absl::Now();
    absl::Status status = pending_->Wait();
    (*waited_)(absl::Now() - began);
    return status;
  }

 private:
  const std::unique_ptr<Collective::Pending> pending_;
  const Waited* const waited_;
  const Called* const called_;
};

class MeteredCollective final : public Collective {
 public:
  MeteredCollective(std::unique_ptr<Collective> collective, Waited waited, Called called)
      : collective_(std::move(collective)), waited_(std::move(waited)), called_(std::move(called)) {}
  int rank() const override { return collective_->rank(); }
  int world_size() const override { return collective_->world_size(); }
  absl::Status AllReduceSum(torch::Tensor tensor) override {
    called_();
    const absl::Time began = absl::Now();
    absl::Status status = collective_->AllReduceSum(std::move(tensor));
    waited_(absl::Now() - began);
    return status;
  }
  absl::Status Broadcast(torch::Tensor tensor, int root) override {
    called_();
    return collective_->Broadcast(std::move(tensor), root);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllReduceSum(torch::Tensor tensor) override {
    called_();
    RLHF_ASSIGN_OR_RETURN(std::unique_ptr<Pending> pending, collective_->StartAllReduceSum(std::move(tensor)));
    return std::make_unique<MeteredPending>(std::move(pending), &waited_, &called_);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartReduceScatterSum(torch::Tensor tensor) override {
    called_();
    RLHF_ASSIGN_OR_RETURN(std::unique_ptr<Pending> pending, collective_->StartReduceScatterSum(std::move(tensor)));
    return std::make_unique<MeteredPending>(std::move(pending), &waited_, &called_);
  }
  absl::Status AllGather(torch::Tensor tensor) override {
    called_();
    return collective_->AllGather(std::move(tensor));
  }
  absl::StatusOr<bool> Vote(bool ok) override {
    called_();
    return collective_->Vote(ok);
  }
  void Abort() override { collective_->Abort(); }
  bool aborted() const override {
    called_();
    return collective_->aborted();
  }

 private:
  const std::unique_ptr<Collective> collective_;
  const Waited waited_;
  const Called called_;
};

}  // namespace

std::unique_ptr<Collective> WithTimes(std::unique_ptr<Collective> collective, Waited waited, Called called) {
  return std::make_unique<MeteredCollective>(std::move(collective), std::move(waited), std::move(called));
}

}  // namespace rlhf::learner
