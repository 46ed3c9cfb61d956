#include "model/kernels/cpu_kernels.h"

#include "model/kernels/table.h"

namespace rlhf::model::kernels {
namespace {

const KernelTable& Chosen() {
  static const KernelTable& table = __builtin_cpu_supports("x86-64-v4")   ? kTableV4
                                    : __builtin_cpu_supports("x86-64-v3") ? kTableV3
                                                                          : kTableDefault;
  return table;
}

}  // namespace

const char* InstructionSet() {
  return Chosen().name;
}
bool HasDotProducts() {
  static const bool has = __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512vnni");
  return has;
}

void PackPanels(const float* b, int64_t column_stride, int64_t inner_stride, int64_t columns, int64_t inner,
                float* packed) {
  Chosen().pack_panels(b, column_stride, inner_stride, columns, inner, packed);
}
void Product(const float* a, int64_t row_stride, int64_t inner_stride, const float* packed, const float* bias,
             int64_t rows, int64_t columns, int64_t inner, float* c, int64_t c_stride, bool add) {
  Chosen().product(a, row_stride, inner_stride, packed, bias, rows, columns, inner, c, c_stride, add);
}
void Widen(const uint16_t* x, int64_t count, float* y) {
  Chosen().widen(x, count, y);
}
void Narrow(const float* x, int64_t count, uint16_t* y) {
  Chosen().narrow(x, count, y);
}
void QuantizeRows(const float* x, int64_t x_stride, int64_t rows, int64_t width, int8_t* q, float* scales) {
  Chosen().quantize_rows(x, x_stride, rows, width, q, scales);
}
void Int8MatmulNT(const int8_t* a, const int8_t* b, int64_t rows, int64_t columns, int64_t inner, int32_t* c) {
  Chosen().int8_matmul_nt(a, b, rows, columns, inner, c);
}
void Dequantize(const int32_t* c, const float* row_scales, const float* column_scales, const float* bias, int64_t rows,
                int64_t columns, float* y) {
  Chosen().dequantize(c, row_scales, column_scales, bias, rows, columns, y);
}
void RmsNorm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* y, float* inverse) {
  Chosen().rms_norm(x, weight, eps, rows, width, y, inverse);
}
void RmsNormBackward(const float* dy, const float* x, const float* weight, const float* inverse, int64_t rows,
                     int64_t width, float* dx, float* dweight) {
  Chosen().rms_norm_backward(dy, x, weight, inverse, rows, width, dx, dweight);
}
void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t width, float* y,
               float* moments) {
  Chosen().layer_norm(x, weight, bias, eps, rows, width, y, moments);
}
void LayerNormBackward(const float* dy, const float* x, const float* weight, const float* moments, int64_t rows,
                       int64_t width, float* dx, float* dweight, float* dbias) {
  Chosen().layer_norm_backward(dy, x, weight, moments, rows, width, dx, dweight, dbias);
}
void Rotate(float* x, const int64_t* positions, const float* cos, const float* sin, int64_t rows, int64_t heads,
            int64_t dim, int64_t turning, int64_t row_stride, float direction) {
  Chosen().rotate(x, positions, cos, sin, rows, heads, dim, turning, row_stride, direction);
}
void Activate(Unary kind, const float* gate, const float* up, int64_t rows, int64_t width, int64_t stride, float* y) {
  Chosen().activate(kind, gate, up, rows, width, stride, y);
}
void ActivateBackward(Unary kind, const float* dy, const float* gate, const float* up, int64_t rows, int64_t width,
                      int64_t stride, float* dgate, float* dup) {
  Chosen().activate_backward(kind, dy, gate, up, rows, width, stride, dgate, dup);
}
void DecodeAttention(const AttentionShape& shape, const CachedQuery* queries, int64_t count, const float* keys,
                     const float* values, float* scratch) {
  Chosen().decode_attention(shape, queries, count, keys, values, scratch);
}
void DecodeAttentionBf16(const AttentionShape& shape, const CachedQuery* queries, int64_t count, const uint16_t* keys,
                         const uint16_t* values, float* scratch) {
  Chosen().decode_attention_bf16(shape, queries, count, keys, values, scratch);
}
void CausalAttention(const AttentionShape& shape, const float* q, const float* keys, const float* values, int64_t first,
                     int64_t rows, float* scratch, float* out) {
  Chosen().causal_attention(shape, q, keys, values, first, rows, scratch, out);
}
void CausalAttentionBackward(const AttentionShape& shape, const float* dout, const float* q, const float* keys,
                             const float* values, int64_t length, float* scratch, float* dq, float* dkeys,
                             float* dvalues) {
  Chosen().causal_attention_backward(shape, dout, q, keys, values, length, scratch, dq, dkeys, dvalues);
}
float AttentionWeights(const AttentionShape& shape, int64_t lead, int64_t count, float* scores, float* capped) {
  return Chosen().attention_weights(shape, lead, count, scores, capped);
}
void ScoreGradients(const AttentionShape& shape, float inverse, int64_t count, const float* capped, float* weights,
                    float* grads) {
  Chosen().score_gradients(shape, inverse, count, capped, weights, grads);
}
float LogSumExp(const float* row, int64_t width, float inverse_temperature, float* exps, float* max_out) {
  return Chosen().log_sum_exp(row, width, inverse_temperature, exps, max_out);
}
void LogSoftmaxBackward(const float* row, int64_t width, float inverse_temperature, float log_sum, int64_t target,
                        float grad, float* d) {
  Chosen().log_softmax_backward(row, width, inverse_temperature, log_sum, target, grad, d);
}
float Entropy(const float* row, int64_t width, float inverse_temperature, float log_sum) {
  return Chosen().entropy(row, width, inverse_temperature, log_sum);
}
void Softcap(float* x, int64_t count, float cap) {
  Chosen().softcap(x, count, cap);
}

}  // namespace rlhf::model::kernels
