#include "model/weights_io.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <set>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/digest.h"
#include "artifact/safetensors.h"
#include "common/durable_file.h"
#include "common/large_memory.h"
#include "common/status_util.h"
#include "model/device.h"
#include "model/divide.h"
#include "model/families/family.h"
#include "model/guard.h"
#include "model/tensor_types.h"

namespace rlhf::model {
namespace {

namespace fs = std::filesystem;

// Where bytes of a file go.
struct Copy {
  absl::Span<uint8_t> to;
  artifact::ModelWeights::Entry from;
  uint64_t offset = 0;  // of the first byte in its tensor
};

// Of a contiguous tensor on the host.
absl::Span<uint8_t> BytesOf(const torch::Tensor& tensor) {
  return {static_cast<uint8_t*>(tensor.data_ptr()), tensor.nbytes()};
}

// By all threads of LibTorch, for new memory has to be cleared by the kernel first, which takes as long as the copy.
absl::Status ReadAll(std::vector<Copy> copies) {
  constexpr size_t kHuge = size_t{2} << 20, kPiece = 4 * kHuge, kGap = size_t{64} << 10;
  std::sort(copies.begin(), copies.end(), [](const Copy& a, const Copy& b) { return a.to.begin() < b.to.begin(); });
  // Tensors lie side by side, but for what the allocator writes between them; huge pages are for several of them.
  for (size_t first = 0; first < copies.size();) {
    size_t last = first;
    while (last + 1 < copies.size() && copies[last + 1].to.begin() <= copies[last].to.end() + kGap) ++last;
    AdviseHugePages(copies[first].to.begin(), copies[last].to.end());
    first = last + 1;
  }
  std::vector<Copy> pieces;  // each huge page in one of them
  for (Copy copy : copies) {
    while (!copy.to.empty()) {
      const size_t size = std::min(copy.to.size(), kPiece - reinterpret_cast<uintptr_t>(copy.to.data()) % kHuge);
      pieces.push_back({copy.to.subspan(0, size), copy.from, copy.offset});
      copy.to.remove_prefix(size);
      copy.offset += size;
    }
  }
  std::vector<absl::Status> read(pieces.size());
  std::atomic<bool> failed = false;  // a volume that is gone takes its time for every piece
  Divide(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    if (failed) return;
    const Copy& piece = pieces[static_cast<size_t>(i)];
    absl::Status& status = read[static_cast<size_t>(i)];
    status = piece.from.file->Read(*piece.from.info, piece.offset, piece.to);
    if (!status.ok()) failed = true;
  });
  for (absl::Status& status : read) RLHF_RETURN_IF_ERROR(std::move(status));
  return absl::OkStatus();
}

std::string ShapeText(c10::IntArrayRef shape) {
  return absl::StrCat("[", absl::StrJoin(shape.vec(), ", "), "]");
}

// Whether two tensors are stored with the same bytes.
absl::StatusOr<bool> Same(const artifact::ModelWeights::Entry& a, const artifact::ModelWeights::Entry& b) {
  if (a.info->dtype != b.info->dtype || a.info->shape != b.info->shape) return false;
  constexpr uint64_t kPiece = 8 << 20;
  std::vector<uint8_t> left(kPiece), right(kPiece);
  const uint64_t size = a.info->end - a.info->begin;
  for (uint64_t at = 0; at < size; at += kPiece) {
    const auto count = static_cast<size_t>(std::min(kPiece, size - at));
    RLHF_RETURN_IF_ERROR(a.file->Read(*a.info, at, absl::MakeSpan(left.data(), count)));
    RLHF_RETURN_IF_ERROR(b.file->Read(*b.info, at, absl::MakeSpan(right.data(), count)));
    if (!std::equal(left.begin(), left.begin() + static_cast<ptrdiff_t>(count), right.begin())) return false;
  }
  return true;
}

// transformers does not tie a head to an embedding that is stored with other numbers, whatever config.json says: loaded
// tied, it would be another model.
absl::Status CheckTied(const std::string& dir, const artifact::ModelWeights& weights, const FamilyDescription& family) {
  auto embedding = weights.tensors.find(family.token_embedding);
  if (embedding == weights.tensors.end())
    embedding = weights.tensors.find(family.token_embedding.substr(family.optional_prefix.size()));
  for (const char* name : {"lm_head.weight", "embed_out.weight"}) {
    const auto head = weights.tensors.find(name);
    if (head == weights.tensors.end() || embedding == weights.tensors.end()) continue;
    RLHF_ASSIGN_OR_RETURN(const bool same, Same(head->second, embedding->second));
    if (same) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        dir, ": config.json ties the head to ", embedding->first, ", but the files hold a ", name,
        " with other values; set tie_word_embeddings to false if the head is the model's, or remove it from the file"));
  }
  return absl::OkStatus();
}

