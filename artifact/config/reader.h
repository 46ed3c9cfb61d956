// Reads the keys of one config.json, says where a bad one is, and which were never asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "artifact/model_config.h"

namespace rlhf::artifact {

// A getter leaves *out as it is when the key is absent or null. Not thread-safe.
class ConfigReader {
 public:
  using Json = nlohmann::json;
  ConfigReader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  absl::Status Problem(absl::string_view key, absl::string_view problem) const;
  bool Has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  absl::Status Int(const char* key, int64_t* out, bool required, int64_t low = 1, int64_t high = int64_t{1} << 31);
  // A finite number in [low, high].
  absl::Status Double(const char* key, double* out, double low = 0, double high = 1e12);
  absl::Status Bool(const char* key, bool* out);
  absl::Status Text(const char* key, std::string* out);
  absl::Status TokenId(const char* key, std::optional<int32_t>* out);
  // A setting that changes the numbers and is implemented for some values only; absent and null pass.
  absl::Status Only(const char* key, const std::vector<Json>& allowed);
  // Settings that change no number here, whatever they say.
  void Harmless(std::initializer_list<const char*> keys);
  // A value to be read by the caller; null when absent.
  const Json& Raw(const char* key);
  const Json& json() const { return json_; }
  // InvalidArgument naming every key that nothing asked for.
  absl::Status CheckAllKnown() const;

 private:
  const Json& json_;
  std::string where_;
  std::set<std::string> known_;
};

#define RLHF_RETURN_IF_BAD(expr) \
  if (absl::Status rlhf_bad_ = (expr); !rlhf_bad_.ok()) return rlhf_bad_

// What most families share: sizes, heads, head_dim, context, rms_norm_eps, activation of a gated perceptron.
absl::Status ReadDecoderSizes(ConfigReader& reader, const char* activation_key, ModelConfig* config);
// rope_theta with rope_scaling (files of transformers 4) or rope_parameters (5). `kinds`: the rope types supported.
// Fills rope, rotary_dim, and the context where the kind bounds it.
absl::Status ReadRope(ConfigReader& reader, double default_theta, double default_partial, ModelConfig* config);
// InvalidArgument where rope_scaling and rope_parameters say different things: transformers reads one of them alone.
absl::Status CheckOneRope(ConfigReader& reader);
// One rope object, for families that have one a layer type. `where` names it in errors.
absl::Status ReadRopeObject(ConfigReader& reader, const std::string& where, const nlohmann::json& object,
                            const ModelConfig& config, Rope* rope, double* partial);
// layer_types, or else windowed(i) for every layer; checks sliding_window where a layer uses one.
absl::Status ReadLayerTypes(ConfigReader& reader, bool has_window, const std::vector<bool>& otherwise,
                            ModelConfig* config);

// One file each.
absl::Status ReadGpt2(ConfigReader& reader, ModelConfig* config);
absl::Status ReadGptNeoX(ConfigReader& reader, ModelConfig* config);
absl::Status ReadLlama(ConfigReader& reader, ModelConfig* config);
absl::Status ReadMistral(ConfigReader& reader, ModelConfig* config);
absl::Status ReadQwen2(ConfigReader& reader, ModelConfig* config);
absl::Status ReadQwen3(ConfigReader& reader, ModelConfig* config);
absl::Status ReadGemma2(ConfigReader& reader, ModelConfig* config);
absl::Status ReadGemma3(ConfigReader& reader, ModelConfig* config);
absl::Status ReadPhi3(ConfigReader& reader, ModelConfig* config);

}  // namespace rlhf::artifact
