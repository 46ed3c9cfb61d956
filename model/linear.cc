#include "model/linear.h"

#include <algorithm>
#include <memory>
#include <string_view>

#include "model/divide.h"
#include "model/kernels/cpu_kernels.h"

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kTileRows = 14, kMostTiles = 8, kPanelsTogether = 8;  // a part of the work
constexpr int64_t kPartsOfAThread = 4;  // at least, so that a slow thread does not hold up all

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x, const torch::Tensor& weight,
                               const torch::Tensor& bias) {
    context->save_for_backward({x, weight});
    context->saved_data["bias"] = bias.numel() > 0;
    return MatmulFixedOrder(x, weight, bias.numel() > 0 ? bias : torch::Tensor());
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor& dy = grads[0];
    variable_list out(3);
    if (context->needs_input_grad(0)) out[0] = MatmulFixedOrder(dy, saved[1].t());
    if (context->needs_input_grad(1)) {
      // Laid out as the weight is: its gradient is added to one of that layout.
      const bool across = saved[1].stride(0) == 1 && saved[1].stride(1) != 1;
      out[1] = across ? MatmulFixedOrder(dy.t(), saved[0]).t() : MatmulFixedOrder(saved[0].t(), dy);
    }
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2))
      out[2] = MatmulFixedOrder(torch::ones({1, dy.size(0)}, dy.options()), dy).squeeze(0);
    return out;
  }
};

}  // namespace

bool HasFastProducts() {
  static const bool fast = std::string_view(kernels::InstructionSet()) != "x86-64";
  return fast;
}

bool ProductsAreOurs(const torch::Tensor& x) {
  if (!x.device().is_cpu()) return false;
  return (x.scalar_type() == torch::kFloat32 && HasFastProducts()) ||
         (x.scalar_type() == torch::kBFloat16 && kernels::HasDotProducts());
}

