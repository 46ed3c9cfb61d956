// CPU kernels for what small models spend their time on, and for numerics that do not depend on the batch; in float32
// unless they say otherwise. No LibTorch; rows are contiguous unless a stride is given. Thread-safe.
//
// Every sum has one order, given by the length of what is summed alone: in matrix products the index ascends, each
// kProductBlock numbers summed from 0 and added to those before; elsewhere 16 partial sums over the index modulo 16,
// then a fixed tree. So a row's result is the same bytes whatever rows are computed beside it, with any number of
// threads, and on every machine with fused multiply-add (x86-64-v3 and v4; the default build rounds each product).
#pragma once

#include <algorithm>
#include <cstdint>

namespace rlhf::model::kernels {

// The instruction set that was chosen at load: "x86-64-v4", "x86-64-v3" or "x86-64".
const char* InstructionSet();

// The right side of a matrix product, packed: panels of kPanelColumns columns, k by k the panel's numbers, the last
// panel filled up with zeros.
constexpr int64_t kPanelColumns = 32;
constexpr int64_t kProductBlock = 384;
inline int64_t PanelsOf(int64_t columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns;
}
// How many numbers `columns` × `inner` become.
inline int64_t PackedSize(int64_t columns, int64_t inner) {
  return PanelsOf(columns) * kPanelColumns * inner;
}
// Packs b, whose number (column j, index k) lies at b + j · column_stride + k · inner_stride. A caller that divides the
// work begins at whole panels, column j at packed + j · inner.
void PackPanels(const float* b, int64_t column_stride, int64_t inner_stride, int64_t columns, int64_t inner,
                float* packed);
// c[i, j] = Σ_k a[i, k] · b[j, k] + bias[j] (bias may be null), added to c where `add`. a[i, k] lies at
// a + i · row_stride + k · inner_stride; c's rows lie c_stride apart.
void Product(const float* a, int64_t row_stride, int64_t inner_stride, const float* packed, const float* bias,
             int64_t rows, int64_t columns, int64_t inner, float* c, int64_t c_stride, bool add);

// Products by the processor's own instructions for bfloat16 and int8, where it has them (AVX512_BF16, AVX512_VNNI): the
// functions below may be called only then. They multiply 4-byte words, a pair of bfloat16 or four int8, those at the
// end filled up with zeros; a right side of words is packed by PackPanels, which takes them as it takes floats. Their
// sums have one order too, but one of their own: each kBf16Block numbers in pairs, then the next ones.
bool HasDotProducts();
// As PackPanels, from bfloat16 numbers: (inner + 1) / 2 words a column.
void PackPairs(const uint16_t* b, int64_t column_stride, int64_t inner_stride, int64_t columns, int64_t inner,
               uint32_t* packed);
constexpr int64_t kBf16Block = 768;
struct Bf16Target {
  // The result; or, where `rounded` is, memory for what is summed until then, needed where inner is beyond kBf16Block
  // or something is to be added.
  float* sums = nullptr;
  int64_t sums_stride = 0;  // between rows
  uint16_t* rounded = nullptr;
  int64_t rounded_stride = 0;
  bool add = false;  // to what is in `sums`
};
// c[i, j] = Σ_k a[i, k] · b[j, k] + bias[j] (bias may be null), summed in float32, and rounded once where `rounded` is
// asked for. a[i, k] lies at a + i · row_stride + k · inner_stride. A column of what was packed has column_words words,
// of which those of `inner` numbers are multiplied: more than (inner + 1) / 2 where it is a part. The order of the sums
// is the same whatever the rows.
void Bf16Product(const uint16_t* a, int64_t row_stride, int64_t inner_stride, const uint32_t* packed,
                 int64_t column_words, const float* bias, int64_t rows, int64_t columns, int64_t inner,
                 const Bf16Target& to);
// What Int8MatmulNT and Dequantize make of it, to a rounding. a holds value + 128 as uint8; offsets[j] = 128 · Σ_k b[j,
// k].
void Int8Product(const uint32_t* a, int64_t a_stride, const uint32_t* packed, const int32_t* offsets,
                 const float* row_scales, const float* column_scales, const float* bias, int64_t rows, int64_t columns,
                 int64_t words, float* c, int64_t c_stride);

// bfloat16 and back; Narrow rounds to the nearest, ties to even.
void Widen(const uint16_t* x, int64_t count, float* y);
void Narrow(const float* x, int64_t count, uint16_t* y);

// Symmetric int8 of rows: q[t] = round(x[t] / scales[t]) in ±127, scales[t] = max |x[t]| / 127. x lies x_stride apart;
// q: [rows, width]. A row without a magnitude above 1e-30 has scale 0 and zeros; one with a number that is not finite
// has scale NaN and zeros, so that products with it are not finite either.
void QuantizeRows(const float* x, int64_t x_stride, int64_t rows, int64_t width, int8_t* q, float* scales);
// c[i, j] = Σ_k a[i, k] · b[j, k], exact while inner · 127² fits an int32. All contiguous.
void Int8MatmulNT(const int8_t* a, const int8_t* b, int64_t rows, int64_t columns, int64_t inner, int32_t* c);
// y[i, j] = c[i, j] · row_scales[i] · column_scales[j] + bias[j] (bias may be null). All contiguous.
void Dequantize(const int32_t* c, const float* row_scales, const float* column_scales, const float* bias, int64_t rows,
                int64_t columns, float* y);

// y[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight; inverse[t] keeps 1 / sqrt(…) for the backward pass, unless null. x,
// y: [rows, width].
void RmsNorm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* y, float* inverse);
// dx and dweight (added to) of the above.
void RmsNormBackward(const float* dy, const float* x, const float* weight, const float* inverse, int64_t rows,
                     int64_t width, float* dx, float* dweight);

