#include "model/attention.h"

#include <algorithm>
#include <limits>

#include "model/bf16_attention.h"
#include "model/device.h"
#include "model/device_ops.h"
#include "model/divide.h"
#include "model/float_rows.h"
#include "model/linear.h"

namespace rlhf::model {
namespace {

using kernels::AttentionShape;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether attention over rows is computed by the kernels. Without this processor's vectors LibTorch's is faster.
bool ByKernels(const torch::Tensor& x, const AttentionShape& shape, bool fixed_order) {
  return IsFloatOrBf16OnCpu(x) && (fixed_order || shape.softcap > 0 || HasFastProducts());
}

bool ByDotProducts(const torch::Tensor& x) {
  return x.scalar_type() == torch::kBFloat16 && ProductsAreOurs(x);
}

constexpr int64_t kRowsWorthAPart = 256;

// Into how many parts the queries of so many heads are divided, of sequences with at most `rows` of them.
int64_t PartsOf(int64_t heads, int64_t rows) {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return threads == 1 || rows < kRowsWorthAPart ? 1 : std::max<int64_t>(1, 4 * threads / heads);
}

// The queries from position `first` on of one key head against its keys and values from position 0 on.
void AttendHead(const AttentionShape& shape, const torch::Tensor& q, int64_t q_row, const FloatRows& keys,
                const FloatRows& values, int64_t kv_row, int64_t first, int64_t rows, int64_t kv_head,
                const torch::Tensor& out) {
  const int64_t width = kernels::RoundUpTo16(shape.dim), length = first + rows, group = shape.heads / shape.kv_heads;
  Scratch scratch({2 * length * width, 2 * rows * width, kernels::AttentionScratch(length)});
  float *const k = scratch.Take(length * width), *const v = scratch.Take(length * width),
               *const query = scratch.Take(rows * width), *const result = scratch.Take(rows * width),
               *const scores = scratch.Take(kernels::AttentionScratch(length));
  keys.Read(kv_row, length, width, k);
  values.Read(kv_row, length, width, v);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    FloatRows::OfHead(q, head).Read(q_row, rows, width, query);
    kernels::CausalAttention(shape, query, k, v, first, rows, scores, result);
    FloatRows::OfHead(out, head).Write(q_row, rows, width, result);
  }
}

class KernelAttention : public torch::autograd::Function<KernelAttention> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, const PackedLayout& layout,
                               const AttentionShape& shape) {
    const torch::Tensor qkv = input.contiguous();
    const torch::Tensor out = torch::empty({qkv.size(0), shape.heads, shape.dim}, qkv.options());
    const auto sequences = static_cast<int64_t>(layout.lengths.size());
    // Few heads of long sequences: their queries are divided too.
    const int64_t heads = sequences * shape.kv_heads, parts = PartsOf(heads, layout.longest),
                  group = shape.heads / shape.kv_heads;
    Divide(heads * parts, [&](int64_t i) {
      const auto sequence = static_cast<size_t>(i / parts / shape.kv_heads);
      const int64_t kv_head = i / parts % shape.kv_heads, begin = layout.begins[sequence],
                    length = layout.lengths[sequence], first = length * (i % parts) / parts,
                    end = length * (i % parts + 1) / parts;
      if (first == end) return;
      if (ByDotProducts(qkv)) {
        const Bf16Rows keys = Bf16Rows::OfHead(qkv, shape.heads + kv_head, begin),
                       values = Bf16Rows::OfHead(qkv, shape.heads + shape.kv_heads + kv_head, begin);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          Bf16AttendHead(shape, Bf16Rows::OfHead(qkv, head, begin + first), keys, values, first, end - first,
                         Bf16Rows::OfHead(out, head, begin + first));
        }
        return;
      }
      AttendHead(shape, qkv, begin + first, FloatRows::OfHead(qkv, shape.heads + kv_head),
                 FloatRows::OfHead(qkv, shape.heads + shape.kv_heads + kv_head), begin, first, end - first, kv_head,
                 out);
    });
    context->save_for_backward({qkv});
    context->saved_data["lengths"] = layout.lengths;
    context->saved_data["heads"] = std::vector<int64_t>{shape.heads, shape.kv_heads, shape.dim, shape.window};
    context->saved_data["scale"] = static_cast<double>(shape.scale);
    context->saved_data["softcap"] = static_cast<double>(shape.softcap);
    return out.view({qkv.size(0), shape.heads * shape.dim});
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
    const torch::Tensor dout = grads[0].contiguous().view({qkv.size(0), shape.heads, shape.dim});
    const torch::Tensor dqkv = torch::empty_like(qkv);
    // Each query head has its own share of its keys' and values' gradients; they are added in the order of heads.
    const int64_t group = shape.heads / shape.kv_heads, width = kernels::RoundUpTo16(shape.dim);
    const torch::Tensor shares =
        torch::empty({group > 1 ? 2 : 0, shape.heads, qkv.size(0), width}, qkv.options().dtype(torch::kFloat32));
    Divide(static_cast<int64_t>(lengths.size()) * shape.heads, [&](int64_t i) {
      const auto sequence = static_cast<size_t>(i / shape.heads);
      BackwardOfHead(shape, qkv, dout, begins[sequence], lengths[sequence], i % shape.heads, dqkv, shares);
    });
    if (group > 1) {
      const torch::Tensor sums = shares.view({2, shape.kv_heads, group, qkv.size(0), width}).sum(2);
      dqkv.narrow(1, shape.heads, 2 * shape.kv_heads)
          .copy_(sums.narrow(3, 0, shape.dim).reshape({2 * shape.kv_heads, qkv.size(0), shape.dim}).transpose(0, 1));
    }
    return {dqkv, torch::Tensor(), torch::Tensor()};
  }

 private:
  static void BackwardOfHead(const AttentionShape& shape, const torch::Tensor& qkv, const torch::Tensor& dout,
                             int64_t begin, int64_t length, int64_t head, const torch::Tensor& dqkv,
                             const torch::Tensor& shares) {
    const int64_t width = kernels::RoundUpTo16(shape.dim), size = length * width, group = shape.heads / shape.kv_heads,
                  key = shape.heads + head / group, value = key + shape.kv_heads;
    const bool narrow = ByDotProducts(qkv);
    const int64_t work =
        narrow ? Bf16BackwardScratch(length, shape.dim) : kernels::AttentionBackwardScratch(length, shape.dim);
    Scratch scratch({7 * size, work});
    float *const k = scratch.Take(size), *const v = scratch.Take(size), *const query = scratch.Take(size),
                 *const upstream = scratch.Take(size), *const dquery = scratch.Take(size),
                 *const memory = scratch.Take(work), *dk = scratch.Take(size), *dv = scratch.Take(size);
    if (group > 1) {
      dk = shares.data_ptr<float>() + (head * qkv.size(0) + begin) * width;
      dv = dk + shape.heads * qkv.size(0) * width;
    }
    std::fill_n(dk, size, 0.0F);
    std::fill_n(dv, size, 0.0F);
    if (narrow) {
      const auto rows = [begin](const torch::Tensor& x, int64_t of) { return Bf16Rows::OfHead(x, of, begin); };
      Bf16AttendHeadBackward(shape, rows(dout, head), rows(qkv, head), rows(qkv, key), rows(qkv, value), length, memory,
                             rows(dqkv, head), dk, dv, width);
    } else {
      FloatRows::OfHead(qkv, key).Read(begin, length, width, k);
      FloatRows::OfHead(qkv, value).Read(begin, length, width, v);
      FloatRows::OfHead(qkv, head).Read(begin, length, width, query);
      FloatRows::OfHead(dout, head).Read(begin, length, width, upstream);
      kernels::CausalAttentionBackward(shape, upstream, query, k, v, length, memory, dquery, dk, dv);
      FloatRows::OfHead(dqkv, head).Write(begin, length, width, dquery);
    }
    if (group > 1) return;
    FloatRows::OfHead(dqkv, key).Write(begin, length, width, dk);
    FloatRows::OfHead(dqkv, value).Write(begin, length, width, dv);
  }
};

