#include "rollout_worker/weight_subscriber.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "artifact/digest.h"
#include "client/cpp/channel.h"
#include "client/cpp/weights_stream.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "common/large_memory.h"
#include "common/log.h"
#include "common/shared_memory.h"
#include "common/status_util.h"
#include "model/divide.h"
#include "model/guard.h"
#include "rollout_worker/incoming_weights.h"

namespace rlhf::rollout {
namespace {

constexpr int kStreamAttempts = 3;  // of the learner, in a row that bring nothing
constexpr absl::Duration kAskAgain = absl::Milliseconds(20);
constexpr absl::Duration kLongestHold = absl::Seconds(60);  // of a learner's GPU memory

bool Matches(absl::Span<const uint8_t> bytes, const std::string& xxh3) {
  return artifact::Xxh3Hex(bytes.data(), bytes.size()) == xxh3;
}

// Cancels a call in which nothing moves for so long.
class StallGuard {
 public:
  StallGuard(grpc::ClientContext* context, absl::Duration patience)
      : context_(context),
        patience_(patience),
        deadline_(Clock::Real()->Now() + patience),
        thread_([this] { Watch(); }) {}
  ~StallGuard() {
    {
      absl::MutexLock lock(&mu_);
      over_ = true;
    }
    thread_.join();
  }
  void Moved() {
    absl::MutexLock lock(&mu_);
    deadline_ = Clock::Real()->Now() + patience_;
  }

 private:
  void Watch() {
    absl::MutexLock lock(&mu_);
    while (!mu_.AwaitWithTimeout(absl::Condition(&over_), deadline_ - Clock::Real()->Now())) {
      if (Clock::Real()->Now() < deadline_) continue;
      context_->TryCancel();
      return;
    }
  }

  grpc::ClientContext* const context_;
  const absl::Duration patience_;
  absl::Mutex mu_;
  bool over_ ABSL_GUARDED_BY(mu_) = false;
  absl::Duration deadline_ ABSL_GUARDED_BY(mu_);  // by Clock::Real
  std::thread thread_;
};

// One call, from where the stream stands on. OK when the source has ended it in good order, all sent or not. `relayed`
// may be null.
absl::Status ReceiveFrom(const std::shared_ptr<grpc::Channel>& source, const FetchedWeights& weights,
                         absl::Duration patience, IncomingWeights* incoming, RelayedWeights* relayed) {
  v1::StreamWeightsRequest request;
  request.set_job_id(weights.manifest.job_id());
  *request.mutable_version() = weights.manifest.version();
  request.set_offset(incoming->received());
  request.set_delta(weights.delta);
  const auto context = client::MakeContext(absl::Seconds(60));
  std::optional<StallGuard> guard;
  if (patience != absl::InfiniteDuration()) guard.emplace(context.get(), patience);
  client::WeightsReader reader(source, context.get(), request);
  grpc::ByteBuffer chunk;
  absl::Status taken;
  while (taken.ok() && reader.Read(&chunk)) {
    RLHF_FAILPOINT("rollout/receive_weights");
    if (guard.has_value()) guard->Moved();
    const uint64_t before = incoming->verified_end();
    taken = client::ReadChunk(
        &chunk, [&](uint64_t offset, absl::Span<const uint8_t> piece) { return incoming->Take(offset, piece); });
    if (relayed != nullptr && incoming->verified_end() > before) relayed->Verified(incoming->verified_end());
  }
  if (!taken.ok()) context->TryCancel();
  const absl::Status finished = FromGrpc(reader.Finish());
  return taken.ok() ? finished : taken;
}

}  // namespace

absl::StatusOr<FetchedWeights> WeightSubscriber::Fetch(const v1::PolicySource& source, const std::string& held) {
  if (source.addresses().empty()) {
    return absl::NotFoundError(
        absl::StrCat("no process is known to hold version ", source.version().step(), " of job ", source.job_id()));
  }
  const std::string& address = *source.addresses().rbegin();
  const std::string where = absl::StrCat("weights from ", address);
  RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> learner, channels_(address));
  FetchedWeights out;
  {
    v1::GetManifestRequest request;
    request.set_job_id(source.job_id());
    *request.mutable_version() = source.version();
    const auto context = client::MakeContext(absl::Seconds(10));
    const absl::Status got =
        FromGrpc(v1::WeightsService::NewStub(learner)->GetManifest(context.get(), request, &out.manifest));
    if (!got.ok()) return Annotate(got, where);
  }
  if (out.manifest.version().step() != source.version().step() ||
      out.manifest.version().lineage() != source.version().lineage()) {
    return absl::NotFoundError(absl::StrCat(where, ": asked for version ", source.version().step(), ", was offered ",
                                            out.manifest.version().step()));
  }
  const bool relays = options_.relay != nullptr && source.relay();  // from the host's memory
  if ((options_.device.is_cuda() || options_.take_shared) && out.manifest.has_device() &&
      out.manifest.device().host() == HostIdentity() && !relays) {
    const absl::Status taken = TakeOnDevice(learner, &out);
    if (taken.ok()) return out;
    spdlog::debug("version {} goes over the host's memory: {}", source.version().step(), taken.ToString());
  }
  out.delta = !held.empty() && out.manifest.has_delta() && out.manifest.delta().base() == held;
  if (out.delta) {
    const absl::Status received = Receive(source, learner, &out);
    if (received.ok()) return out;
    spdlog::warn("the delta of version {} cannot be used, fetching it whole: {}", source.version().step(),
                 received.ToString());
    out.delta = false;
  }
  RLHF_RETURN_IF_ERROR(Receive(source, learner, &out));
  return out;
}

