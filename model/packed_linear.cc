#include "model/packed_linear.h"

#include <algorithm>
#include <cstring>

#include "model/device.h"
#include "model/divide.h"
#include "model/kernels/cpu_kernels.h"
#include "model/linear.h"

namespace rlhf::model {
namespace {

constexpr int64_t kPanelsOfAPart = 4;  // a part of the work of a thread

}  // namespace

bool PackedLinear::Serves(torch::Dtype dtype) {
  if (dtype == torch::kFloat32) return HasFastProducts();
  return (dtype == torch::kBFloat16 || dtype == torch::kInt8) && kernels::HasDotProducts();
}

void PackedLinear::PackBiases(const std::vector<torch::Tensor>& biases) {
  bias_.clear();
  for (const torch::Tensor& bias : biases) {
    const torch::Tensor wide = bias.detach().to(torch::kFloat32).contiguous();
    bias_.insert(bias_.end(), wide.data_ptr<float>(), wide.data_ptr<float>() + wide.numel());
  }
  TORCH_CHECK(bias_.empty() || static_cast<int64_t>(bias_.size()) == out_, "projections with ", bias_.size(),
              " biases for ", out_, " outputs");
}

void PackedLinear::PackWords(const uint32_t* words) {
  const int64_t size = kernels::PackedSize(out_, words_);
  if (!packed_.defined() || packed_.numel() != size) {
    packed_ = torch::empty({size}, torch::kInt32);
    PreferHugePages(packed_);
  }
  auto* const to = static_cast<float*>(packed_.mutable_data_ptr());
  const auto* const from = reinterpret_cast<const float*>(words);
  const int64_t together = kernels::kPanelColumns * kPanelsOfAPart;
  Divide((out_ + together - 1) / together, [&](int64_t part) {
    const int64_t begin = part * together;
    kernels::PackPanels(from + begin * words_, words_, 1, std::min(together, out_ - begin), words_,
                        to + begin * words_);
  });
}

void PackedLinear::Pack(const std::vector<torch::Tensor>& weights, const std::vector<torch::Tensor>& biases) {
  dtype_ = weights.front().scalar_type();
  in_ = weights.front().size(1);
  const int64_t size = dtype_ == torch::kFloat32 ? 4 : 2;
  out_ = 0;
  for (const torch::Tensor& weight : weights) out_ += weight.size(0);
  words_ = (in_ * size + 3) / 4;
  const torch::Tensor joined = (weights.size() == 1 ? weights.front() : torch::cat(weights)).detach().contiguous();
  if (in_ * size == words_ * 4) {
    PackWords(static_cast<const uint32_t*>(joined.const_data_ptr()));
  } else {
    std::vector<uint32_t> rows(static_cast<size_t>(out_ * words_));
    const auto* from = static_cast<const char*>(joined.const_data_ptr());
    for (int64_t i = 0; i < out_; ++i)
      std::memcpy(rows.data() + i * words_, from + i * in_ * size, static_cast<size_t>(in_ * size));
    PackWords(rows.data());
  }
  PackBiases(biases);
}

void PackedLinear::Pack(const Int8Weight& weight, const std::vector<torch::Tensor>& biases) {
  dtype_ = torch::kInt8;
  out_ = weight.values.size(0);
  in_ = weight.values.size(1);
  words_ = (in_ + 3) / 4;
  std::vector<uint32_t> rows(static_cast<size_t>(out_ * words_));
  offsets_.assign(static_cast<size_t>(out_), 0);
  const int8_t* const values = weight.values.data_ptr<int8_t>();
  for (int64_t i = 0; i < out_; ++i) {
    std::memcpy(rows.data() + i * words_, values + i * in_, static_cast<size_t>(in_));
    for (int64_t k = 0; k < in_; ++k) offsets_[static_cast<size_t>(i)] += 128 * values[i * in_ + k];
  }
  PackWords(rows.data());
  column_scales_.assign(weight.scales.data_ptr<float>(), weight.scales.data_ptr<float>() + out_);
  PackBiases(biases);
}

void PackedLinear::Multiply(const float* x, int64_t rows, float* y, Scratch* scratch) const {
  const uint32_t* left = nullptr;
  if (dtype_ != torch::kFloat32) {
    scratch->words.assign(static_cast<size_t>(rows * words_), 0);
    left = scratch->words.data();
  }
  if (dtype_ == torch::kBFloat16) {
    auto* const narrow = reinterpret_cast<uint16_t*>(scratch->words.data());
    for (int64_t i = 0; i < rows; ++i) kernels::Narrow(x + i * in_, in_, narrow + i * 2 * words_);
  } else if (dtype_ == torch::kInt8) {
    scratch->scales.resize(static_cast<size_t>(rows));
    auto* const bytes = reinterpret_cast<int8_t*>(scratch->words.data());
    for (int64_t i = 0; i < rows; ++i) {
      int8_t* const row = bytes + i * 4 * words_;
      kernels::QuantizeRows(x + i * in_, in_, 1, in_, row, scratch->scales.data() + i);
      for (int64_t k = 0; k < in_; ++k) row[k] = static_cast<int8_t>(row[k] ^ -128);  // + 128, as uint8
    }
  }
  const int64_t panels = kernels::PanelsOf(out_);
  const auto multiply = [&](int64_t first_panel, int64_t last_panel) {
    const int64_t column = first_panel * kernels::kPanelColumns,
                  columns = std::min(out_, last_panel * kernels::kPanelColumns) - column;
    const uint32_t* const packed = static_cast<const uint32_t*>(packed_.const_data_ptr()) + column * words_;
    const float* const bias = bias_.empty() ? nullptr : bias_.data() + column;
    if (dtype_ == torch::kFloat32) {
      kernels::Product(x, in_, 1, reinterpret_cast<const float*>(packed), bias, rows, columns, in_, y + column, out_,
                       false);
    } else if (dtype_ == torch::kBFloat16) {
      kernels::Bf16Product(reinterpret_cast<const uint16_t*>(left), 2 * words_, 1, packed, words_, bias, rows, columns,
                           2 * words_, {.sums = y + column, .sums_stride = out_});
    } else {
      kernels::Int8Product(left, words_, packed, offsets_.data() + column, scratch->scales.data(),
                           column_scales_.data() + column, bias, rows, columns, words_, y + column, out_);
    }
  };
  if (!WorthThreads(rows * out_ * in_)) return multiply(0, panels);
  const int64_t parts = (panels + kPanelsOfAPart - 1) / kPanelsOfAPart;
  Divide(parts, [&](int64_t part) { multiply(part * kPanelsOfAPart, std::min(panels, (part + 1) * kPanelsOfAPart)); });
}

}  // namespace rlhf::model
