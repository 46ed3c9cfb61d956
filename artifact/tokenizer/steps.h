// How tokenizer.json states a normalizer, pre-tokenizer, post-processor or decoder: an object whose `type` chooses the
// strategy, where "Sequence" holds a list of further ones. Errors are InvalidArgument with the path.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/json_object.h"

namespace rlhf::artifact {

inline constexpr int kMaxStepDepth = 16;         // each level is a call on the stack
inline constexpr size_t kMaxSteps = 64;          // of one list with all that is nested in it; real files have a few
inline constexpr size_t kMaxContentBytes = 256;  // of what a step puts in for a match

// How many steps a list holds, those of Sequences in it included; more than kMaxSteps counts as that and one.
inline size_t CountSteps(const nlohmann::json& list, const char* key, int depth) {
  if (!list.is_array() || depth > kMaxStepDepth) return 0;
  size_t count = 0;
  for (const auto& step : list) {
    if (++count > kMaxSteps) break;
    const auto nested = step.is_object() ? step.find(key) : step.end();
    if (step.is_object() && nested != step.end()) count += CountSteps(*nested, key, depth + 1);
  }
  return count;
}

// MakeNormalizer and the like: from JSON, at a depth of nesting. Made: std::unique_ptr of a strategy, or a value.
template <typename Made>
using StepMaker = absl::StatusOr<Made>(const nlohmann::json& json, const std::string& path, int depth);
// The part for a known `type`, from an object of which that has been read.
template <typename Made>
using TypedStepMaker = absl::StatusOr<Made>(JsonObject* json, const std::string& type, int depth);

// Null gives a null pointer, or an empty value. Settings that `make` does not read are errors.
template <typename Made>
absl::StatusOr<Made> MakeStep(const nlohmann::json& json, const std::string& path, int depth,
                              TypedStepMaker<Made>* make) {
  if (json.is_null()) return Made();
  JsonObject object(json, path);
  if (depth > kMaxStepDepth) return object.Bad("type", "nested too deeply");
  const std::string type = object.Text("type");
  auto made = make(&object, type, depth);
  if (!made.ok()) return made.status();
  if (absl::Status status = object.Finish(); !status.ok()) return status;
  return made;
}

// Makes the steps listed under the key of an object at this depth, one after another, and hands each out; the first
// error, of `take` too, ends it.
template <typename Made>
absl::Status MakeEach(JsonObject* json, const char* key, int depth, StepMaker<Made>* make,
                      absl::FunctionRef<absl::Status(Made)> take) {
  const nlohmann::json& list = json->Get(key);
  if (!list.is_array()) return json->Bad(key, absl::StrCat("expected an array, found ", Describe(list)));
  for (size_t i = 0; i < list.size(); ++i) {
    auto step = make(list[i], absl::StrCat(json->PathOf(key), "[", i, "]"), depth + 1);
    if (!step.ok()) return step.status();
    if (absl::Status status = take(*std::move(step)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// A Sequence, made of a vector, of the steps listed under the key of an object at this depth. Those that are null are
// left out.
template <typename Sequence, typename Step>
absl::StatusOr<std::unique_ptr<Step>> MakeSequence(JsonObject* json, const char* key, int depth,
                                                   StepMaker<std::unique_ptr<Step>>* make) {
  if (depth == 0 && CountSteps(json->Get(key), key, 0) > kMaxSteps)
    return json->Bad(key, absl::StrCat("expected at most ", kMaxSteps, " steps"));
  std::vector<std::unique_ptr<Step>> steps;
  const auto take = [&steps](std::unique_ptr<Step> step) {
    if (step != nullptr) steps.push_back(std::move(step));
    return absl::OkStatus();
  };
  if (absl::Status status = MakeEach<std::unique_ptr<Step>>(json, key, depth, make, take); !status.ok()) return status;
  return std::make_unique<Sequence>(std::move(steps));
}

}  // namespace rlhf::artifact
