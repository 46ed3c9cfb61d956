#include "learner/trainable.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/status_util.h"
#include "model/kernels/cpu_kernels.h"
#include "model/lora.h"

namespace rlhf::learner {
namespace {

std::vector<torch::Tensor> LeavesOf(const model::Transformer& model) {
  std::vector<torch::Tensor> leaves;
  for (const auto& [name, parameter] : model.trained_parameters()) {
    torch::Tensor leaf = parameter;
    leaf.requires_grad_(true);
    leaves.push_back(leaf);
  }
  return leaves;
}

absl::StatusOr<size_t> MostOfRanks(size_t mine, torch::Device device, Collective* collective) {
  std::vector<double> counts(static_cast<size_t>(collective->world_size()), 0.0);
  counts[static_cast<size_t>(collective->rank())] = static_cast<double>(mine);
  RLHF_RETURN_IF_ERROR(SumOverRanks(&counts, device, collective));
  return static_cast<size_t>(*std::max_element(counts.begin(), counts.end()));
}

}  // namespace

Trainable::Trainable(std::unique_ptr<model::Transformer> model, const v1::OptimizerSpec& spec, int64_t total_updates,
                     bool shard, Layers layers)
    : shard_(shard),
      layers_(layers),
      model_(std::move(model)),
      leaves_(LeavesOf(*model_)),
      layout_(BucketsOf(leaves_, BucketSizes::For(model_->device()),
                        layers == Layers::kWhole ? std::vector<int64_t>() : model_->ParameterLayers())),
      buckets_(leaves_, layout_),
      optimizer_(shard ? AdamW(model_->trained_parameters(), layout_, spec, total_updates)
                       : AdamW(model_->trained_parameters(), spec, total_updates)) {
  if (layers == Layers::kWhole) return;
  TORCH_CHECK(shard && model_->gradient_checkpointing() && model_->lora() == nullptr,
              "layers are divided where the optimizer's state is, with gradient checkpointing and without adapters");
  buckets_.StartOnlyWhenTold();
  weights_ = std::make_unique<DividedWeights>(model_.get(), layout_, &optimizer_, &buckets_);
}

void Trainable::TakeShareOf(const Collective& collective) {
  const Share share{collective.rank(), collective.world_size()};
  optimizer_.TakeShare(share);
  buckets_.SetShare(share);
}

void Trainable::BeginStep(Collective* collective) {
  if (shard_ && as_new_) TakeShareOf(*collective);
  as_new_ = false;
  if (weights_) {
    weights_->Divide();
    weights_->Begin(collective);
  }
  optimizer_.TakeSnapshot();
}

absl::Status Trainable::EndStep(Collective* collective) {
  return layers_ == Layers::kDividedInSteps ? weights_->MakeWhole(collective) : absl::OkStatus();
}

absl::Status Trainable::CheckShare(const Collective& collective) const {
  if (shard_ && !(optimizer_.share() == Share{collective.rank(), collective.world_size()})) {
    return absl::InternalError(absl::StrCat("expected share ", collective.rank(), " of ", collective.world_size(),
                                            " of the optimizer's state, found share ", optimizer_.share().index, " of ",
                                            optimizer_.share().count));
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Trainable::Passes(size_t mine, Collective* collective) const {
  RLHF_RETURN_IF_ERROR(CheckShare(*collective));
  return weights_ ? MostOfRanks(mine, model_->device(), collective) : absl::StatusOr<size_t>(mine);
}

void Trainable::PassForward() {
  if (weights_) weights_->PassForward();
}

void Trainable::MakeRoom() {
  if (layers_ == Layers::kDivided) weights_->Divide();
  if (layers_ == Layers::kDividedInSteps) weights_->Allocate();
}

void Trainable::ExpectState(const Collective* collective) {
  if (shard_ && collective != nullptr) {
    MakeRoom();
    TakeShareOf(*collective);
  }
  as_new_ = false;
}

absl::Status Trainable::Reshare(const std::vector<int>& owners, Collective* collective) {
  MakeRoom();
  RLHF_RETURN_IF_ERROR(optimizer_.Reshare(owners, collective));
  buckets_.SetShare(optimizer_.share());
  as_new_ = false;
  return absl::OkStatus();
}

absl::StatusOr<double> Trainable::Accumulate(const std::vector<LossTerm>& terms, Collective* collective) {
  RLHF_RETURN_IF_ERROR(CheckShare(*collective));
  buckets_.Begin();
  RLHF_FAILPOINT("learner/before_allreduce");
  size_t rounds = std::max<size_t>(terms.size(), 1);
  if (buckets_.reduces_each()) {
    RLHF_ASSIGN_OR_RETURN(rounds, MostOfRanks(rounds, model_->device(), collective));
  }
  double total = 0;
  for (size_t i = 0; i < rounds; ++i) {
    // A minibatch may take long: a rank that was told to leave does so between two micro-batches.
    if (collective->aborted()) return absl::UnavailableError("collective: the group was given up during a minibatch");
    if (i >= terms.size()) {
      RLHF_RETURN_IF_ERROR(buckets_.ReduceOnly(collective, [this] {
        if (!weights_) return;
        weights_->PassForward();
        weights_->PassBackward();
      }));
      RLHF_RETURN_IF_ERROR(weights_status());
      continue;
    }
    torch::Tensor loss = terms[i]();
    RLHF_RETURN_IF_ERROR(weights_status());
    if (!RLHF_FAILPOINT_OK("learner/nan_loss")) loss = loss * std::numeric_limits<double>::quiet_NaN();
    total += loss.item<double>();
    if (!RLHF_FAILPOINT_OK("learner/inf_gradient") && !buckets_.gradients().empty())
      buckets_.gradients().front().fill_(std::numeric_limits<double>::infinity());
    RLHF_RETURN_IF_ERROR(buckets_.Backward(loss, i + 1 == terms.size(), collective));
    RLHF_RETURN_IF_ERROR(weights_status());
  }
  return total;
}

absl::StatusOr<double> Trainable::FinishSums(Collective* collective) {
  RLHF_FAILPOINT("learner/inside_allreduce");
  RLHF_RETURN_IF_ERROR(buckets_.Wait());
  if (!shard_) return AdamW::Norm(buckets_.gradients());
  std::vector<double> squares{AdamW::SquaredNorm(buckets_.gradients())};
  RLHF_RETURN_IF_ERROR(SumOverRanks(&squares, model_->device(), collective));
  return std::sqrt(squares[0]);
}

absl::Status Trainable::Step(double norm, Collective* collective) {
  optimizer_.Step(buckets_.gradients(), norm);
  return optimizer_.GatherParameters(collective);
}

void Trainable::AppendState(const std::string& prefix, State* out) const {
  const auto& parameters = model_->trained_parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const torch::Tensor& parameter = parameters[i].second;
    out->push_back({absl::StrCat(prefix, "/", parameters[i].first), parameter.scalar_type(), parameter.sizes().vec(),
                    optimizer_.ParameterPieces(i)});
  }
  for (StateTensor& tensor : optimizer_.state()) {
    tensor.name = absl::StrCat(prefix, "_optimizer/", tensor.name);
    out->push_back(std::move(tensor));
  }
}

absl::Status Trainable::VisitState(const std::string& prefix, Collective* collective,
                                   const StateVisitor& visitor) const {
  absl::Status visited =
      optimizer_.VisitParameters(collective, [&](const std::string& name, const torch::Tensor& whole) {
        return visitor(absl::StrCat(prefix, "/", name), whole);
      });
  visited.Update(optimizer_.VisitState(collective, [&](const std::string& name, const torch::Tensor& whole) {
    return visitor(absl::StrCat(prefix, "_optimizer/", name), whole);
  }));
  return visited;
}

absl::Status SetUp(const v1::JobSpec& spec, const v1::LoraSpec* lora, model::Transformer* model) {
  RLHF_RETURN_IF_ERROR(model->SetDeterministic(spec.deterministic()));
  // A job has one kind; what it has not reads as false.
  model->SetGradientCheckpointing(spec.sft().gradient_checkpointing() || spec.reward_model().gradient_checkpointing() ||
                                  spec.ppo().gradient_checkpointing());
  if (lora == nullptr || lora->rank() == 0) return absl::OkStatus();
  model::LoraConfig config;
  config.rank = lora->rank();
  config.alpha = lora->has_alpha() ? lora->alpha() : lora->rank();
  config.target_modules.assign(lora->target_modules().begin(), lora->target_modules().end());
  return model->AttachLora(config, spec.seed());
}

absl::Status SaveFinished(const model::Transformer& model, const std::string& out_dir, const std::string& base_dir,
                          const std::string& base_name) {
  RLHF_RETURN_IF_ERROR(model::SaveModel(model, out_dir, base_dir));
  return model.lora() == nullptr ? absl::OkStatus() : model::SaveAdapter(model, out_dir + "/adapter", base_name);
}

std::string NumericsOf(const v1::JobSpec& spec, int world_size) {
  if (!spec.deterministic()) return "";
  return absl::StrCat("kernels=fixed-order-3 isa=", model::kernels::InstructionSet(),
                      " threads=", torch::get_num_threads(), " ranks=", world_size);
}

torch::Dtype DtypeOf(v1::Precision precision) {
  return precision == v1::BFLOAT16 ? torch::kBFloat16 : torch::kFloat32;
}

absl::Status SyncState(const std::vector<std::pair<std::string, Trainable*>>& parts, std::vector<double>* numbers,
                       torch::Device device, const std::vector<int>& owners, Collective* collective) {
  const torch::NoGradGuard no_grad;
  const int root = owners.front();
  for (const auto& [prefix, part] : parts) {
    if (part->shards()) {
      RLHF_RETURN_IF_ERROR(part->Reshare(owners, collective));
      continue;
    }
    State state;
    part->AppendState(prefix, &state);
    for (const StateTensor& tensor : state)
      RLHF_RETURN_IF_ERROR(collective->Broadcast(tensor.pieces.front().live, root));
  }
  torch::Tensor packed = torch::tensor(*numbers, torch::kFloat64).to(device);
  RLHF_RETURN_IF_ERROR(collective->Broadcast(packed, root));
  packed = packed.to(torch::kCPU);
  for (size_t i = 0; i < numbers->size(); ++i) (*numbers)[i] = packed.data_ptr<double>()[i];
  return absl::OkStatus();
}

absl::Status SumOverRanks(std::vector<double>* numbers, torch::Device device, Collective* collective) {
  torch::Tensor packed = torch::tensor(*numbers, torch::kFloat64).to(device);
  RLHF_RETURN_IF_ERROR(collective->AllReduceSum(packed));
  packed = packed.to(torch::kCPU);
  for (size_t i = 0; i < numbers->size(); ++i) (*numbers)[i] = packed.data_ptr<double>()[i];
  return absl::OkStatus();
}

}  // namespace rlhf::learner