// y[t] = (x[t] − mean) / sqrt(variance + eps) · weight + bias; moments [rows, 2] keeps mean and 1 / sqrt(…).
void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t width, float* y,
               float* moments);
// dx, and dweight and dbias (added to) of the above.
void LayerNormBackward(const float* dy, const float* x, const float* weight, const float* moments, int64_t rows,
                       int64_t width, float* dx, float* dweight, float* dbias);

// Rotates the halves of the first `turning` of each head's `dim` numbers (Hugging Face's layout) of x [rows, heads,
// dim] in place by position. cos, sin: [positions, turning / 2]. direction −1 undoes it up to the table's scale, which
// is also the backward pass.
void Rotate(float* x, const int64_t* positions, const float* cos, const float* sin, int64_t rows, int64_t heads,
            int64_t dim, int64_t turning, int64_t row_stride, float direction);

enum class Unary { kSilu, kGeluTanh, kGelu };
// y = f(gate) · up; up null: y = f(gate). All have `rows` rows of `width` numbers; gate and up lie `stride` apart.
void Activate(Unary kind, const float* gate, const float* up, int64_t rows, int64_t width, int64_t stride, float* y);
// dgate and dup (null with up) lie `stride` apart.
void ActivateBackward(Unary kind, const float* dy, const float* gate, const float* up, int64_t rows, int64_t width,
                      int64_t stride, float* dgate, float* dup);

inline int64_t RoundUpTo16(int64_t n) {
  return (n + 15) / 16 * 16;
}

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, dim = 0;
  float scale = 1;
  float softcap = 0;   // 0: none; s -> cap · tanh(s / cap)
  int64_t window = 0;  // 0: none; how many positions a query sees, its own included
};
// The first position that a query at `position` sees.
inline int64_t FirstSeen(const AttentionShape& shape, int64_t position) {
  return shape.window > 0 && position >= shape.window ? position + 1 - shape.window : 0;
}
// A sequence's newest token, which is to attend to what is in its cache.
struct CachedQuery {
  const float* q;        // [heads, dim]
  int64_t begin;         // its keys, [kv_heads, room, dim], lie at keys + begin, its values likewise
  int64_t room, length;  // positions that there is room for, and that are there
  float* out;            // [heads, dim]
};
// scratch: RoundUpTo16(the largest length).
void DecodeAttention(const AttentionShape& shape, const CachedQuery* queries, int64_t count, const float* keys,
                     const float* values, float* scratch);
