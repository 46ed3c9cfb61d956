#include "model/families/family.h"

#include <algorithm>

namespace rlhf::model {

using Init = FamilyDescription::Parameter::Init;

Projection FamilyDescription::AddProjection(const std::string& module, int64_t in, int64_t out, bool bias) {
  Projection projection{module, module + ".weight", bias ? module + ".bias" : "", in, out};
  parameters.push_back({projection.weight, transposed ? std::vector{in, out} : std::vector{out, in}, Init::kNormal});
  if (bias) parameters.push_back({projection.bias, {out}, Init::kZero});
  return projection;
}

void FamilyDescription::AddNorm(const std::string& module, int64_t width, artifact::Norm norm, std::string* weight,
                                std::string* bias) {
  *weight = module + ".weight";
  parameters.push_back({*weight, {width}, norm == artifact::Norm::kRmsOffset ? Init::kZero : Init::kOne});
  if (norm != artifact::Norm::kLayer) return;
  *bias = module + ".bias";
  parameters.push_back({*bias, {width}, Init::kZero});
}

void FamilyDescription::AddHead(const artifact::ModelConfig& config, bool scalar, const std::string& lm_head_name) {
  if (scalar) {
    parameters.push_back(
        {scalar_head, {std::max<int64_t>(1, config.num_labels), config.hidden_size}, Init::kScalarHead});
  } else if (config.tie_word_embeddings) {
    lm_head = token_embedding;
  } else {
    lm_head = lm_head_name;
    parameters.push_back({lm_head, {config.vocab_size, config.hidden_size}, Init::kNormal});
  }
}

FamilyDescription Describe(const artifact::ModelConfig& config, bool scalar_head) {
  switch (config.family) {
    case artifact::Family::kGpt2:
      return DescribeGpt2(config, scalar_head);
    case artifact::Family::kGptNeoX:
      return DescribeGptNeoX(config, scalar_head);
    default:
      return DescribeDecoder(config, scalar_head);
  }
}

}  // namespace rlhf::model