// Fills the model from the files; says what is missing, extra or misshaped, all at once.
absl::Status Fill(const std::string& dir, const artifact::ModelWeights& weights, const FamilyDescription& family,
                  const LoadOptions& options, Transformer* model) {
  const torch::NoGradGuard no_grad;
  std::vector<std::string> missing, misshaped, extra;
  std::set<std::string> used;
  std::vector<Copy> copies;
  for (const auto& [name, parameter] : model->named_parameters()) {
    auto entry = weights.tensors.find(name);
    if (entry == weights.tensors.end() && !family.optional_prefix.empty() &&
        absl::StartsWith(name, family.optional_prefix)) {
      entry = weights.tensors.find(name.substr(family.optional_prefix.size()));
    }
    // GPT-NeoX's head has two names, by transformers' version.
    if (entry == weights.tensors.end() && name == family.lm_head) entry = weights.tensors.find("lm_head.weight");
    const bool other_size = entry != weights.tensors.end() && options.scalar_outputs > 0 &&
                            parameter.sizes() != c10::IntArrayRef(entry->second.info->shape);
    if (entry == weights.tensors.end() || (other_size && name == family.scalar_head)) {
      if (options.init_missing_scalar_head && name == family.scalar_head) {
        torch::Tensor values = torch::empty(parameter.sizes(), torch::kFloat32);
        auto generator = at::detail::createCPUGenerator(options.head_seed);
        values.normal_(0, 1.0 / std::sqrt(static_cast<double>(model->config().hidden_size) + 1.0), generator);
        torch::Tensor target = parameter;
        target.copy_(values);
        continue;
      }
      missing.push_back(name);
      continue;
    }
    used.insert(entry->first);
    const artifact::TensorInfo& info = *entry->second.info;
    if (parameter.sizes() != c10::IntArrayRef(info.shape)) {
      misshaped.push_back(
          absl::StrCat(name, " (expected ", ShapeText(parameter.sizes()), ", found ", ShapeText(info.shape), ")"));
      continue;
    }
    if (!options.int8 && parameter.is_cpu() && parameter.is_contiguous() &&
        parameter.scalar_type() == ToTorch(info.dtype)) {
      copies.push_back({BytesOf(parameter), entry->second});
      continue;
    }
    RLHF_ASSIGN_OR_RETURN(const torch::Tensor stored, ReadTensor(entry->second));
    model->SetParameter(name, stored);
  }
  for (const auto& [name, entry] : weights.tensors) {
    if (used.count(name) > 0) continue;
    const bool buffer = std::any_of(family.ignored_suffixes.begin(), family.ignored_suffixes.end(),
                                    [&](const std::string& s) { return absl::EndsWith(name, s); });
    // A tied head stored twice, or the other head of a model loaded for its body.
    const bool other_head = name == "lm_head.weight" || name == "embed_out.weight" || name == family.scalar_head;
    if (!buffer && !other_head) extra.push_back(name);
  }
  if (missing.empty() && misshaped.empty() && extra.empty()) {
    if (family.lm_head == family.token_embedding) RLHF_RETURN_IF_ERROR(CheckTied(dir, weights, family));
    return ReadAll(std::move(copies));
  }
  std::string text = absl::StrCat(dir, ": the weights do not fit config.json");
  if (!missing.empty()) absl::StrAppend(&text, "; missing: ", absl::StrJoin(missing, ", "));
  if (!misshaped.empty()) absl::StrAppend(&text, "; misshaped: ", absl::StrJoin(misshaped, ", "));
  if (!extra.empty()) absl::StrAppend(&text, "; extra: ", absl::StrJoin(extra, ", "));
  return absl::InvalidArgumentError(text);
}

// Before what config.json says is allocated: sizes that the files have nothing for are refused, not tried.
absl::Status CheckSizes(const std::string& dir, const artifact::ModelConfig& config,
                        const artifact::ModelWeights& weights) {
  int64_t stored = 0;
  for (const auto& [name, entry] : weights.tensors)
    stored += static_cast<int64_t>(entry.info->end - entry.info->begin) / artifact::DTypeSize(entry.info->dtype);
  const int64_t wanted = artifact::NumParameters(config);
  if (wanted / 2 <= stored) return absl::OkStatus();  // a head may be missing, or stored once for two
  return absl::InvalidArgumentError(absl::StrCat(dir, ": the weights do not fit config.json, whose sizes make ", wanted,
                                                 " parameters; the files hold ", stored));
}

