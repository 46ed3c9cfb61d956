// Float32 CPU kernels for what small models spend their time on between matrix products. No LibTorch; rows are
// contiguous.
//
// Each has clones for AVX2 and AVX-512 chosen at load. For given inputs on one machine the results are always the same
// bytes.
#pragma once

#include <cstdint>

namespace rlhf::model::kernels {

// y[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight; inverse[t] keeps 1 / sqrt(…) for the backward pass. x, y: [rows,
// width].
void RmsNorm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* y, float* inverse);
// dx and dweight (added to) of the above.
void RmsNormBackward(const float* dy, const float* x, const float* weight, const float* inverse, int64_t rows,
                     int64_t width, float* dx, float* dweight);

// Rotates the halves of each head (Hugging Face's layout) of x [rows, heads, dim] in place by position. cos, sin:
// [positions, dim / 2]. direction −1 undoes it, which is also the backward pass.
void Rotate(float* x, const int64_t* positions, const float* cos, const float* sin, int64_t rows, int64_t heads,
            int64_t dim, int64_t row_stride, float direction);

// y = silu(gate) · up over gate_up [rows, 2 · width] (gate first).
void SiluMul(const float* gate_up, int64_t rows, int64_t width, float* y);
void SiluMulBackward(const float* dy, const float* gate_up, int64_t rows, int64_t width, float* dgate_up);

// One query token per sequence against its slot's cache. q, out: [batch, heads, dim]; keys, values: [slots, kv_heads,
// max_tokens, dim]; lengths[b] positions of slot slots[b] are attended to. scratch: at least the largest length.
void DecodeAttention(const float* q, const float* keys, const float* values, const int* slots, const int64_t* lengths,
                     int64_t batch, int64_t heads, int64_t kv_heads, int64_t max_tokens, int64_t dim, float* scratch,
                     float* out);

// log(Σ exp(row / temperature)) with the row's maximum taken out; writes exp(row / temperature − max) to `exps` when
// not null.
float LogSumExp(const float* row, int64_t width, float inverse_temperature, float* exps, float* max_out);

}  // namespace rlhf::model::kernels
