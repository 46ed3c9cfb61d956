// Immutable snapshots of committed weights, served to rollout workers.
//
// Thread-safe. A snapshot is staged before its step is committed and dropped when the commit is refused; nobody learns
// of it in between, because workers ask only for versions that the coordinator names. The newest kKeep snapshots are
// held, of whatever job: the committed one, and the one that is being committed or that workers may still be asked to
// fetch. A stream that has begun keeps its own until it ends. With a folder for shared memory the bytes are in files
// there, as far as there is room, so that workers of the same host need not receive them; a file is removed with its
// snapshot. The newest one may be shared in GPU memory too.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "client/cpp/weights_stream.h"
#include "model/device_share.h"
#include "model/transformer.h"
#include "rlhf/v1/weights_service.grpc.pb.h"

namespace rlhf::learner {

struct WeightSnapshot {
  v1::WeightsManifest manifest;
  absl::Span<const uint8_t> bytes;
  std::shared_ptr<const void> owner;  // of the bytes
  std::vector<uint8_t> delta;         // from the version staged before; empty when the manifest has none
};

class WeightPublisher : public client::WeightsServer {
 public:
  // shm_dir: where whole versions are shared with processes of this host and user; empty: nowhere. on_device: the
  // newest is shared in the memory of the model's GPU as well, in a copy beside the model, which `allocate` makes.
  explicit WeightPublisher(std::string shm_dir = "", bool on_device = false,
                           model::AllocateShareable allocate = model::AllocateOnDevice)
      : shm_dir_(std::move(shm_dir)), on_device_(on_device), device_share_(std::move(allocate)) {}

  // Copies the trained parameters, which are the adapters in a LoRA job (one copy on the host), computes every tensor's
  // digest, and what changed since the version staged before when that is at most half of the bytes.
  absl::Status Stage(const std::string& job_id, const v1::PolicyVersion& version, const model::Transformer& model);
  // The commit answered with this version (its lineage may differ from the staged one); equal step and digest.
  void Confirm(const std::string& job_id, const v1::PolicyVersion& version);
  void Drop(const std::string& job_id, int64_t step);
  void DropJob(const std::string& job_id);

  grpc::ServerUnaryReactor* GetManifest(grpc::CallbackServerContext* context, const v1::GetManifestRequest* request,
                                        v1::WeightsManifest* response) override;
  client::WeightsWriter* Stream(const v1::StreamWeightsRequest& request) override;

 private:
  static constexpr size_t kKeep = 2;
  // The snapshot's bytes, not filled yet: shared, and in its manifest, or this process's own.
  absl::Span<uint8_t> Allocate(uint64_t size, WeightSnapshot* snapshot) const;
  // Into its manifest, where that can be.
  void ShareOnDevice(const model::Transformer& model, WeightSnapshot* snapshot);
  std::shared_ptr<const WeightSnapshot> Find(const std::string& job_id, const v1::PolicyVersion& version) const;
  std::shared_ptr<const WeightSnapshot> Newest(const std::string& job_id) const;

  const std::string shm_dir_;
  const bool on_device_;
  model::DeviceShare device_share_;
  mutable absl::Mutex mu_;
  std::deque<std::shared_ptr<const WeightSnapshot>> snapshots_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::learner
