#include "learner/service/weight_publisher.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "artifact/weight_delta.h"
#include "common/failpoint.h"
#include "common/large_memory.h"
#include "common/log.h"
#include "common/shared_memory.h"
#include "common/status_util.h"
#include "model/device.h"
#include "model/guard.h"
#include "model/tensor_types.h"

namespace rlhf::learner {
namespace {

size_t ElementSize(const v1::TensorEntry& entry) {
  return entry.dtype() == "F32" ? 4 : 2;
}

bool SameLayout(const v1::TensorEntry& a, const v1::TensorEntry& b) {
  return a.name() == b.name() && a.dtype() == b.dtype() && a.offset() == b.offset() && a.size() == b.size();
}

// Whether so few elements changed that a delta may be the smaller, by about a thousand of them.
bool FewChanged(absl::Span<const uint8_t> from, absl::Span<const uint8_t> to, size_t element_size) {
  const size_t elements = to.size() / element_size, stride = std::max<size_t>(1, elements / 1000);
  size_t seen = 0, changed = 0;
  for (size_t i = 0; i < elements; i += stride, ++seen)
    changed += std::memcmp(from.data() + i * element_size, to.data() + i * element_size, element_size) != 0 ? 1 : 0;
  return changed * 4 < seen;
}

// Adds the delta from `base`, unless it would take more than half of the bytes.
void AddDelta(const WeightSnapshot& base, WeightSnapshot* snapshot) {
  const v1::WeightsManifest& from = base.manifest;
  v1::WeightsManifest& to = snapshot->manifest;
  if (from.version().digest().empty() || from.tensors_size() != to.tensors_size()) return;
  const size_t most = snapshot->bytes.size() / 2;
  const auto bytes_of = [](const WeightSnapshot& one, const v1::TensorEntry& entry) {
    return absl::MakeConstSpan(one.bytes.data() + entry.offset(), entry.size());
  };
  // Whole tensors alone may be too much, as in float32, where every element changes: then nothing is encoded in vain.
  std::vector<bool> few(static_cast<size_t>(to.tensors_size()));
  size_t whole = 0;
  for (int i = 0; i < to.tensors_size(); ++i) {
    const v1::TensorEntry& entry = to.tensors(i);
    if (!SameLayout(from.tensors(i), entry)) return;
    few[static_cast<size_t>(i)] = FewChanged(bytes_of(base, entry), bytes_of(*snapshot, entry), ElementSize(entry));
    if (!few[static_cast<size_t>(i)]) whole += entry.size();
    if (whole > most) return;
  }
  std::vector<uint8_t> stream;
  v1::WeightsDelta delta;
  for (int i = 0; i < to.tensors_size(); ++i) {
    const v1::TensorEntry& entry = to.tensors(i);
    const size_t before = stream.size();
    const absl::Span<const uint8_t> bytes = bytes_of(*snapshot, entry);
    if (entry.xxh3() != from.tensors(i).xxh3() &&
        !(few[static_cast<size_t>(i)] &&
          artifact::EncodeWeightDelta(bytes_of(base, entry), bytes, ElementSize(entry), entry.size(), &stream))) {
      stream.insert(stream.end(), bytes.begin(), bytes.end());
    }
    if (stream.size() > most) return;
    delta.add_sizes(stream.size() - before);
  }
  delta.set_base(from.version().digest());
  delta.set_total_size(stream.size());
  delta.set_xxh3(artifact::Xxh3Hex(stream.data(), stream.size()));
  *to.mutable_delta() = std::move(delta);
  snapshot->delta = std::move(stream);
}

// Sends a snapshot's bytes; one write in flight, so a slow reader costs no memory.
class Streamer final : public client::WeightsWriter {
 public:
  // `bytes` are one of the snapshot's.
  Streamer(std::shared_ptr<const WeightSnapshot> snapshot, absl::Span<const uint8_t> bytes, uint64_t begin,
           uint64_t end)
      : snapshot_(std::move(snapshot)), bytes_(bytes), at_(begin), end_(end) {
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      Next();
    } else {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the reader went away"));
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    if (at_ >= end_) {
      Finish(grpc::Status::OK);
      return;
    }
    RLHF_FAILPOINT("learner/stream_weights");
    const uint64_t size = std::min(client::kWeightsChunkBytes, end_ - at_);
    chunk_ = client::ChunkBuffer(at_, bytes_.subspan(at_, size), snapshot_);
    at_ += size;
    StartWrite(&chunk_);
  }

