#include "model/attention.h"

#include <algorithm>
#include <limits>

#include <ATen/Parallel.h>

#include "model/device.h"
#include "model/device_ops.h"
#include "model/fused_ops.h"

namespace rlhf::model {
namespace {

using kernels::AttentionShape;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

int64_t RoundedUp(int64_t n) {
  return (n + 15) / 16 * 16;
}

// Work (sequence, key head), each with its own rows: no two write to one place.
template <typename Fn>
void ForEachKeyHead(const std::vector<int64_t>& lengths, int64_t kv_heads, int64_t scratch_rows, const Fn& fn) {
  const int64_t longest = RoundedUp(*std::max_element(lengths.begin(), lengths.end()));
  at::parallel_for(0, static_cast<int64_t>(lengths.size()) * kv_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(longest * scratch_rows));
    for (int64_t i = begin; i < end; ++i) fn(static_cast<size_t>(i / kv_heads), i % kv_heads, scratch.data());
  });
}

class KernelAttention : public torch::autograd::Function<KernelAttention> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, const PackedLayout& layout,
                               const AttentionShape& shape) {
    const torch::Tensor qkv = input.contiguous();
    const int64_t dim = shape.dim, row = qkv.size(1) * dim;
    torch::Tensor out = torch::empty({qkv.size(0), shape.heads * dim}, qkv.options());
    const float* data = qkv.data_ptr<float>();
    float* result = out.data_ptr<float>();
    ForEachKeyHead(layout.lengths, shape.kv_heads, 1, [&](size_t i, int64_t kv_head, float* scratch) {
      const float* q = data + layout.begins[i] * row;
      const float* keys = q + (shape.heads + kv_head) * dim;
      kernels::CausalAttention(shape, q, row, keys, keys + shape.kv_heads * dim, row, layout.lengths[i],
                               layout.lengths[i], kv_head, scratch, result + layout.begins[i] * shape.heads * dim,
                               shape.heads * dim);
    });
    context->save_for_backward({qkv});
    context->saved_data["lengths"] = layout.lengths;
    context->saved_data["heads"] = std::vector<int64_t>{shape.heads, shape.kv_heads, shape.dim, shape.window};
    context->saved_data["scale"] = static_cast<double>(shape.scale);
    context->saved_data["softcap"] = static_cast<double>(shape.softcap);
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const torch::Tensor qkv = context->get_saved_variables()[0];
    const std::vector<int64_t> heads = context->saved_data["heads"].toIntVector();
    const std::vector<int64_t> lengths = context->saved_data["lengths"].toIntVector();
    AttentionShape shape;
    shape.heads = heads[0];
    shape.kv_heads = heads[1];
    shape.dim = heads[2];
    shape.window = heads[3];
    shape.scale = static_cast<float>(context->saved_data["scale"].toDouble());
    shape.softcap = static_cast<float>(context->saved_data["softcap"].toDouble());
    std::vector<int64_t> begins(lengths.size(), 0);
    for (size_t i = 1; i < lengths.size(); ++i) begins[i] = begins[i - 1] + lengths[i - 1];
    const torch::Tensor dout = grads[0].contiguous();
    torch::Tensor dqkv = torch::zeros_like(qkv);
    const int64_t dim = shape.dim, row = qkv.size(1) * dim;
    const float *data = qkv.data_ptr<float>(), *upstream = dout.data_ptr<float>();
    float* target = dqkv.data_ptr<float>();
    ForEachKeyHead(lengths, shape.kv_heads, 2, [&](size_t i, int64_t kv_head, float* scratch) {
      const float* q = data + begins[i] * row;
      float* dq = target + begins[i] * row;
      const int64_t key = (shape.heads + kv_head) * dim, value = key + shape.kv_heads * dim;
      kernels::CausalAttentionBackward(shape, upstream + begins[i] * shape.heads * dim, shape.heads * dim, q, row,
                                       q + key, q + value, row, lengths[i], kv_head, scratch, dq, dq + key, dq + value);
    });
    return {dqkv, torch::Tensor(), torch::Tensor()};
  }
};

// True where query i (of the newest `count` of `length`) sees key j.
torch::Tensor Mask(int64_t count, int64_t length, int64_t window, torch::Device device) {
  torch::Tensor mask =
      torch::ones({count, length}, torch::TensorOptions().dtype(torch::kBool).device(device)).tril(length - count);
  return window > 0 ? mask.triu(length - count - window + 1) : mask;
}