// What else belongs to a model, beside its weights and configuration.
constexpr const char* kCompanions[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",     "tokenizer.model",       "chat_template.jinja",     "chat_template.json"};

absl::Status CopyTokenizer(const std::string& from, const std::string& to) {
  for (const char* name : kCompanions) {
    std::error_code error;
    if (!fs::exists(fs::path(from) / name, error)) continue;
    fs::copy_file(fs::path(from) / name, fs::path(to) / name, fs::copy_options::overwrite_existing, error);
    if (error) return absl::InternalError(absl::StrCat("cannot copy ", name, " to ", to, ": ", error.message()));
  }
  return absl::OkStatus();
}

absl::Status WriteText(const std::string& path, absl::string_view text, Durability durability) {
  return WriteFileParts(path, {&text, 1}, durability);
}

// The model's own file where it has one (its list of ends of text, its sampling defaults), else from its configuration.
absl::Status WriteGenerationConfig(const artifact::ModelConfig& config, const std::string& dir,
                                   const std::string& source, Durability durability) {
  if (!source.empty()) {
    auto own = ReadFile(source + "/generation_config.json");
    if (own.ok()) return WriteText(dir + "/generation_config.json", *own, durability);
    if (!absl::IsNotFound(own.status())) return own.status();
  }
  const auto file = nlohmann::ordered_json::parse(config.json);
  nlohmann::ordered_json generation = nlohmann::ordered_json::object();
  generation["_from_model_config"] = true;
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (file.contains(key) && !file[key].is_null()) generation[key] = file[key];
  }
  return WriteText(dir + "/generation_config.json", generation.dump(2) + "\n", durability);
}

}  // namespace

absl::StatusOr<torch::Tensor> ReadTensor(const artifact::ModelWeights::Entry& entry) {
  torch::Tensor tensor = torch::empty(entry.info->shape, torch::TensorOptions().dtype(ToTorch(entry.info->dtype)));
  RLHF_RETURN_IF_ERROR(ReadAll({{BytesOf(tensor), entry}}));
  return tensor;
}

absl::StatusOr<std::unique_ptr<Transformer>> LoadModel(const std::string& model_dir, const LoadOptions& options) {
  return Guard(absl::StrCat("loading ", model_dir), [&]() -> absl::StatusOr<std::unique_ptr<Transformer>> {
    auto config = artifact::LoadModelConfig(model_dir);
    if (!config.ok()) return config.status();
    if (options.head == HeadKind::kLm && config->num_labels > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(model_dir, ": expected a causal language model, found ", config->architecture));
    }
    if (options.head == HeadKind::kScalar && config->num_labels == 0 && !options.init_missing_scalar_head) {
      return absl::InvalidArgumentError(absl::StrCat(
          model_dir, ": expected a reward model (…ForSequenceClassification), found ", config->architecture));
    }
    auto weights = artifact::OpenModelWeights(model_dir);
    if (!weights.ok()) return weights.status();
    if (const absl::Status status = CheckSizes(model_dir, *config, *weights); !status.ok()) return status;
    if (options.head == HeadKind::kScalar && options.scalar_outputs > 0) config->num_labels = options.scalar_outputs;
    auto model = std::make_unique<Transformer>(*config, options.head, options.dtype, options.device);
    if (options.int8) {
      if (const absl::Status status = model->UseInt8(); !status.ok()) return status;
    } else if (options.join_projections) {
      model->JoinProjections();
      GiveBackUnused(options.device);  // the parts that were joined
    }
    const absl::Status status =
        Fill(model_dir, *weights, Describe(*config, options.head == HeadKind::kScalar), options, model.get());
    if (!status.ok()) return status;
    return model;
  });
}

absl::Status WriteTensors(const std::string& path, const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                          Durability durability) {
  std::vector<torch::Tensor> keep;
  std::vector<artifact::TensorToWrite> writes;
  for (const auto& [name, tensor] : tensors) {
    const absl::StatusOr<artifact::DType> type = FromTorch(tensor.scalar_type());
    if (!type.ok()) return type.status();
    keep.push_back(ToHost(tensor.detach()));
    const torch::Tensor& host = keep.back();
    writes.push_back({name, *type, host.sizes().vec(),
                      absl::MakeConstSpan(static_cast<const uint8_t*>(host.data_ptr()), host.nbytes())});
  }
  return artifact::WriteSafetensors(path, writes, {{"format", "pt"}}, durability);
}

