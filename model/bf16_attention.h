// Causal attention of one head over a sequence in bfloat16, by the processor's instructions for it (kernels::
// HasDotProducts): products of bfloat16 summed in float32, weights and their gradients rounded to bfloat16 before they
// are multiplied, everything between in float32, as flash attention does on GPUs. Only rows of a sequence: a decoding
// step multiplies in float32 what its cache holds in bfloat16.
#pragma once

#include <cstdint>

#include "model/kernels/cpu_kernels.h"
#include "model/libtorch.h"

namespace rlhf::model {

// One head's rows of a sequence, `stride` numbers apart.
struct Bf16Rows {
  uint16_t* data = nullptr;
  int64_t stride = 0;
  // Head `head` of x [rows, heads, dim] from row `row` on.
  static Bf16Rows OfHead(const torch::Tensor& x, int64_t head, int64_t row) {
    return {static_cast<uint16_t*>(x.data_ptr()) + row * x.stride(0) + head * x.stride(1), x.stride(0)};
  }
  uint16_t* Row(int64_t t) const { return data + t * stride; }
};

// `rows` queries from position `first` on against keys and values from position 0 on; q and out begin at the first
// query. Any thread, by itself.
void Bf16AttendHead(const kernels::AttentionShape& shape, const Bf16Rows& q, const Bf16Rows& keys,
                    const Bf16Rows& values, int64_t first, int64_t rows, const Bf16Rows& out);

// Gradients of the above over a whole sequence: dq is written; dkeys and dvalues, float32 [length, width] of which the
// first `dim` of a row are used, are added to. scratch: Bf16BackwardScratch(length, dim) numbers.
int64_t Bf16BackwardScratch(int64_t length, int64_t dim);
void Bf16AttendHeadBackward(const kernels::AttentionShape& shape, const Bf16Rows& dout, const Bf16Rows& q,
                            const Bf16Rows& keys, const Bf16Rows& values, int64_t length, float* scratch,
                            const Bf16Rows& dq, float* dkeys, float* dvalues, int64_t width);

}  // namespace rlhf::model
