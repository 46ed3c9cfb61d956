// Rotary positions in a config.json: rope_theta and rope_scaling of transformers 4, rope_parameters of 5.
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "artifact/config/reader.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

absl::Status Number(ConfigReader& reader, const std::string& where, const Json& object, const char* key, bool required,
                    double low, double high, double* out) {
  if (!object.contains(key) || object[key].is_null()) {
    return required ? reader.Problem(absl::StrCat(where, ".", key), "expected a number, found nothing")
                    : absl::OkStatus();
  }
  const Json& value = object[key];
  if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
    return reader.Problem(absl::StrCat(where, ".", key),
                          absl::StrCat("expected a number from ", low, " to ", high, ", found ", value.dump()));
  }
  *out = value.get<double>();
  return absl::OkStatus();
}

absl::Status Factors(ConfigReader& reader, const std::string& where, const Json& object, const char* key,
                     std::vector<double>* out) {
  const std::string name = absl::StrCat(where, ".", key);
  if (!object.contains(key) || !object[key].is_array() || object[key].empty() || object[key].size() > 65536)
    return reader.Problem(name, "expected a list of numbers");
  out->clear();
  for (const Json& value : object[key]) {
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>()))
      return reader.Problem(name, absl::StrCat("expected numbers above 0, found ", value.dump()));
    out->push_back(value.get<double>());
  }
  return absl::OkStatus();
}

double YarnScale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

}  // namespace

absl::Status ReadRopeObject(ConfigReader& reader, const std::string& where, const Json& object,
                            const ModelConfig& config, Rope* rope, double* partial) {
  if (!object.is_object()) return reader.Problem(where, absl::StrCat("expected an object, found ", object.dump()));
  std::string type = "default";
  for (const char* key : {"type", "rope_type"}) {
    if (!object.contains(key) || object[key].is_null()) continue;
    if (!object[key].is_string())
      return reader.Problem(absl::StrCat(where, ".", key), absl::StrCat("expected a text, found ", object[key].dump()));
    type = object[key].get<std::string>();
  }
  // Older Phi-3 files say "su" (and, by mistake, "yarn") where longrope is meant, as transformers reads them.
  if (config.family == Family::kPhi3 && (type == "su" || type == "yarn")) type = "longrope";
  std::set<std::string> known = {"type", "rope_type", "rope_theta", "partial_rotary_factor"};
  if (config.family == Family::kPhi3 && type != "default" && type != "longrope") {
    return reader.Problem(where, absl::StrCat("found rope_type \"", type,
                                              "\"; expected default or longrope, as transformers has it for phi3"));
  }
  RLHF_RETURN_IF_BAD(Number(reader, where, object, "rope_theta", false, 1, 1e12, &rope->theta));
  RLHF_RETURN_IF_BAD(Number(reader, where, object, "partial_rotary_factor", false, 0, 1, partial));
  double original = static_cast<double>(config.max_position_embeddings);
  const auto read_original = [&](bool required) {
    known.insert("original_max_position_embeddings");
    return Number(reader, where, object, "original_max_position_embeddings", required, 2, 1e9, &original);
  };
  const auto read_factor = [&](bool required) {
    known.insert("factor");
    return Number(reader, where, object, "factor", required, 1, 1e6, &rope->factor);
  };
  if (type == "default") {
    rope->kind = Rope::Kind::kDefault;
    // A default rope has no factor, but some files write one of 1.
    known.insert({"factor", "original_max_position_embeddings"});
    double factor = 1;
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "factor", false, 1, 1, &factor));
  } else if (type == "linear") {
    rope->kind = Rope::Kind::kLinear;
    RLHF_RETURN_IF_BAD(read_factor(true));
  } else if (type == "dynamic") {
    rope->kind = Rope::Kind::kDynamic;
    RLHF_RETURN_IF_BAD(read_factor(true));
    known.insert("original_max_position_embeddings");  // transformers does not read it for this kind
  } else if (type == "llama3") {
    rope->kind = Rope::Kind::kLlama3;
    known.insert({"low_freq_factor", "high_freq_factor"});
    RLHF_RETURN_IF_BAD(read_factor(true));
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "low_freq_factor", true, 1e-6, 1e6, &rope->low_freq_factor));
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "high_freq_factor", true, 1e-6, 1e6, &rope->high_freq_factor));
    if (rope->high_freq_factor <= rope->low_freq_factor)
      return reader.Problem(absl::StrCat(where, ".high_freq_factor"), "expected more than low_freq_factor");
    RLHF_RETURN_IF_BAD(read_original(true));
  } else if (type == "yarn") {
    rope->kind = Rope::Kind::kYarn;
    known.insert({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"});
    RLHF_RETURN_IF_BAD(read_original(true));
    RLHF_RETURN_IF_BAD(read_factor(true));
    double mscale = 0, mscale_all = 0;
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "mscale", false, 0, 1e6, &mscale));
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "mscale_all_dim", false, 0, 1e6, &mscale_all));
    rope->attention_factor = mscale != 0 && mscale_all != 0
                                 ? YarnScale(rope->factor, mscale) / YarnScale(rope->factor, mscale_all)
                                 : YarnScale(rope->factor, 1);
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "attention_factor", false, 1e-6, 1e6, &rope->attention_factor));
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "beta_fast", false, 1e-6, 1e6, &rope->beta_fast));
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "beta_slow", false, 1e-6, 1e6, &rope->beta_slow));
    if (object.contains("truncate") && !object["truncate"].is_null()) {
      if (!object["truncate"].is_boolean())
        return reader.Problem(absl::StrCat(where, ".truncate"), "expected true or false");
      rope->truncate = object["truncate"].get<bool>();
    }
  } else if (type == "longrope") {
    rope->kind = Rope::Kind::kLongRope;
    known.insert({"attention_factor", "short_factor", "long_factor"});
    if (config.family == Family::kPhi3) {
      // The trained length that Phi-3 keeps beside the rope rules over the one within.
      double beside = 4096;
      RLHF_RETURN_IF_BAD(
          Number(reader, "config", reader.json(), "original_max_position_embeddings", false, 2, 1e9, &beside));
      original = beside;
      RLHF_RETURN_IF_BAD(read_original(false));
      if (original != beside) {
        return reader.Problem(absl::StrCat(where, ".original_max_position_embeddings"),
                              absl::StrCat("expected ", beside, ", the original_max_position_embeddings beside ", where,
                                           " (4096 where there is none), found ", original));
      }
    } else {
      RLHF_RETURN_IF_BAD(read_original(false));
    }
    rope->factor = static_cast<double>(config.max_position_embeddings) / original;
    RLHF_RETURN_IF_BAD(read_factor(false));
    RLHF_RETURN_IF_BAD(Factors(reader, where, object, "short_factor", &rope->short_factor));
    RLHF_RETURN_IF_BAD(Factors(reader, where, object, "long_factor", &rope->long_factor));
    rope->attention_factor = rope->factor <= 1 ? 1 : std::sqrt(1 + std::log(rope->factor) / std::log(original));
    RLHF_RETURN_IF_BAD(Number(reader, where, object, "attention_factor", false, 1e-6, 1e6, &rope->attention_factor));
  } else {
    return reader.Problem(where, absl::StrCat("found rope_type \"", type,
                                              "\", which is not supported; supported: default, linear, dynamic, "
                                              "llama3, yarn, longrope"));
  }
  rope->original_positions = static_cast<int64_t>(original);
  for (const auto& [key, value] : object.items()) {
    if (known.count(key) == 0)
      return reader.Problem(absl::StrCat(where, ".", key), absl::StrCat("not known for rope_type \"", type, "\""));
  }
  return absl::OkStatus();
}

