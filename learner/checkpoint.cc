#include "learner/checkpoint.h"

#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/digest.h"
#include "artifact/safetensors.h"
#include "artifact/safetensors_writer.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/status_util.h"
#include "model/device.h"
#include "model/tensor_types.h"

namespace rlhf::learner {
namespace {

absl::Span<const uint8_t> BytesOf(const torch::Tensor& host) {
  return {static_cast<const uint8_t*>(host.data_ptr()), host.nbytes()};
}

}  // namespace

State WholeState(const NamedTensors& tensors) {
  State state;
  for (const auto& [name, tensor] : tensors)
    state.push_back({name, tensor.scalar_type(), tensor.sizes().vec(), {{0, tensor.detach()}}});
  return state;
}

StateSource HeldHere(State state) {
  return [state = std::move(state)](const StateVisitor& visitor) {
    absl::Status status;
    for (const StateTensor& tensor : state) status.Update(visitor(tensor.name, tensor.pieces.front().live));
    return status;
  };
}

absl::Status WriteCheckpoint(const std::string& dir, const State& layout, const StateSource& source,
                             const nlohmann::json& numbers) {
  absl::StatusOr<std::unique_ptr<artifact::SafetensorsWriter>> writer;
  const auto begin = [&]() -> absl::Status {
    std::vector<artifact::TensorLayout> tensors;
    for (const StateTensor& tensor : layout) {
      RLHF_ASSIGN_OR_RETURN(const artifact::DType dtype, model::FromTorch(tensor.dtype));
      tensors.push_back({tensor.name, dtype, tensor.shape});
    }
    writer = artifact::SafetensorsWriter::Create(dir + "/state.safetensors", tensors);
    return writer.status();
  };
  const absl::Status begun = begin();
  absl::Status written;
  RLHF_RETURN_IF_ERROR(source([&](const std::string& name, const torch::Tensor& whole) {
    if (begun.ok() && written.ok()) written = (*writer)->Write(name, BytesOf(model::ToHost(whole)));
    return begun.ok() ? written : begun;
  }));
  RLHF_RETURN_IF_ERROR(begun);
  RLHF_RETURN_IF_ERROR((*writer)->Finish());
  RLHF_FAILPOINT("learner/mid_checkpoint");
  RLHF_FAILPOINT_OR_RETURN("checkpoint/io_error");
  return WriteFileDurably(dir + "/state.json", numbers.dump(1));
}

absl::Status ReadCheckpoint(const std::string& dir, const State& state, nlohmann::json* numbers) {
  const auto damaged = [&](absl::string_view why) {
    return absl::DataLossError(absl::StrCat("checkpoint ", dir, ": ", why));
  };
  auto file = artifact::SafetensorsFile::Open(dir + "/state.safetensors");
  if (!file.ok()) return damaged(file.status().message());
  std::set<std::string> extra;
  for (const auto& [name, info] : (*file)->tensors()) extra.insert(name);
  for (const StateTensor& tensor : state) {
    const std::string& name = tensor.name;
    if (extra.erase(name) == 0) return damaged(absl::StrCat("tensor \"", name, "\" is missing"));
    const artifact::TensorInfo& info = (*file)->tensors().at(name);
    RLHF_ASSIGN_OR_RETURN(const artifact::DType dtype, model::FromTorch(tensor.dtype));
    if (info.shape != tensor.shape || info.dtype != dtype) {
      return damaged(absl::StrCat("tensor \"", name, "\": expected ", artifact::DTypeName(dtype), " [",
                                  absl::StrJoin(tensor.shape, ", "), "], found ", artifact::DTypeName(info.dtype), " [",
                                  absl::StrJoin(info.shape, ", "), "]"));
    }
  }
  if (!extra.empty()) return damaged(absl::StrCat("tensor \"", *extra.begin(), "\" is not this job's"));
  const absl::StatusOr<std::string> text = ReadFile(dir + "/state.json");
  if (!text.ok()) return damaged(text.status().message());
  *numbers = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!numbers->is_object()) return damaged("state.json is not a JSON object");
  // Names and shapes are right. A file that cannot be read to its end leaves the state half-read.
  const torch::NoGradGuard no_grad;
  for (const StateTensor& tensor : state) {
    const artifact::TensorInfo& info = (*file)->tensors().at(tensor.name);
    for (const StateTensor::Piece& piece : tensor.pieces) {
      torch::Tensor host = torch::empty(piece.live.sizes(), torch::TensorOptions().dtype(tensor.dtype));
      RLHF_RETURN_IF_ERROR((*file)->Read(info, static_cast<uint64_t>(piece.begin) * host.element_size(),
                                         {static_cast<uint8_t*>(host.data_ptr()), host.nbytes()}));
      model::CopyInto(piece.live.detach(), host);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> StateDigest(const State& layout, const StateSource& source,
                                        const std::vector<double>& numbers) {
  std::map<std::string, std::string> hashes;
  RLHF_RETURN_IF_ERROR(source([&](const std::string& name, const torch::Tensor& whole) {
    const torch::Tensor host = model::ToHost(whole);
    hashes[name] = artifact::Xxh3Hex(host.data_ptr(), host.nbytes());
    return absl::OkStatus();
  }));
  std::string digests;
  for (const StateTensor& tensor : layout) absl::StrAppend(&digests, tensor.name, " ", hashes[tensor.name], "\n");
  absl::StrAppend(&digests, artifact::Xxh3Hex(numbers.data(), numbers.size() * sizeof(double)), "\n");
  return artifact::Xxh3Hex(digests.data(), digests.size());
}

}  // namespace rlhf::learner
