#include "rollout_worker/policy_loader.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/unsuited.h"
#include "model/device.h"
#include "model/guard.h"
#include "model/weights_io.h"

namespace rlhf::rollout {
namespace {

bool SameVersion(const v1::PolicySource& a, const v1::PolicySource& b) {
  return a.job_id() == b.job_id() && a.version().step() == b.version().step() &&
         a.version().lineage() == b.version().lineage() && a.version().digest() == b.version().digest();
}

// Room that something else on the machine had may be there at the next try.
constexpr int kLoadTries = 5;

}  // namespace

std::string PolicyLoader::MadeFrom(const v1::PolicySource& source) {
  // Adapters start from zero, and a fresh base from none: jobs share a base only without adapters.
  return absl::StrCat(
      source.artifact(), source.deterministic() ? "\ndeterministic" : "",
      source.has_lora() ? absl::StrCat("\n", source.job_id(), "\n", source.lora().SerializeAsString()) : "");
}

bool PolicyLoader::CanSwitchInPlace(const v1::PolicySource& source) const {
  if (Loads(source)) return false;
  return engine_->idle() || (job_id_ == source.job_id() && (!source.deterministic() || Serves(source)));
}

bool PolicyLoader::Loads(const v1::PolicySource& source) const {
  if (Serves(source)) return false;
  // Going back to version 0 after updates in place needs the artifact's weights again.
  return !engine_ || made_from_ != MadeFrom(source) || source.version().step() == 0;
}

bool PolicyLoader::Serves(const v1::PolicySource& source) const {
  if (!engine_ || made_from_ != MadeFrom(source)) return false;
  const v1::PolicyVersion& have = engine_->version();
  // Version 0 is the artifact itself: the same for every job.
  if (have.step() == 0 && source.version().step() == 0) return true;
  return job_id_ == source.job_id() && have.step() == source.version().step() &&
         have.lineage() == source.version().lineage() && have.digest() == source.version().digest();
}

absl::Status PolicyLoader::Load(const v1::PolicySource& source) {
  if (source.deterministic() && (options_.int8 || options_.dtype != torch::kFloat32 || !options_.device.is_cpu())) {
    return UnsuitedError(absl::StrCat(
        "a deterministic job needs the sampler's log-probabilities to be the learner's to the bit; this rollout worker "
        "computes with ",
        options_.int8                       ? "int8 weights"
        : options_.dtype != torch::kFloat32 ? "another precision"
                                            : "a GPU",
        ": start this worker with --device cpu --precision float32"));
  }
  RLHF_ASSIGN_OR_RETURN(const std::string dir, artifacts_->Fetch(source.artifact()));
  absl::Status loaded = LoadFrom(dir, source);
  std::error_code error;
  if (absl::IsNotFound(loaded) && std::filesystem::exists(dir, error)) {
    // The artifact is whole: what it lacks no try will find.
    return absl::InvalidArgumentError(
        absl::StrCat("expected a model with config.json, tokenizer.json and its weights in ", source.artifact(), "; ",
                     absl::StrReplaceAll(loaded.message(), {{dir + "/", ""}, {dir + ": ", ""}})));
  }
  // No room, or LibTorch threw.
  if (!absl::IsResourceExhausted(loaded) && !absl::IsInternal(loaded)) {
    if (loaded.ok()) failed_loads_.erase(made_from_);
    return loaded;
  }
  const int tries = ++failed_loads_[MadeFrom(source)];
  if (tries < kLoadTries) return loaded;
  return UnsuitedError(absl::StrCat(
      "the model could not be loaded ", tries,
      " times in a row; give this rollout worker more memory, or use others that have: ", loaded.message()));
}

absl::Status PolicyLoader::LoadFrom(const std::string& dir, const v1::PolicySource& source) {
  RLHF_ASSIGN_OR_RETURN(std::unique_ptr<artifact::Tokenizer> tokenizer, artifact::Tokenizer::Load(dir));
  model::LoadOptions load;
  load.dtype = options_.dtype;
  load.device = options_.device;
  load.int8 = options_.int8;
  load.join_projections = true;
  // The one before goes first: a cache is as large as what is free, and two models at once need not fit.
  engine_.reset();
  model::GiveBackUnused(options_.device);
  RLHF_ASSIGN_OR_RETURN(std::unique_ptr<model::Transformer> model, model::LoadModel(dir, load));
  RLHF_RETURN_IF_ERROR(model->SetDeterministic(source.deterministic()));
  if (source.has_lora()) {
    model::LoraConfig lora;
    lora.rank = source.lora().rank();
    lora.alpha = source.lora().has_alpha() ? source.lora().alpha() : source.lora().rank();
    lora.target_modules.assign(source.lora().target_modules().begin(), source.lora().target_modules().end());
    // B is zero, so A counts for nothing until both arrive from the learner.
    RLHF_RETURN_IF_ERROR(model->AttachLora(lora, 0));
  }
  v1::PolicyVersion initial = source.version();
  initial.set_step(0);
  initial.clear_digest();
  // The cache is as large as the slots and the context that config.json says.
  RLHF_RETURN_IF_ERROR(model::Guard("making a cache for the model's sequences", [&]() -> absl::Status {
    engine_ = std::make_unique<Engine>(std::move(model), std::move(tokenizer), initial, options_.engine);
    return absl::OkStatus();
  }));
  made_from_ = MadeFrom(source);
  job_id_ = source.job_id();
  ++loads_;
  return absl::OkStatus();
}

PolicyLoader::Counters PolicyLoader::counters() const {
  absl::MutexLock lock(&mu_);
  return {.loads = loads_,
          .bytes = bytes_,
          .bytes_from_workers = bytes_from_workers_,
          .bytes_mapped = bytes_mapped_,
          .not_mapped = not_mapped_};
}

absl::StatusOr<PolicyLoader::Timed> PolicyLoader::Fetch(const v1::PolicySource& source, const std::string& held) {
  Timed fetched;
  fetched.asked = Clock::Real()->Now();
  // What int8 was made from is not kept, so there is nothing to change elements of.
  RLHF_ASSIGN_OR_RETURN(fetched.weights, subscriber_->Fetch(source, options_.int8 ? "" : held));
  fetched.arrived = Clock::Real()->Now();
  absl::MutexLock lock(&mu_);
  bytes_ += static_cast<int64_t>(fetched.weights.bytes.size());
  bytes_from_workers_ += static_cast<int64_t>(fetched.weights.from_workers);
  if (fetched.weights.mapped) bytes_mapped_ += static_cast<int64_t>(fetched.weights.bytes.size());
  if (fetched.weights.not_mapped) ++not_mapped_;
  return fetched;
}

void PolicyLoader::Prefetch(const v1::PolicySource& source) {
  if (source.version().step() == 0) return;
  std::string held;
  {
    absl::MutexLock lock(&mu_);
    if (SameVersion(served_, source) || (weights_ && SameVersion(ahead_, source)) ||
        (switching_to_ && SameVersion(*switching_to_, source)))
      return;
    if (served_.job_id() == source.job_id()) held = served_.version().digest();
    ahead_ = source;
    weights_.reset();
    arriving_ = true;
  }
  absl::StatusOr<Timed> weights = Fetch(source, held);
  absl::MutexLock lock(&mu_);
  weights_ = std::move(weights);
  arriving_ = false;
}

absl::StatusOr<PolicyLoader::Timed> PolicyLoader::TakeWeights(const v1::PolicySource& source) {
  const std::string& held = engine_->version().digest();
  {
    absl::MutexLock lock(&mu_);
    if (SameVersion(ahead_, source)) {
      // Or another one is on its way by now, which nobody needs yet.
      const auto arrived = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return !arriving_ || !SameVersion(ahead_, source);
      };
      mu_.Await(absl::Condition(&arrived));
    }
    if (weights_ && SameVersion(ahead_, source)) {
      absl::StatusOr<Timed> weights = *std::exchange(weights_, std::nullopt);
      // A delta from another version than the engine has is of no use.
      if (!weights.ok() || !weights->weights.delta || weights->weights.manifest.delta().base() == held) return weights;
    }
  }
  return Fetch(source, held);
}