absl::Status WeightSubscriber::TakeOnDevice(const std::shared_ptr<grpc::Channel>& learner, FetchedWeights* out) const {
  const v1::DeviceWeights& shared = out->manifest.device();
  v1::StreamWeightsRequest request;
  request.set_job_id(out->manifest.job_id());
  *request.mutable_version() = out->manifest.version();
  request.set_device_generation(shared.generation());
  // The memory is held as long as this call: what the learner gave back under the copy would be anything's.
  const auto context = client::MakeContext(kLongestHold);
  client::WeightsReader hold(learner, context.get(), request);
  grpc::ByteBuffer held;
  if (!hold.Read(&held)) {
    const absl::Status refused = FromGrpc(hold.Finish());
    return refused.ok() ? absl::UnavailableError("weights in GPU memory: the learner does not hold them") : refused;
  }
  const absl::Status taken = model::Guard("weights in GPU memory", [&]() -> absl::Status {
    RLHF_ASSIGN_OR_RETURN(const torch::Tensor bytes, (options_.take_shared ? options_.take_shared : model::TakeShared)(
                                                         model::DeviceShareName{shared.handle(), shared.generation()},
                                                         out->manifest.total_size(), options_.device));
    out->bytes = {bytes.const_data_ptr<uint8_t>(), static_cast<size_t>(bytes.numel())};
    out->owner = std::make_shared<const torch::Tensor>(bytes);
    out->device = options_.device;
    out->mapped = true;
    return absl::OkStatus();
  });
  context->TryCancel();
  const absl::Status ended = FromGrpc(hold.Finish());
  // Not by us: the memory was held for less than the copy took. (An older learner's stream may be over.)
  if (taken.ok() && !ended.ok() && !absl::IsCancelled(ended)) {
    FetchedWeights none;
    none.manifest = std::move(out->manifest);
    *out = std::move(none);
    return Annotate(ended, "weights in GPU memory: the learner let go of them");
  }
  return taken;
}

absl::Status WeightSubscriber::Map(FetchedWeights* out) const {
  const v1::SharedWeights& shared = out->manifest.shared();
  RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedMemory> memory,
                        MappedMemory::Open(options_.shm_dir, shared.name(), out->manifest.total_size()));
  RLHF_ASSIGN_OR_RETURN(const std::vector<WeightPart> parts, PartsOf(out->manifest, /*delta=*/false, memory->bytes()));
  std::vector<char> matches(parts.size());  // not bool: threads write to neighbours
  model::Divide(static_cast<int64_t>(parts.size()), [&](int64_t i) {
    const WeightPart& part = parts[static_cast<size_t>(i)];
    matches[static_cast<size_t>(i)] = Matches(part.bytes, out->manifest.tensors(static_cast<int>(i)).xxh3()) ? 1 : 0;
  });
  const auto damaged = std::find(matches.begin(), matches.end(), 0);
  if (damaged != matches.end()) {
    return absl::DataLossError(absl::StrCat("shared memory ", shared.name(), ": tensor ",
                                            out->manifest.tensors(static_cast<int>(damaged - matches.begin())).name(),
                                            " does not match its digest"));
  }
  out->bytes = memory->bytes();
  out->owner = memory;
  return absl::OkStatus();
}

