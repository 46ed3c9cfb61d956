// Text to token ids and back, from a Hugging Face `tokenizer.json`.
//
// Ids are int32. Thread-safe after construction (all methods const). Nothing here blocks on I/O except Load.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf::artifact {

struct EncodeOptions {
  // Apply the template post-processor (for instance, prepend <s>).
  bool add_special_tokens = true;
  // Treat literal special tokens in the text as special. Off for text that comes from people: a prompt holding a
  // literal
  // "</s>" is plain text unless the caller opts in.
  bool parse_special_tokens = false;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Reads DIR/tokenizer.json (and tokenizer_config.json, generation_config.json for special ids, when present).
  // InvalidArgument with file and JSON path for anything unsupported or damaged; NotFound when the file is missing.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);

  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      const EncodeOptions& options = {}) const = 0;

  // Concatenates and decodes; incomplete UTF-8 sequences become U+FFFD. Unknown ids: OutOfRange.
  virtual absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids,
                                             bool skip_special_tokens = true) const = 0;

  virtual int vocab_size() const = 0;  // highest id + 1, added tokens included
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual std::optional<int32_t> pad_id() const = 0;
  // The id of an exact token string ("</s>"), if any.
  virtual std::optional<int32_t> TokenToId(absl::string_view token) const = 0;
};

// Trains a byte-level BPE on the files' lines (same merges as the `tokenizers` library's BpeTrainer with ByteLevel
// pre-tokenizer, add_prefix_space false, initial alphabet of 256 bytes) and writes tokenizer.json and
// tokenizer_config.json into out_dir. Special tokens come first: "<pad>" = 0, "<s>" = 1, "</s>" = 2. The post-processor
// prepends <s>.
absl::Status TrainByteLevelBpe(const std::vector<std::string>& files, int vocab_size, const std::string& out_dir);

}  // namespace rlhf::artifact