namespace {

// Into c, of float32 or a's type.
void Multiply(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& bias_in, bool add,
              const torch::Tensor& c) {
  const int64_t rows = a.size(0), columns = b.size(1), inner = a.size(1);
  TORCH_CHECK(b.size(0) == inner && (!bias_in.defined() || bias_in.numel() == columns), "a product of [", rows, ", ",
              inner, "] and [", b.size(0), ", ", columns, "]");
  TORCH_CHECK(a.device().is_cpu() && b.device().is_cpu() && a.scalar_type() == b.scalar_type() &&
                  (a.scalar_type() == torch::kFloat32 || ProductsAreOurs(a)),
              "a product of ", a.scalar_type(), " and ", b.scalar_type(), " on ", a.device(), " and ", b.device());
  if (rows == 0 || columns == 0) return;
  const torch::Tensor bias = bias_in.defined() ? bias_in.to(torch::kFloat32).contiguous() : torch::Tensor();
  const float* const bias_data = bias.defined() ? bias.data_ptr<float>() : nullptr;
  const bool narrow = a.scalar_type() == torch::kBFloat16;
  const int64_t words = narrow ? (inner + 1) / 2 : inner;  // of a column
  const std::unique_ptr<float[]> packed(new float[static_cast<size_t>(kernels::PackedSize(columns, words))]);
  const auto* const left = static_cast<const char*>(a.const_data_ptr());
  const auto* const right = static_cast<const char*>(b.const_data_ptr());
  const int64_t size = narrow ? 2 : 4;
  const auto pack = [&](int64_t begin, int64_t width) {
    const char* const from = right + begin * b.stride(1) * size;
    float* const to = packed.get() + begin * words;
    if (narrow) {
      kernels::PackPairs(reinterpret_cast<const uint16_t*>(from), b.stride(1), b.stride(0), width, inner,
                         reinterpret_cast<uint32_t*>(to));
    } else {
      kernels::PackPanels(reinterpret_cast<const float*>(from), b.stride(1), b.stride(0), width, inner, to);
    }
  };
  const auto multiply = [&](int64_t row, int64_t height, int64_t column, int64_t width) {
    const char* const from = left + row * a.stride(0) * size;
    const float* const to_add = bias_data == nullptr ? nullptr : bias_data + column;
    const int64_t at = row * columns + column;
    if (!narrow) {
      return kernels::Product(reinterpret_cast<const float*>(from), a.stride(0), a.stride(1),
                              packed.get() + column * inner, to_add, height, width, inner, c.data_ptr<float>() + at,
                              columns, add);
    }
    kernels::Bf16Target to;
    std::unique_ptr<float[]> sums;
    if (c.scalar_type() == torch::kFloat32) {
      to = {.sums = c.data_ptr<float>() + at, .sums_stride = columns, .add = add};
    } else {
      if (inner > kernels::kBf16Block) sums.reset(new float[static_cast<size_t>(height * width)]);
      to = {.sums = sums.get(),
            .sums_stride = width,
            .rounded = static_cast<uint16_t*>(c.data_ptr()) + at,
            .rounded_stride = columns};
    }
    kernels::Bf16Product(reinterpret_cast<const uint16_t*>(from), a.stride(0), a.stride(1),
                         reinterpret_cast<const uint32_t*>(packed.get() + column * words), words, to_add, height, width,
                         inner, to);
  };

  // Packing costs what a few rows' products do.
  const bool pack_together = WorthThreads(8 * columns * inner),
             multiply_together = WorthThreads(rows * columns * inner);
  const auto divide = [](int64_t count, bool together, const auto& fn) {
    if (together) return Divide(count, fn);
    for (int64_t i = 0; i < count; ++i) fn(i);
  };
  const int64_t panels = kernels::PanelsOf(columns);
  const int64_t panel_parts = (panels + kPanelsTogether - 1) / kPanelsTogether;
  const auto columns_of = [&](int64_t part) {
    const int64_t begin = part * kPanelsTogether * kernels::kPanelColumns;
    return std::pair(begin, std::min(columns - begin, kPanelsTogether * kernels::kPanelColumns));
  };
  divide(panel_parts, pack_together, [&](int64_t part) {
    const auto [begin, width] = columns_of(part);
    pack(begin, width);
  });
  // Parts of equal tiles: a last one of two rows would take the time of five, and its thread wait for the other.
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t together = std::clamp<int64_t>(tiles / (kPartsOfAThread * at::get_num_threads()), 1, kMostTiles);
  const int64_t row_parts = (tiles + together - 1) / together;
  const auto first_row = [&](int64_t part) { return rows * std::min(tiles, part * together) / tiles; };
  if (row_parts >= panel_parts) {
    divide(row_parts, multiply_together,
           [&](int64_t part) { multiply(first_row(part), first_row(part + 1) - first_row(part), 0, columns); });
  } else {
    divide(panel_parts, multiply_together, [&](int64_t part) {
      const auto [begin, width] = columns_of(part);
      multiply(0, rows, begin, width);
    });
  }
}

}  // namespace

torch::Tensor MatmulFixedOrder(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& bias) {
  torch::Tensor c = torch::empty({a.size(0), b.size(1)}, a.options());
  Multiply(a, b, bias, /*add=*/false, c);
  return c;
}

void MatmulFixedOrderInto(const torch::Tensor& a, const torch::Tensor& b, bool add, const torch::Tensor& out) {
  TORCH_CHECK(out.is_contiguous() && out.scalar_type() == torch::kFloat32 && out.size(0) == a.size(0) &&
                  out.size(1) == b.size(1),
              "a product of [", a.sizes(), "] and [", b.sizes(), "] into [", out.sizes(), "]");
  Multiply(a, b, {}, add, out);
}

bool HasUnroundedProduct(const torch::Tensor& x) {
  return ProductsAreOurs(x) ||
         (x.is_cuda() && (x.scalar_type() == torch::kBFloat16 || x.scalar_type() == torch::kFloat16));
}

torch::Tensor UnroundedProduct(const torch::Tensor& x, const torch::Tensor& weight) {
  if (x.is_cuda()) return at::mm(x, weight.t(), torch::kFloat32);
  const torch::Tensor out = torch::empty({x.size(0), weight.size(0)}, x.options().dtype(torch::kFloat32));
  MatmulFixedOrderInto(x, weight.t(), /*add=*/false, out);
  return out;
}

torch::Tensor LinearFixedOrder(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) {
  // A custom function takes no undefined tensor: none has no elements.
  return LinearFunction::apply(x, weight, bias.defined() ? bias : torch::empty({0}, x.options()));
}

}  // namespace rlhf::model