absl::Status CheckOneRope(ConfigReader& reader) {
  const Json &older = reader.Raw("rope_scaling"), &newer = reader.Raw("rope_parameters");
  if (older.is_null() || older.empty() || newer.is_null() || newer.empty() || older == newer) return absl::OkStatus();
  return reader.Problem("rope_scaling, rope_parameters", "expected one of them, or both alike; found two that differ");
}

absl::Status ReadRope(ConfigReader& reader, double default_theta, double default_partial, ModelConfig* config) {
  config->rope.kind = Rope::Kind::kDefault;
  config->rope.theta = default_theta;
  double partial = default_partial;
  RLHF_RETURN_IF_BAD(reader.Double("rope_theta", &config->rope.theta, 1, 1e12));
  RLHF_RETURN_IF_BAD(reader.Double("partial_rotary_factor", &partial, 0, 1));
  RLHF_RETURN_IF_BAD(CheckOneRope(reader));
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json& object = reader.Raw(key);
    if (object.is_null() || object.empty()) continue;
    RLHF_RETURN_IF_BAD(ReadRopeObject(reader, key, object, *config, &config->rope, &partial));
    break;
  }
  // transformers turns whole heads of the other families, whatever this says.
  const bool may_be_partial = config->family == Family::kGptNeoX || config->family == Family::kPhi3;
  if (!may_be_partial && partial != 1) {
    return reader.Problem("partial_rotary_factor",
                          absl::StrCat("expected 1, or none, for this model_type, found ", partial));
  }
  config->rotary_dim = static_cast<int64_t>(static_cast<double>(config->head_dim) * partial);
  if (config->rotary_dim % 2 != 0 || config->rotary_dim < 2) {
    return reader.Problem("head_dim", absl::StrCat("expected an even number of rotating dimensions, at least 2, found ",
                                                   config->rotary_dim, " of ", config->head_dim));
  }
  if (config->rope.kind == Rope::Kind::kDynamic && config->rotary_dim < 4)
    return reader.Problem("head_dim", "a dynamic rope needs at least 4 rotating dimensions");
  if (config->rope.kind == Rope::Kind::kLongRope) {
    for (const auto* factors : {&config->rope.short_factor, &config->rope.long_factor}) {
      if (static_cast<int64_t>(factors->size()) != config->rotary_dim / 2) {
        return reader.Problem("rope_scaling",
                              absl::StrCat("expected ", config->rotary_dim / 2,
                                           " numbers in short_factor and long_factor, found ", factors->size()));
      }
    }
    config->max_position_embeddings = std::min(config->max_position_embeddings, config->rope.original_positions);
  }
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
