#include "rollout_worker/weight_subscriber.h"

#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "artifact/digest.h"
#include "artifact/weight_delta.h"
#include "client/cpp/channel.h"
#include "common/failpoint.h"
#include "common/log.h"
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

// Where a tensor's bytes lie among those received, and whether they are all of it. Empty: it has not changed.
struct Part {
  absl::Span<uint8_t> bytes;
  bool whole = true;
};

// One a tensor of the manifest, in order. DataLoss when the manifest does not fit what was received.
absl::StatusOr<std::vector<Part>> PartsOf(FetchedWeights* weights) {
  const v1::WeightsManifest& manifest = weights->manifest;
  if (weights->delta && manifest.delta().sizes_size() != manifest.tensors_size()) {
    return absl::DataLossError(absl::StrCat("weights manifest: expected a delta of ", manifest.tensors_size(),
                                            " tensors, found ", manifest.delta().sizes_size()));
  }
  std::vector<Part> parts;
  uint64_t next = 0;
  for (int i = 0; i < manifest.tensors_size(); ++i) {
    const v1::TensorEntry& entry = manifest.tensors(i);
    const uint64_t offset = weights->delta ? next : entry.offset();
    const uint64_t size = weights->delta ? manifest.delta().sizes(i) : entry.size(), total = weights->bytes.size();
    if (offset > total || size > total - offset) {
      return absl::DataLossError(
          absl::StrCat("weights manifest: tensor ", entry.name(), " lies outside the stream of ", total, " bytes"));
    }
    parts.push_back({absl::MakeSpan(weights->bytes.data() + offset, size), size == entry.size()});
    next = offset + size;
  }
  return parts;
}

absl::Status VerifyTensors(FetchedWeights* weights) {
  RLHF_ASSIGN_OR_RETURN(const std::vector<Part> parts, PartsOf(weights));
  for (size_t i = 0; i < parts.size(); ++i) {
    const v1::TensorEntry& entry = weights->manifest.tensors(static_cast<int>(i));
    if (parts[i].whole && artifact::Xxh3Hex(parts[i].bytes.data(), parts[i].bytes.size()) != entry.xxh3()) {
      return absl::DataLossError(
          absl::StrCat("weights stream: tensor ", entry.name(), " does not match its digest; fetching again"));
    }
  }
  return absl::OkStatus();
}

// Receives the version that out->manifest names, or its delta as out->delta says, into out->bytes.
absl::Status Receive(v1::WeightsService::Stub* stub, FetchedWeights* out) {
  out->bytes.resize(out->delta ? out->manifest.delta().total_size() : out->manifest.total_size());
  uint64_t received = 0;
  absl::Status status;
  for (int attempt = 0; attempt < kStreamAttempts && received < out->bytes.size(); ++attempt) {
    v1::StreamWeightsRequest request;
    request.set_job_id(out->manifest.job_id());
    *request.mutable_version() = out->manifest.version();
    request.set_offset(received);
    request.set_delta(out->delta);
    const auto context = client::MakeContext(absl::Seconds(60));
    const auto reader = stub->StreamWeights(context.get(), request);
    v1::WeightsChunk chunk;
    while (reader->Read(&chunk)) {
      if (chunk.offset() != received || chunk.data().size() > out->bytes.size() - received) {
        context->TryCancel();
        status = absl::DataLossError(
            absl::StrCat("weights stream: expected bytes at ", received, ", found a chunk at ", chunk.offset()));
        break;
      }
      RLHF_FAILPOINT("rollout/receive_weights");
      std::memcpy(out->bytes.data() + received, chunk.data().data(), chunk.data().size());
      received += chunk.data().size();
    }
    const grpc::Status finished = reader->Finish();
    if (status.ok()) status = FromGrpc(finished);
    if (absl::IsNotFound(status)) return status;
  }
  if (received < out->bytes.size()) {
    if (status.ok()) status = absl::DataLossError("the stream ended early");
    return Annotate(status, absl::StrCat(received, " of ", out->bytes.size(), " bytes received"));
  }
  return VerifyTensors(out);
}

bool IsEntryOf(const v1::TensorEntry& entry, const torch::Tensor& parameter) {
  const std::vector<int64_t> shape(entry.shape().begin(), entry.shape().end());
  return parameter.sizes() == c10::IntArrayRef(shape) && entry.dtype() == DtypeName(parameter.scalar_type()) &&
         entry.size() == parameter.nbytes();
}