absl::StatusOr<absl::Duration> PolicyLoader::Update(const v1::PolicySource& source, absl::Duration start,
                                                    Change* change) {
  RLHF_ASSIGN_OR_RETURN(Timed fetched, TakeWeights(source));
  absl::Duration ready = Clock::Real()->Now();
  change->fetch = fetched.arrived - fetched.asked;
  if (fetched.asked < start) change->wait = ready - fetched.arrived;
  start = std::min(start, fetched.asked);
  const bool delta = fetched.weights.delta;
  absl::Status applied = ApplyWeights(fetched.weights, engine_->model());
  if (delta && absl::IsDataLoss(applied)) {
    spdlog::warn("{}", applied.ToString());
    RLHF_ASSIGN_OR_RETURN(Timed whole, Fetch(source, /*held=*/""));
    ready = Clock::Real()->Now();
    *change->fetch += whole.arrived - whole.asked;
    applied = ApplyWeights(whole.weights, engine_->model());
  }
  RLHF_RETURN_IF_ERROR(applied);
  change->apply = Clock::Real()->Now() - ready;
  return start;
}

absl::Status PolicyLoader::Switch(const v1::PolicySource& source) {
  const LogScope scope({.job_id = source.job_id(), .step = source.version().step()});
  if (Serves(source)) {
    if (job_id_ != source.job_id()) spdlog::info("serving job {} with the weights at hand", source.job_id());
    job_id_ = source.job_id();
    engine_->Rename(source.version());
    return absl::OkStatus();
  }
  {
    absl::MutexLock lock(&mu_);
    switching_to_ = source;
  }
  const auto switched = absl::MakeCleanup([this] {
    absl::MutexLock lock(&mu_);
    switching_to_.reset();
  });
  absl::Duration start = Clock::Real()->Now();
  Change change;
  if (Loads(source)) {
    RLHF_RETURN_IF_ERROR(Load(source));
    change.load = Clock::Real()->Now() - start;
  }
  if (source.version().step() > 0) {
    RLHF_ASSIGN_OR_RETURN(start, Update(source, start, &change));
  }
  engine_->SetVersion(source.version());
  job_id_ = source.job_id();
  {
    absl::MutexLock lock(&mu_);
    served_ = source;
  }
  change.total = Clock::Real()->Now() - start;
  spdlog::info("serving job {} version {} after {:.3f} s", source.job_id(), source.version().step(),
               absl::ToDoubleSeconds(change.total));
  changes_.push_back(change);
  return absl::OkStatus();
}

}  // namespace rlhf::rollout