// True where query i (of the newest `count` of `length`) sees key j.
torch::Tensor Mask(int64_t count, int64_t length, int64_t window, torch::Device device) {
  torch::Tensor mask =
      torch::ones({count, length}, torch::TensorOptions().dtype(torch::kBool).device(device)).tril(length - count);
  return window > 0 ? mask.triu(length - count - window + 1) : mask;
}

// How packed rows map to a padded [batch, longest] grid and back.
struct PaddedGrid {
  bool trivial = false;            // all sequences have one length: the grid is the rows
  torch::Tensor to_grid, to_rows;  // int64; the grid's padding repeats row 0

  static PaddedGrid Of(const PackedLayout& layout, torch::Device device) {
    PaddedGrid grid;
    const std::vector<int64_t>& lengths = layout.lengths;
    grid.trivial = std::all_of(lengths.begin(), lengths.end(), [&](int64_t l) { return l == layout.longest; });
    if (grid.trivial) return grid;
    std::vector<int64_t> to_grid(lengths.size() * static_cast<size_t>(layout.longest), 0), to_rows;
    for (size_t b = 0; b < lengths.size(); ++b) {
      for (int64_t p = 0; p < lengths[b]; ++p) {
        const int64_t cell = static_cast<int64_t>(b) * layout.longest + p;
        to_grid[static_cast<size_t>(cell)] = layout.begins[b] + p;
        to_rows.push_back(cell);
      }
    }
    grid.to_grid = ToDevice(to_grid, device);
    grid.to_rows = ToDevice(to_rows, device);
    return grid;
  }
};

