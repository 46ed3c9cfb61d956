#include "learner/checkpoint.h"

#include <cstring>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/digest.h"
#include "artifact/safetensors.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/status_util.h"
#include "model/device.h"

namespace rlhf::learner {
namespace {

absl::StatusOr<artifact::DType> DTypeOf(const torch::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::kFloat32:
      return artifact::DType::kF32;
    case torch::kBFloat16:
      return artifact::DType::kBF16;
    case torch::kFloat16:
      return artifact::DType::kF16;
    case torch::kInt64:
      return artifact::DType::kI64;
    default:
      return absl::InternalError(
          absl::StrCat("a checkpoint holds no tensors of type ", c10::toString(tensor.scalar_type())));
  }
}

}  // namespace

absl::Status WriteCheckpoint(const std::string& dir, const NamedTensors& tensors, const nlohmann::json& state) {
  std::vector<torch::Tensor> hosts;
  std::vector<artifact::TensorToWrite> writes;
  for (const auto& [name, tensor] : tensors) {
    hosts.push_back(model::ToHost(tensor));
    artifact::TensorToWrite& write = writes.emplace_back();
    write.name = name;
    RLHF_ASSIGN_OR_RETURN(write.dtype, DTypeOf(hosts.back()));
    write.shape = hosts.back().sizes().vec();
    write.data = {static_cast<const uint8_t*>(hosts.back().data_ptr()), hosts.back().nbytes()};
  }
  RLHF_RETURN_IF_ERROR(artifact::WriteSafetensors(dir + "/state.safetensors", writes));
  RLHF_FAILPOINT("learner/mid_checkpoint");
  RLHF_FAILPOINT_OR_RETURN("checkpoint/io_error");
  return WriteFileDurably(dir + "/state.json", state.dump(1));
}

absl::Status ReadCheckpoint(const std::string& dir, const NamedTensors& tensors, nlohmann::json* state) {
  const auto damaged = [&](absl::string_view why) {
    return absl::DataLossError(absl::StrCat("checkpoint ", dir, ": ", why));
  };
  auto file = artifact::SafetensorsFile::Open(dir + "/state.safetensors");
  if (!file.ok()) return damaged(file.status().message());
  std::set<std::string> extra;
  for (const auto& [name, info] : (*file)->tensors()) extra.insert(name);
  for (const auto& [name, tensor] : tensors) {
    if (extra.erase(name) == 0) return damaged(absl::StrCat("tensor \"", name, "\" is missing"));
    const artifact::TensorInfo& info = (*file)->tensors().at(name);
    RLHF_ASSIGN_OR_RETURN(const artifact::DType dtype, DTypeOf(tensor));
    if (info.shape != tensor.sizes().vec() || info.dtype != dtype) {
      return damaged(absl::StrCat("tensor \"", name, "\": expected ", artifact::DTypeName(dtype), " [",
                                  absl::StrJoin(tensor.sizes(), ", "), "], found ", artifact::DTypeName(info.dtype),
                                  " [", absl::StrJoin(info.shape, ", "), "]"));
    }
  }
  if (!extra.empty()) return damaged(absl::StrCat("tensor \"", *extra.begin(), "\" is not this job's"));
  const absl::StatusOr<std::string> text = ReadFile(dir + "/state.json");
  if (!text.ok()) return damaged(text.status().message());
  *state = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!state->is_object()) return damaged("state.json is not a JSON object");
  // Everything was checked: now nothing is left half-read.
  const torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : tensors) {
    const absl::Span<const uint8_t> bytes = (*file)->Data((*file)->tensors().at(name));
    torch::Tensor host = torch::empty(tensor.sizes(), tensor.options().device(torch::kCPU).requires_grad(false));
    std::memcpy(host.data_ptr(), bytes.data(), bytes.size());
    model::CopyInto(tensor.detach(), host);
  }
  return absl::OkStatus();
}

std::string StateDigest(const NamedTensors& tensors, const std::vector<double>& numbers) {
  std::string digests;
  for (const auto& [name, tensor] : tensors) {
    const torch::Tensor host = model::ToHost(tensor);
    absl::StrAppend(&digests, name, " ", artifact::Xxh3Hex(host.data_ptr(), host.nbytes()), "\n");
  }
  absl::StrAppend(&digests, artifact::Xxh3Hex(numbers.data(), numbers.size() * sizeof(double)), "\n");
  return artifact::Xxh3Hex(digests.data(), digests.size());
}

}  // namespace rlhf::learner