// A tensor of a model, its bytes on the host (its own ones where it is there), and what goes into it.
struct Target {
  const v1::TensorEntry* entry;
  torch::Tensor parameter, host;
  Part part;
  absl::Span<uint8_t> held() const { return absl::MakeSpan(static_cast<uint8_t*>(host.data_ptr()), host.nbytes()); }
  absl::Status Swap() { return artifact::SwapWeightDelta(part.bytes, host.element_size(), held()); }
};

// Puts the changed elements into the hosts' bytes, and takes them out again when a tensor is not the version's then.
absl::Status ApplyDelta(std::vector<Target>* targets) {
  absl::Status status;
  size_t done = 0;
  for (; done < targets->size() && status.ok(); ++done) {
    Target& target = (*targets)[done];
    target.host = target.parameter.detach().to(torch::kCPU).contiguous();
    status = target.Swap();
    if (!status.ok()) break;  // changed nothing
    if (artifact::Xxh3Hex(target.held().data(), target.held().size()) != target.entry->xxh3()) {
      status = absl::DataLossError(absl::StrCat("weights delta: tensor ", target.entry->name(),
                                                " does not match its digest; fetching it whole"));
    }
  }
  if (!status.ok()) {
    while (done > 0) RLHF_RETURN_IF_ERROR((*targets)[--done].Swap());
    return status;
  }
  for (Target& target : *targets) {
    if (target.host.data_ptr() != target.parameter.data_ptr()) target.parameter.copy_(target.host);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FetchedWeights> WeightSubscriber::Fetch(const v1::PolicySource& source, const std::string& held) {
  absl::Status last = absl::NotFoundError(
      absl::StrCat("no process is known to hold version ", source.version().step(), " of job ", source.job_id()));
  for (const std::string& address : source.addresses()) {
    auto weights = FetchFrom(address, source, held);
    if (weights.ok()) return weights;
    last = Annotate(weights.status(), absl::StrCat("weights from ", address));
  }
  return last;
}

absl::StatusOr<FetchedWeights> WeightSubscriber::FetchFrom(const std::string& address, const v1::PolicySource& source,
                                                           const std::string& held) {
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
  out.delta = !held.empty() && out.manifest.has_delta() && out.manifest.delta().base() == held;
  if (out.delta) {
    const absl::Status received = Receive(stub.get(), &out);
    if (received.ok()) return out;
    spdlog::warn("the delta of version {} cannot be used, fetching it whole: {}", source.version().step(),
                 received.ToString());
    out.delta = false;
  }
  RLHF_RETURN_IF_ERROR(Receive(stub.get(), &out));
  return out;
}

absl::Status ApplyWeights(FetchedWeights weights, model::Transformer& model) {
  return model::Guard("applying weights", [&]() -> absl::Status {
    RLHF_ASSIGN_OR_RETURN(const std::vector<Part> parts, PartsOf(&weights));
    std::map<std::string, size_t> entries;
    for (size_t i = 0; i < parts.size(); ++i) entries[weights.manifest.tensors(static_cast<int>(i)).name()] = i;
    const auto& parameters = model.trained_parameters();
    if (entries.size() != parameters.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights have ", entries.size(), " tensors; the model has ", parameters.size()));
    }
    // Everything is checked before anything is written: a refused version leaves the old one whole.
    std::vector<Target> whole, changed;
    for (const auto& [name, parameter] : parameters) {
      const auto at = entries.find(name);
      if (at == entries.end()) return absl::InvalidArgumentError(absl::StrCat("weights lack tensor ", name));
      const v1::TensorEntry& entry = weights.manifest.tensors(static_cast<int>(at->second));
      if (!IsEntryOf(entry, parameter)) {
        return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": expected ",
                                                       DtypeName(parameter.scalar_type()), " of ", parameter.nbytes(),
                                                       " bytes, found ", entry.dtype(), " of ", entry.size()));
      }
      (parts[at->second].whole ? whole : changed).push_back({&entry, parameter, {}, parts[at->second]});
    }
    const torch::NoGradGuard no_grad;
    RLHF_RETURN_IF_ERROR(ApplyDelta(&changed));
    for (Target& target : whole) {
      model.SetParameter(target.entry->name(),
                         torch::from_blob(target.part.bytes.data(), target.parameter.sizes(),
                                          torch::TensorOptions().dtype(target.parameter.scalar_type())));
    }
    return absl::OkStatus();
  });
}

}  // namespace rlhf::rollout
