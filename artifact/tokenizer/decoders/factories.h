// One function for each type: reads its settings. `type` has been read already.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "artifact/tokenizer/decoder.h"
#include "artifact/tokenizer/json_object.h"

namespace rlhf::artifact {

absl::StatusOr<std::unique_ptr<Decoder>> MakeByteLevelDecoder(JsonObject* json);  // bytes.cc
absl::StatusOr<std::unique_ptr<Decoder>> MakeByteFallback(JsonObject* json);      // bytes.cc
absl::StatusOr<std::unique_ptr<Decoder>> MakeFuse(JsonObject* json);              // texts.cc
absl::StatusOr<std::unique_ptr<Decoder>> MakeReplaceDecoder(JsonObject* json);    // texts.cc
absl::StatusOr<std::unique_ptr<Decoder>> MakeStripDecoder(JsonObject* json);      // texts.cc
absl::StatusOr<std::unique_ptr<Decoder>> MakeMetaspaceDecoder(JsonObject* json);  // words.cc
absl::StatusOr<std::unique_ptr<Decoder>> MakeWordPieceDecoder(JsonObject* json);  // words.cc
absl::StatusOr<std::unique_ptr<Decoder>> MakeBpeDecoder(JsonObject* json);        // words.cc

}  // namespace rlhf::artifact
