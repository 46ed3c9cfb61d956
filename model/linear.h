// Matrix products on the CPU by our own kernels, in float32 and bfloat16: a row's result depends on neither the other
// rows nor the threads, and LibTorch's own products are slower on many processors.
#pragma once
#include "model/libtorch.h"

namespace rlhf::model {

// Whether the kernels of float32 are compiled for this processor's vectors; without them LibTorch's product is faster.
bool HasFastProducts();

// Whether products of this tensor's type are faster by the functions below than by LibTorch: float32 as above, bfloat16
// where the processor has instructions for it.
bool ProductsAreOurs(const torch::Tensor& x);

// a [m, k] · b [k, n] + bias [n] (or undefined), no gradient; of a's type, rounded once. float32 on the CPU, or
// bfloat16 where ProductsAreOurs; views of any strides. As many threads as LibTorch uses.
torch::Tensor MatmulFixedOrder(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& bias = {});
// a · b in float32, not rounded, into `out` [m, n], contiguous and float32, or added to what is in it.
void MatmulFixedOrderInto(const torch::Tensor& a, const torch::Tensor& b, bool add, const torch::Tensor& out);

// Whether a head's logits can be had in float32 from halves, not rounded on the way: by our own kernels, or by CUDA's.
bool HasUnroundedProduct(const torch::Tensor& x);
// x [rows, in] · weight [out, in]ᵀ in float32, where HasUnroundedProduct; no gradient.
torch::Tensor UnroundedProduct(const torch::Tensor& x, const torch::Tensor& weight);

// x [rows, in] · weight [in, out] (a transposed view is as good) + bias [out] or undefined, with gradients.
torch::Tensor LinearFixedOrder(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias);

}  // namespace rlhf::model