// q [B, heads, count, dim]; k, v [B, kv_heads, length, dim].
torch::Tensor Attend(const AttentionShape& shape, const torch::Tensor& q, torch::Tensor k, torch::Tensor v) {
  const int64_t count = q.size(2), length = k.size(2), group = shape.heads / shape.kv_heads;
  if (group > 1) {
    k = k.repeat_interleave(group, 1);
    v = v.repeat_interleave(group, 1);
  }
  const bool whole_window = shape.window == 0 || shape.window >= length;
  if (shape.softcap > 0) {
    torch::Tensor scores = torch::matmul(q, k.transpose(2, 3)) * shape.scale;
    scores = torch::tanh(scores / shape.softcap) * shape.softcap;
    scores = scores.masked_fill(Mask(count, length, shape.window, q.device()).logical_not(),
                                -std::numeric_limits<float>::infinity());
    return torch::matmul(torch::softmax(scores, -1, torch::kFloat32).to(q.scalar_type()), v);
  }
  if (whole_window && count == length)
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true, shape.scale);
  if (whole_window && count == 1)
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/false, shape.scale);
  return at::scaled_dot_product_attention(q, k, v, Mask(count, length, shape.window, q.device()), 0.0,
                                          /*is_causal=*/false, shape.scale);
}

}  // namespace

PackedLayout PackedLayout::Of(const std::vector<int64_t>& lengths, torch::Device device) {
  PackedLayout layout;
  layout.lengths = lengths;
  layout.longest = *std::max_element(lengths.begin(), lengths.end());
  int64_t rows = 0;
  for (const int64_t length : lengths) {
    layout.begins.push_back(rows);
    rows += length;
  }
  if (!device.is_cpu()) {
    torch::Tensor borders = torch::empty({static_cast<int64_t>(lengths.size()) + 1}, torch::kInt32);
    auto* const at = borders.data_ptr<int32_t>();
    for (size_t i = 0; i < lengths.size(); ++i) at[i] = static_cast<int32_t>(layout.begins[i]);
    at[lengths.size()] = static_cast<int32_t>(rows);
    layout.borders = ToDevice(borders, device);
  }
  layout.trivial = std::all_of(lengths.begin(), lengths.end(), [&](int64_t l) { return l == layout.longest; });
  if (layout.trivial) return layout;
  std::vector<int64_t> to_grid(lengths.size() * static_cast<size_t>(layout.longest), 0), to_rows;
  for (size_t b = 0; b < lengths.size(); ++b) {
    for (int64_t p = 0; p < lengths[b]; ++p) {
      const int64_t cell = static_cast<int64_t>(b) * layout.longest + p;
      to_grid[static_cast<size_t>(cell)] = layout.begins[b] + p;
      to_rows.push_back(cell);
    }
  }
  layout.to_grid = ToDevice(to_grid, device);
  layout.to_rows = ToDevice(to_rows, device);
  return layout;
}

torch::Tensor AttendPacked(const AttentionShape& shape, const torch::Tensor& packed, const PackedLayout& layout,
                           bool fixed_order) {
  if (fixed_order || (HasKernels(packed) && shape.softcap > 0)) return KernelAttention::apply(packed, layout, shape);
  if (HasFlashAttention(shape, packed)) return FlashPacked(shape, packed, layout.borders, layout.longest);
  const torch::Tensor qkv = layout.trivial ? packed : packed.index_select(0, layout.to_grid);
  // Rows of padding are computed and dropped; nothing real attends to them: they come last.
  const torch::Tensor grid =
      qkv.view({static_cast<int64_t>(layout.lengths.size()), layout.longest, qkv.size(1), shape.dim}).transpose(1, 2);
  const torch::Tensor out = Attend(shape, grid.narrow(1, 0, shape.heads), grid.narrow(1, shape.heads, shape.kv_heads),
                                   grid.narrow(1, shape.heads + shape.kv_heads, shape.kv_heads))
                                .transpose(1, 2)
                                .reshape({-1, shape.heads * shape.dim});
  return layout.trivial ? out : out.index_select(0, layout.to_rows);
}

torch::Tensor AttendCached(const AttentionShape& shape, const torch::Tensor& queries, const torch::Tensor& keys,
                           const torch::Tensor& values, bool fixed_order) {
  const int64_t count = queries.size(0), length = keys.size(1), dim = shape.dim;
  if (fixed_order || (HasKernels(queries) && shape.softcap > 0)) {
    const torch::Tensor q = queries.contiguous();
    torch::Tensor out = torch::empty({count, shape.heads * dim}, q.options());
    const float *query = q.data_ptr<float>(), *key = keys.data_ptr<float>(), *value = values.data_ptr<float>();
    float* result = out.data_ptr<float>();
    const int64_t key_head = keys.stride(0), value_head = values.stride(0);
    ForEachKeyHead({length}, shape.kv_heads, 1, [&](size_t, int64_t kv_head, float* scratch) {
      kernels::CausalAttention(shape, query, shape.heads * dim, key + kv_head * key_head, value + kv_head * value_head,
                               dim, count, length, kv_head, scratch, result, shape.heads * dim);
    });
    return out;
  }
  if (HasFlashAttention(shape, queries)) return FlashCached(shape, queries, keys, values);
  const torch::Tensor out = Attend(shape, queries.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0));
  return out.squeeze(0).transpose(0, 1).reshape({count, shape.heads * dim});
}

}  // namespace rlhf::model
