#include "rollout_worker/weight_subscriber.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "artifact/digest.h"
#include "client/cpp/channel.h"
#include "common/failpoint.h"
#include "common/status_util.h"
#include "model/guard.h"
#include "rlhf/v1/weights_service.grpc.pb.h"

namespace rlhf::rollout {
namespace {

constexpr int kStreamAttempts = 3;

const char* DtypeName(torch::Dtype dtype) {
  if (dtype == torch::kFloat32) return "F32";
  if (dtype == torch::kBFloat16) return "BF16";
  if (dtype == torch::kFloat16) return "F16";
  return "unsupported";
}

absl::Status VerifyTensors(const FetchedWeights& weights) {
  for (const v1::TensorEntry& entry : weights.manifest.tensors()) {
    const uint64_t total = weights.bytes.size();
    if (entry.offset() > total || entry.size() > total - entry.offset()) {
      return absl::DataLossError(
          absl::StrCat("weights manifest: tensor ", entry.name(), " lies outside the stream of ", total, " bytes"));
    }
    if (artifact::Xxh3Hex(weights.bytes.data() + entry.offset(), entry.size()) != entry.xxh3()) {
      return absl::DataLossError(
          absl::StrCat("weights stream: tensor ", entry.name(), " does not match its digest; fetching again"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FetchedWeights> WeightSubscriber::Fetch(const v1::PolicySource& source) {
  absl::Status last = absl::NotFoundError(
      absl::StrCat("no process is known to hold version ", source.version().step(), " of job ", source.job_id()));
  for (const std::string& address : source.addresses()) {
    auto weights = FetchFrom(address, source);
    if (weights.ok()) return weights;
    last = Annotate(weights.status(), absl::StrCat("weights from ", address));
  }
  return last;
}

absl::StatusOr<FetchedWeights> WeightSubscriber::FetchFrom(const std::string& address, const v1::PolicySource& source) {
  RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, channels_(address));
  const auto stub = v1::WeightsService::NewStub(channel);
  FetchedWeights out;
  {
    v1::GetManifestRequest request;
    request.set_job_id(source.job_id());
    *request.mutable_version() = source.version();
    const auto context = client::MakeContext(absl::Seconds(10));
    RLHF_RETURN_IF_ERROR(FromGrpc(stub->GetManifest(context.get(), request, &out.manifest)));
  }
  if (out.manifest.version().step() != source.version().step() ||
      out.manifest.version().lineage() != source.version().lineage()) {
    return absl::NotFoundError(
        absl::StrCat("asked for version ", source.version().step(), ", was offered ", out.manifest.version().step()));
  }
  out.bytes.resize(out.manifest.total_size());
  uint64_t received = 0;
  absl::Status status;
  for (int attempt = 0; attempt < kStreamAttempts && received < out.bytes.size(); ++attempt) {
    v1::StreamWeightsRequest request;
    request.set_job_id(source.job_id());
    *request.mutable_version() = out.manifest.version();
    request.set_offset(received);
    const auto context = client::MakeContext(absl::Seconds(60));
    const auto reader = stub->StreamWeights(context.get(), request);
    v1::WeightsChunk chunk;
    while (reader->Read(&chunk)) {
      if (chunk.offset() != received || chunk.data().size() > out.bytes.size() - received) {
        context->TryCancel();
        status = absl::DataLossError(
            absl::StrCat("weights stream: expected bytes at ", received, ", found a chunk at ", chunk.offset()));
        break;
      }
      RLHF_FAILPOINT("rollout/receive_weights");
      std::memcpy(out.bytes.data() + received, chunk.data().data(), chunk.data().size());
      received += chunk.data().size();
    }
    const grpc::Status finished = reader->Finish();
    if (status.ok()) status = FromGrpc(finished);
    if (absl::IsNotFound(status)) return status;
  }
  if (received < out.bytes.size()) {
    if (status.ok()) status = absl::DataLossError("the stream ended early");
    return Annotate(status, absl::StrCat(received, " of ", out.bytes.size(), " bytes received"));
  }
  RLHF_RETURN_IF_ERROR(VerifyTensors(out));
  return out;
}

absl::Status ApplyWeights(const FetchedWeights& weights, model::Transformer& model) {
  return model::Guard("applying weights", [&]() -> absl::Status {
    std::map<std::string, const v1::TensorEntry*> entries;
    for (const v1::TensorEntry& entry : weights.manifest.tensors()) entries[entry.name()] = &entry;
    const auto& parameters = model.trained_parameters();
    if (entries.size() != parameters.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights have ", entries.size(), " tensors; the model has ", parameters.size()));
    }
    // Everything is checked before anything is written: a refused version leaves the old one whole.
    for (const auto& [name, parameter] : parameters) {
      const auto entry = entries.find(name);
      if (entry == entries.end()) return absl::InvalidArgumentError(absl::StrCat("weights lack tensor ", name));
      const std::vector<int64_t> shape(entry->second->shape().begin(), entry->second->shape().end());
      if (parameter.sizes() != c10::IntArrayRef(shape) ||
          entry->second->dtype() != DtypeName(parameter.scalar_type()) || entry->second->size() != parameter.nbytes()) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", name, ": expected ", DtypeName(parameter.scalar_type()), " of ", parameter.nbytes(),
                         " bytes, found ", entry->second->dtype(), " of ", entry->second->size()));
      }
    }
    const torch::NoGradGuard no_grad;
    for (const auto& [name, parameter] : parameters) {
      const v1::TensorEntry& entry = *entries[name];
      const torch::Tensor source =
          torch::from_blob(const_cast<uint8_t*>(weights.bytes.data()) + entry.offset(), parameter.sizes(),
                           torch::TensorOptions().dtype(parameter.scalar_type()));
      torch::Tensor target = parameter;
      target.copy_(source);
    }
    return absl::OkStatus();
  });
}

}  // namespace rlhf::rollout
