// The kernels of one instruction set. Each is compiled from kernels_impl.h with its own options (CMakeLists.txt);
// cpu_kernels.cc chooses one at load.
#pragma once

#include "model/kernels/cpu_kernels.h"

namespace rlhf::model::kernels {

struct KernelTable {
  const char* name;
  decltype(&PackPanels) pack_panels;
  decltype(&Product) product;
  decltype(&Widen) widen;
  decltype(&Narrow) narrow;
  decltype(&QuantizeRows) quantize_rows;
  decltype(&Int8MatmulNT) int8_matmul_nt;
  decltype(&Dequantize) dequantize;
  decltype(&RmsNorm) rms_norm;
  decltype(&RmsNormBackward) rms_norm_backward;
  decltype(&LayerNorm) layer_norm;
  decltype(&LayerNormBackward) layer_norm_backward;
  decltype(&Rotate) rotate;
  decltype(&Activate) activate;
  decltype(&ActivateBackward) activate_backward;
  decltype(&DecodeAttention) decode_attention;
  decltype(&DecodeAttentionBf16) decode_attention_bf16;
  decltype(&CausalAttention) causal_attention;
  decltype(&CausalAttentionBackward) causal_attention_backward;
  decltype(&AttentionWeights) attention_weights;
  decltype(&ScoreGradients) score_gradients;
  decltype(&LogSumExp) log_sum_exp;
  decltype(&LogSoftmaxBackward) log_softmax_backward;
  decltype(&Entropy) entropy;
  decltype(&Softcap) softcap;
};

extern const KernelTable kTableDefault, kTableV3, kTableV4;

}  // namespace rlhf::model::kernels