// By LibTorch: q [B, heads, count, dim]; k, v [B, kv_heads, length, dim].
torch::Tensor AttendOverGrid(const AttentionShape& shape, const torch::Tensor& q, torch::Tensor k, torch::Tensor v) {
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
  return layout;
}

bool AttendsUnpadded(const AttentionShape& shape, const torch::Tensor& qkv, bool fixed_order) {
  return ByKernels(qkv, shape, fixed_order) || HasFlashAttention(shape, qkv);
}

torch::Tensor AttendPacked(const AttentionShape& shape, const torch::Tensor& packed, const PackedLayout& layout,
                           bool fixed_order) {
  if (ByKernels(packed, shape, fixed_order)) return KernelAttention::apply(packed, layout, shape);
  if (HasFlashAttention(shape, packed)) return FlashPacked(shape, packed, layout.borders, layout.longest);
  const PaddedGrid padded = PaddedGrid::Of(layout, packed.device());
  const torch::Tensor qkv = padded.trivial ? packed : packed.index_select(0, padded.to_grid);
  // Rows of padding are computed and dropped; nothing real attends to them: they come last.
  const torch::Tensor grid =
      qkv.view({static_cast<int64_t>(layout.lengths.size()), layout.longest, qkv.size(1), shape.dim}).transpose(1, 2);
  const torch::Tensor out =
      AttendOverGrid(shape, grid.narrow(1, 0, shape.heads), grid.narrow(1, shape.heads, shape.kv_heads),
                     grid.narrow(1, shape.heads + shape.kv_heads, shape.kv_heads))
          .transpose(1, 2)
          .reshape({-1, shape.heads * shape.dim});
  return padded.trivial ? out : out.index_select(0, padded.to_rows);
}

torch::Tensor AttendCached(const AttentionShape& shape, const torch::Tensor& queries, const torch::Tensor& keys,
                           const torch::Tensor& values, bool fixed_order) {
  const int64_t count = queries.size(0), length = keys.size(1), dim = shape.dim;
  if (ByKernels(queries, shape, fixed_order)) {
    const torch::Tensor out = torch::empty({count, shape.heads, dim}, queries.options());
    // Heads lie apart in a cache, and rows do in what the kernels read.
    const torch::Tensor key_rows = keys.transpose(0, 1), value_rows = values.transpose(0, 1);
    const int64_t parts = PartsOf(shape.kv_heads, count);
    Divide(shape.kv_heads * parts, [&](int64_t i) {
      const int64_t kv_head = i / parts, first = count * (i % parts) / parts, end = count * (i % parts + 1) / parts;
      if (first == end) return;
      AttendHead(shape, queries, first, FloatRows::OfHead(key_rows, kv_head), FloatRows::OfHead(value_rows, kv_head), 0,
                 length - count + first, end - first, kv_head, out);
    });
    return out.view({count, shape.heads * dim});
  }
  if (HasFlashAttention(shape, queries)) return FlashCached(shape, queries, keys, values);
  const torch::Tensor out =
      AttendOverGrid(shape, queries.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0));
  return out.squeeze(0).transpose(0, 1).reshape({count, shape.heads * dim});
}

}  // namespace rlhf::model