absl::Status SaveModel(const Transformer& model, const std::string& out_dir, const std::string& tokenizer_dir,
                       Durability durability) {
  return Guard(absl::StrCat("saving ", out_dir), [&]() -> absl::Status {
    if (absl::Status status = MakeDirs(out_dir); !status.ok()) return status;
    artifact::ModelConfig config = model.config();
    config.num_labels = model.head() == HeadKind::kScalar ? static_cast<int>(model.head_weight().size(0)) : 0;
    config.architecture = artifact::ArchitectureName(config.family, config.num_labels > 0);
    config.dtype = model.dtype() == torch::kBFloat16  ? "bfloat16"
                   : model.dtype() == torch::kFloat16 ? "float16"
                                                      : "float32";
    if (absl::Status status = WriteTensors(out_dir + "/model.safetensors", model.MergedParameters(), durability);
        !status.ok())
      return status;
    if (absl::Status status = WriteText(out_dir + "/config.json", artifact::ModelConfigToJson(config), durability);
        !status.ok())
      return status;
    if (model.head() == HeadKind::kLm) {
      if (absl::Status status = WriteGenerationConfig(config, out_dir, tokenizer_dir, durability); !status.ok())
        return status;
    }
    return tokenizer_dir.empty() ? absl::OkStatus() : CopyTokenizer(tokenizer_dir, out_dir);
  });
}

absl::Status SaveRewardNormalization(const RewardNormalization& n, const std::string& dir) {
  nlohmann::json json = {{"shift", n.shift}, {"scale", n.scale}};
  for (const RewardHead& head : n.heads) {
    json["heads"].push_back(
        {{"criterion", head.criterion}, {"weight", head.weight}, {"shift", head.shift}, {"scale", head.scale}});
  }
  return WriteFileDurably(dir + "/reward_normalization.json", json.dump(2) + "\n");
}

double RewardNormalization::Apply(const double* outputs) const {
  double raw = heads.empty() ? outputs[0] : 0;
  for (size_t h = 0; h < heads.size(); ++h) raw += heads[h].weight * heads[h].Normalize(outputs[h]);
  return (raw - shift) * scale;
}

absl::Status CheckRewardHeads(const Transformer& model, const RewardNormalization& n, const std::string& model_dir) {
  const auto outputs = static_cast<size_t>(model.head_weight().size(0));
  if (outputs == std::max<size_t>(1, n.heads.size())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      model_dir, ": expected a reward model with one label, or a head for each ",
      "criterion in reward_normalization.json; found ", outputs, " labels and ", n.heads.size(), " criteria"));
}

absl::StatusOr<RewardNormalization> LoadRewardNormalization(const std::string& dir) {
  const std::string path = dir + "/reward_normalization.json";
  auto text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return RewardNormalization{};
  if (!text.ok()) return text.status();
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  RewardNormalization out;
  const auto number = [](const nlohmann::json& object, const char* key, double* value) {
    if (!object.is_object() || !object.contains(key) || !object[key].is_number()) return false;
    *value = object[key].get<double>();
    return true;
  };
  if (!number(json, "shift", &out.shift) || !number(json, "scale", &out.scale))
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected {\"shift\": number, \"scale\": number}"));
  const auto usable = [](double shift, double scale) {
    return std::isfinite(shift) && std::isfinite(scale) && scale > 0;
  };
  if (!usable(out.shift, out.scale))
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a finite shift and a scale above 0"));
  if (!json.contains("heads")) return out;
  if (!json["heads"].is_array()) return absl::InvalidArgumentError(absl::StrCat(path, ": heads: expected a list"));
  for (const auto& entry : json["heads"]) {
    RewardHead& head = out.heads.emplace_back();
    if (!number(entry, "weight", &head.weight) || !number(entry, "shift", &head.shift) ||
        !number(entry, "scale", &head.scale) || !usable(head.shift, head.scale) || !std::isfinite(head.weight) ||
        !entry.contains("criterion") || !entry["criterion"].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": heads: expected {\"criterion\": text, \"weight\": number, \"shift\": number, \"scale\": above 0}"));
    }
    head.criterion = entry["criterion"].get<std::string>();
  }
  return out;
}

std::string WeightsDigest(const Transformer& model) {
  // Names and order are part of the model's description; the bytes of all parameters, one digest each, make the whole.
  std::string parts;
  for (const auto& [name, parameter] : model.trained_parameters()) {
    const torch::Tensor host = ToHost(parameter);
    absl::StrAppend(&parts, artifact::Xxh3Hex(host.data_ptr(), host.nbytes()));
  }
  return artifact::Xxh3Hex(parts.data(), parts.size());
}

}  // namespace rlhf::model
