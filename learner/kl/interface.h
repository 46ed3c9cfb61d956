// Controllers of the KL coefficient β.
#pragma once

#include <memory>

#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

class KlController {
 public:
  virtual ~KlController() = default;
  virtual double coefficient() const = 0;
  // After a step: the batch's mean KL of a sequence (nats), Σ (old − reference) whatever the form, and its samples.
  virtual void Update(double mean_kl, int64_t samples) = 0;
  virtual void set_coefficient(double coefficient) = 0;  // from a checkpoint or a snapshot
};
// Fixed, or adaptive: β ← β · (1 + clip(kl / target − 1, ±0.2) · samples / horizon) (Ziegler et al. 2019, section 2.2).
std::unique_ptr<KlController> MakeKlController(const v1::KlSpec& spec);

}  // namespace rlhf::learner
