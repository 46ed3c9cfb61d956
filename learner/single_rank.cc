#include "learner/collective.h"

namespace rlhf::learner {
namespace {

class SingleRank final : public Collective {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  absl::Status AllReduceSum(torch::Tensor) override { return absl::OkStatus(); }
  absl::Status Broadcast(torch::Tensor, int) override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllReduceSum(torch::Tensor) override {
    return std::make_unique<Done>();
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartReduceScatterSum(torch::Tensor) override {
    return std::make_unique<Done>();
  }
  absl::Status AllGather(torch::Tensor) override { return absl::OkStatus(); }
  absl::StatusOr<bool> Vote(bool ok) override { return ok; }
  void Abort() override {}
  bool aborted() const override { return false; }

 private:
  class Done final : public Pending {
   public:
    absl::Status Wait() override { return absl::OkStatus(); }
  };
};

}  // namespace

std::unique_ptr<Collective> MakeSingleRank() {
  return std::make_unique<SingleRank>();
}

}  // namespace rlhf::learner
