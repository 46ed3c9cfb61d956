// One function for each file of this folder: reads the settings of its types. `type` has been read already.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "artifact/tokenizer/json_object.h"
#include "artifact/tokenizer/normalizer.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {

absl::StatusOr<std::unique_ptr<Normalizer>> MakeUnicodeForm(JsonObject* json, UnicodeForm form);  // unicode_form.cc
absl::StatusOr<std::unique_ptr<Normalizer>> MakeLowercase(JsonObject* json);                      // characters.cc
absl::StatusOr<std::unique_ptr<Normalizer>> MakeStrip(JsonObject* json);                          // characters.cc
absl::StatusOr<std::unique_ptr<Normalizer>> MakeStripAccents(JsonObject* json);                   // characters.cc
absl::StatusOr<std::unique_ptr<Normalizer>> MakePrepend(JsonObject* json);                        // replace.cc
absl::StatusOr<std::unique_ptr<Normalizer>> MakeReplace(JsonObject* json);                        // replace.cc
absl::StatusOr<std::unique_ptr<Normalizer>> MakePrecompiled(JsonObject* json);                    // precompiled.cc
absl::StatusOr<std::unique_ptr<Normalizer>> MakeBertNormalizer(JsonObject* json);                 // bert.cc

}  // namespace rlhf::artifact