  std::shared_ptr<const WeightSnapshot> snapshot_;
  const absl::Span<const uint8_t> bytes_;
  uint64_t at_, end_;
  grpc::ByteBuffer chunk_;
};

// Sends nothing more than that memory is held, which it is until the reader ends the call, goes away, or its deadline
// passes.
class Holder final : public client::WeightsWriter {
 public:
  explicit Holder(std::shared_ptr<const void> memory)
      : memory_(std::move(memory)), chunk_(client::ChunkBuffer(0, {}, nullptr)) {
    StartWrite(&chunk_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) End();
  }
  void OnCancel() override { End(); }
  void OnDone() override { delete this; }

 private:
  // The two that call it may run at once.
  void End() {
    if (!ended_.exchange(true)) Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the reader went away"));
  }

  const std::shared_ptr<const void> memory_;
  grpc::ByteBuffer chunk_;
  std::atomic<bool> ended_{false};
};

absl::Status NotHeld(const std::string& job_id, const v1::PolicyVersion& version) {
  return absl::NotFoundError(absl::StrCat("version ", version.step(), " of job ", job_id,
                                          " is not held here (any more); ask the coordinator for the newest"));
}

}  // namespace

absl::Span<uint8_t> WeightPublisher::Allocate(uint64_t size, WeightSnapshot* snapshot) const {
  if (!shm_dir_.empty() && size > 0) {
    absl::StatusOr<std::unique_ptr<SharedMemory>> memory = SharedMemory::Create(shm_dir_, size);
    if (memory.ok()) {
      const absl::Span<uint8_t> bytes = (*memory)->bytes();
      snapshot->manifest.mutable_shared()->set_host(HostIdentity());
      snapshot->manifest.mutable_shared()->set_name((*memory)->name());
      snapshot->bytes = bytes;
      snapshot->owner = std::shared_ptr<const SharedMemory>(*std::move(memory));
      return bytes;
    }
    spdlog::debug("weights are not shared with this host's workers: {}", memory.status().ToString());
  }
  const std::shared_ptr<uint8_t[]> own = AllocateLarge(size);  // not zeroed: all of it is filled
  snapshot->bytes = absl::MakeConstSpan(own.get(), size);
  snapshot->owner = own;
  return absl::MakeSpan(own.get(), size);
}

void WeightPublisher::ShareOnDevice(const model::Transformer& model, WeightSnapshot* snapshot) {
  if (!on_device_) return;
  std::vector<torch::Tensor> tensors;
  for (const auto& [name, parameter] : model.trained_parameters()) tensors.push_back(parameter.detach());
  const absl::StatusOr<model::DeviceShareName> name = device_share_.Put(tensors);
  if (!name.ok()) {
    spdlog::warn("weights are not shared with this host's GPUs: {}", name.status().ToString());
    return;
  }
  v1::DeviceWeights& device = *snapshot->manifest.mutable_device();
  device.set_host(HostIdentity());
  device.set_handle(name->handle);
  device.set_generation(name->generation);
}

absl::Status WeightPublisher::Stage(const std::string& job_id, const v1::PolicyVersion& version,
                                    const model::Transformer& model) {
  if (const auto newest = Newest(job_id); newest != nullptr && !version.digest().empty() &&
                                          newest->manifest.version().step() == version.step() &&
                                          newest->manifest.version().digest() == version.digest()) {
    Confirm(job_id, version);  // a group that formed anew goes on with what is published
    return absl::OkStatus();
  }
  {
    // Before the next one is made, or there would be one more in memory meanwhile.
    absl::MutexLock lock(&mu_);
    while (snapshots_.size() >= kKeep) snapshots_.pop_front();
  }
  auto snapshot = std::make_shared<WeightSnapshot>();
  RLHF_RETURN_IF_ERROR(model::Guard("snapshot of weights", [&]() -> absl::Status {
    uint64_t total = 0;
    for (const auto& [name, parameter] : model.trained_parameters()) total += parameter.nbytes();
    const absl::Span<uint8_t> bytes = Allocate(total, snapshot.get());
    snapshot->manifest.set_job_id(job_id);
    *snapshot->manifest.mutable_version() = version;
    snapshot->manifest.set_total_size(total);
    uint64_t offset = 0;
    for (const auto& [name, parameter] : model.trained_parameters()) {
      RLHF_ASSIGN_OR_RETURN(const artifact::DType type, model::FromTorch(parameter.scalar_type()));
      model::CopyOut(parameter, bytes.data() + offset);
      v1::TensorEntry& entry = *snapshot->manifest.add_tensors();
      entry.set_name(name);
      entry.set_dtype(artifact::DTypeName(type));
      entry.mutable_shape()->Add(parameter.sizes().begin(), parameter.sizes().end());
      entry.set_offset(offset);
      entry.set_size(parameter.nbytes());
      entry.set_xxh3(artifact::Xxh3Hex(bytes.data() + offset, parameter.nbytes()));
      offset += parameter.nbytes();
    }
    ShareOnDevice(model, snapshot.get());
    return absl::OkStatus();
  }));
  if (const auto base = Newest(job_id); base != nullptr) AddDelta(*base, snapshot.get());
  absl::MutexLock lock(&mu_);
  snapshots_.push_back(std::move(snapshot));
  return absl::OkStatus();
}

void WeightPublisher::Confirm(const std::string& job_id, const v1::PolicyVersion& version) {
  absl::MutexLock lock(&mu_);
  for (auto& snapshot : snapshots_) {
    if (snapshot->manifest.job_id() != job_id || snapshot->manifest.version().step() != version.step() ||
        snapshot->manifest.version().digest() != version.digest() ||
        snapshot->manifest.version().lineage() == version.lineage()) {
      continue;
    }
    // Immutable: a reader may hold the old one.
    auto renamed = std::make_shared<WeightSnapshot>(*snapshot);
    *renamed->manifest.mutable_version() = version;
    snapshot = std::move(renamed);
  }
}

void WeightPublisher::Drop(const std::string& job_id, int64_t step) {
  absl::MutexLock lock(&mu_);
  std::erase_if(snapshots_,
                [&](const auto& s) { return s->manifest.job_id() == job_id && s->manifest.version().step() == step; });
}

void WeightPublisher::DropJob(const std::string& job_id) {
  absl::MutexLock lock(&mu_);
  std::erase_if(snapshots_, [&](const auto& s) { return s->manifest.job_id() == job_id; });
}

std::shared_ptr<const WeightSnapshot> WeightPublisher::Find(const std::string& job_id,
                                                            const v1::PolicyVersion& version) const {
  absl::MutexLock lock(&mu_);
  for (auto it = snapshots_.rbegin(); it != snapshots_.rend(); ++it) {
    const v1::PolicyVersion& held = (*it)->manifest.version();
    if ((*it)->manifest.job_id() != job_id) continue;
    if (version.step() == -1) return *it;
    if (held.step() == version.step() && (version.digest().empty() || held.digest() == version.digest())) return *it;
  }
  return nullptr;
}

std::shared_ptr<const WeightSnapshot> WeightPublisher::Newest(const std::string& job_id) const {
  v1::PolicyVersion newest;
  newest.set_step(-1);
  return Find(job_id, newest);
}

grpc::ServerUnaryReactor* WeightPublisher::GetManifest(grpc::CallbackServerContext* context,
                                                       const v1::GetManifestRequest* request,
                                                       v1::WeightsManifest* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto snapshot = Find(request->job_id(), request->version());
  if (snapshot == nullptr) {
    reactor->Finish(ToGrpc(NotHeld(request->job_id(), request->version())));
    return reactor;
  }
  *response = snapshot->manifest;
  // The commit's reply, which may bring another lineage, can be on its way to us while workers ask already: bytes are
  // identified by the digest.
  if (!request->version().digest().empty()) response->mutable_version()->set_lineage(request->version().lineage());
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

client::WeightsWriter* WeightPublisher::Stream(const v1::StreamWeightsRequest& request) {
  if (request.device_generation() != 0) {
    std::shared_ptr<const void> memory = device_share_.Hold(request.device_generation());
    if (memory != nullptr) return new Holder(std::move(memory));
    return new client::RefusedWeights(absl::NotFoundError(
        absl::StrCat("another version has taken the place of version ", request.version().step(), " in GPU memory")));
  }
  const auto snapshot = Find(request.job_id(), request.version());
  if (snapshot == nullptr) return new client::RefusedWeights(NotHeld(request.job_id(), request.version()));
  if (request.delta() && !snapshot->manifest.has_delta()) {
    return new client::RefusedWeights(absl::NotFoundError(
        absl::StrCat("version ", request.version().step(), " has no delta; ask for its manifest again")));
  }
  const absl::Span<const uint8_t> bytes = request.delta() ? absl::MakeConstSpan(snapshot->delta) : snapshot->bytes;
  const absl::StatusOr<client::StreamRange> range = client::RangeOf(request, bytes.size());
  if (!range.ok()) return new client::RefusedWeights(range.status());
  return new Streamer(snapshot, bytes, range->begin, range->end);
}

}  // namespace rlhf::learner
