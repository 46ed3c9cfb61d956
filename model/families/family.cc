#include "model/families/family.h"

namespace rlhf::model {

FamilyDescription Describe(const artifact::ModelConfig& config, bool scalar_head) {
  switch (config.family) {
    case artifact::Family::kLlama:
      return DescribeLlama(config, scalar_head);
    case artifact::Family::kGpt2:
      return DescribeGpt2(config, scalar_head);
  }
  return {};
}

}  // namespace rlhf::model