std::shared_ptr<uint8_t[]> WeightSubscriber::Memory(uint64_t size, bool delta) {
  std::shared_ptr<uint8_t[]> kept;
  absl::MutexLock lock(&mu_);
  kept.swap(memory_);
  if (delta) return AllocateLarge(size);
  if (kept.use_count() != 1 || memory_size_ != size) {
    kept.reset();  // before there is a second one
    kept = AllocateLarge(size);
  } else {
    std::atomic_thread_fence(std::memory_order_acquire);  // with whoever read it last and let go
  }
  memory_ = kept;
  memory_size_ = size;
  return kept;
}

absl::Status WeightSubscriber::Receive(const v1::PolicySource& source, const std::shared_ptr<grpc::Channel>& learner,
                                       FetchedWeights* out) {
  // Without a digest of the stream a delta can be judged by its effect only, and not be blamed on a source.
  const bool judged = !out->delta || !out->manifest.delta().xxh3().empty();
  if (options_.relay != nullptr) options_.relay->Drop();
  out->from_workers = 0;
  if (!out->delta && !options_.shm_dir.empty() && out->manifest.has_shared() &&
      out->manifest.shared().host() == HostIdentity()) {
    const absl::Status mapped = Map(out);
    out->mapped = mapped.ok();
    out->not_mapped = !mapped.ok();
    if (mapped.ok()) {
      {
        absl::MutexLock lock(&mu_);
        memory_.reset();
      }
      if (options_.relay != nullptr && source.relay())
        options_.relay->Begin(out->manifest, false, out->bytes, out->owner)->Verified(out->bytes.size());
      return absl::OkStatus();
    }
    spdlog::debug("version {} is received, not mapped: {}", out->manifest.version().step(), mapped.ToString());
  }
  out->bytes = {};
  out->owner.reset();  // of what was received before and could not be used
  const uint64_t size = out->delta ? out->manifest.delta().total_size() : out->manifest.total_size();
  RLHF_ASSIGN_OR_RETURN(IncomingWeights incoming, IncomingWeights::Begin(Memory(size, out->delta), size, out));
  std::shared_ptr<RelayedWeights> relayed;
  if (options_.relay != nullptr && source.relay() && judged) {
    relayed = options_.relay->Begin(out->manifest, out->delta, out->bytes, out->owner);
    relayed->Verified(incoming.verified_end());
  }
  const absl::Duration patient_until = Clock::Real()->Now() + options_.patience;
  for (int i = 0; i + 1 < source.addresses_size() && judged && !incoming.complete();) {
    const std::string& address = source.addresses(i);
    const uint64_t before = incoming.received();
    const auto worker = channels_(address);
    const absl::Status status =
        worker.ok() ? ReceiveFrom(*worker, *out, options_.stall, &incoming, relayed.get()) : worker.status();
    // No source is to be blamed for, or to rest on, what another one sent of a tensor.
    incoming.ForgetUnverified();
    out->from_workers += incoming.received() - before;
    // It was sent for the version before us, and has perhaps not heard of its manifest yet.
    if (absl::IsNotFound(status) && Clock::Real()->Now() < patient_until) {
      absl::SleepFor(kAskAgain);
      continue;
    }
    if (!incoming.complete())
      spdlog::warn("weights from {}: {} of {} bytes, then: {}; asking the next source", address, incoming.received(),
                   incoming.size(), status.ToString());
    ++i;
  }
  absl::Status status;
  for (int attempt = 0; attempt < kStreamAttempts && !incoming.complete(); ++attempt) {
    const uint64_t before = incoming.received();
    status = ReceiveFrom(learner, *out, absl::InfiniteDuration(), &incoming, relayed.get());
    if (absl::IsNotFound(status)) break;
    if (incoming.received() > before) attempt = -1;  // a large version over a slow link takes more than a call
  }
  if (incoming.complete()) return absl::OkStatus();
  if (status.ok()) status = absl::DataLossError("the stream ended early");
  status = Annotate(status, absl::StrCat("weights from ", *source.addresses().rbegin(), ": ", incoming.received(),
                                         " of ", incoming.size(), " bytes received"));
  if (relayed != nullptr) relayed->End(absl::UnavailableError("this worker could not receive the version"));
  return status;
}

}  // namespace rlhf::rollout
