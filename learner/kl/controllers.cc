#include <algorithm>

#include "learner/kl/interface.h"

namespace rlhf::learner {
namespace {

class Fixed final : public KlController {
 public:
  explicit Fixed(double coefficient) : coefficient_(coefficient) {}
  double coefficient() const override { return coefficient_; }
  void Update(double, int64_t) override {}
  // A setting of the job, not a state: one that goes on from another's checkpoint may have its own.
  void set_coefficient(double) override {}

 private:
  const double coefficient_;
};

class Adaptive final : public KlController {
 public:
  explicit Adaptive(const v1::KlSpec& spec)
      : coefficient_(spec.coefficient()), target_(spec.target()), horizon_(spec.horizon()) {}
  double coefficient() const override { return coefficient_; }
  void Update(double mean_kl, int64_t samples) override {
    const double error = std::clamp(mean_kl / target_ - 1, -0.2, 0.2);
    coefficient_ *= 1 + error * static_cast<double>(samples) / horizon_;
  }
  void set_coefficient(double coefficient) override { coefficient_ = coefficient; }

 private:
  double coefficient_;
  const double target_, horizon_;
};

}  // namespace

std::unique_ptr<KlController> MakeKlController(const v1::KlSpec& spec) {
  if (spec.adaptive()) return std::make_unique<Adaptive>(spec);
  return std::make_unique<Fixed>(spec.coefficient());
}

}  // namespace rlhf::learner