// The same with keys and values in bfloat16.
void DecodeAttentionBf16(const AttentionShape& shape, const CachedQuery* queries, int64_t count, const uint16_t* keys,
                         const uint16_t* values, float* scratch);

// Rows of a sequence. Queries, keys and values of one head are rows of RoundUpTo16(dim) numbers without a gap between
// them, those beyond dim zero. A row's result is the same bytes as DecodeAttention's, unless
// a value that is not finite lies within a few positions of what the row sees: what a row does not see counts 0 times.
// How far apart rows of scores lie: not a multiple of 4 KB, or they would share a few lines of the first-level cache.
inline int64_t AttentionStride(int64_t length) {
  const int64_t stride = RoundUpTo16(length) + 16;
  return stride % 1024 == 0 ? stride + 16 : stride;
}
constexpr int64_t kAttentionRows = 12;  // queries that pass over the keys together
inline int64_t AttentionScratch(int64_t length) {
  return kAttentionRows * AttentionStride(length);
}
// In the backward pass: as many as the second-level cache holds the scores of, from 14 to 56.
inline int64_t GradientRows(int64_t length) {
  return std::clamp<int64_t>(32768 / AttentionStride(length) / 14, 1, 4) * 14;
}
inline int64_t AttentionBackwardScratch(int64_t length, int64_t dim) {
  return 3 * GradientRows(length) * AttentionStride(length) + 2 * PackedSize(length, RoundUpTo16(dim));
}
// `rows` queries from position `first` on against keys and values from position 0 on. scratch:
// AttentionScratch(first + rows).
void CausalAttention(const AttentionShape& shape, const float* q, const float* keys, const float* values, int64_t first,
                     int64_t rows, float* scratch, float* out);
// Gradients of the above over a whole sequence for one query head: dq is written, dkeys and dvalues are added to.
// scratch: AttentionBackwardScratch(length, dim).
void CausalAttentionBackward(const AttentionShape& shape, const float* dout, const float* q, const float* keys,
                             const float* values, int64_t length, float* scratch, float* dq, float* dkeys,
                             float* dvalues);

// Parts of the above for those who multiply themselves. A row's scores, before the scale and the cap, become
// exp(score − max), before `lead` and from `count` on to a multiple of 16 zero; returns their sum. `capped` keeps
// scaled and capped scores unless null.
float AttentionWeights(const AttentionShape& shape, int64_t lead, int64_t count, float* scores, float* capped);
// Of a row of such weights with the sum 1 / inverse, and the gradients of their probabilities: the probabilities, and
// the gradients of the scores. capped: null without a cap.
void ScoreGradients(const AttentionShape& shape, float inverse, int64_t count, const float* capped, float* weights,
                    float* grads);

// log(Σ exp(row · inverse_temperature)) with the row's maximum taken out; writes exp(row · inverse_temperature − max)
// to `exps` when not null. The result does not depend on whether it is.
float LogSumExp(const float* row, int64_t width, float inverse_temperature, float* exps, float* max_out);
// d log p[target] / d row of that distribution, times grad: (onehot − p) · inverse_temperature · grad. d may be row.
void LogSoftmaxBackward(const float* row, int64_t width, float inverse_temperature, float log_sum, int64_t target,
                        float grad, float* d);
// Σ p · log p of the same distribution, negated: its entropy in nats.
float Entropy(const float* row, int64_t width, float inverse_temperature, float log_sum);
// x -> cap · tanh(x / cap), in place.
void Softcap(float* x, int64_t count, float cap);

}  // namespace rlhf::model::kernels
