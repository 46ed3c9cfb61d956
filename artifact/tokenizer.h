// Text to token ids and back, from a Hugging Face `tokenizer.json`.
//
// Ids are int32. Thread-safe after construction (all methods const). Nothing here blocks on I/O except Load.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "artifact/chat_message.h"

namespace rlhf::artifact {

struct EncodeOptions {
  // Apply the template post-processor (for instance, prepend <s>).
  bool add_special_tokens = true;
  // Treat literal special tokens in the text as special. Off for text that comes from people: a prompt holding a
  // literal "</s>" is plain text unless the caller opts in.
  bool parse_special_tokens = false;
  // With parse_special_tokens: ascending byte offsets inside literal special tokens that stay plain text all the same.
  absl::Span<const size_t> plain_at = {};
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Reads DIR/tokenizer.json (and, when present, tokenizer_config.json, generation_config.json and config.json for
  // special ids, and the chat template). InvalidArgument with file and JSON path for anything unsupported or damaged;
  // NotFound when the file is missing.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);

  // The same from the text of a tokenizer.json; `name` stands for the file in errors. No bos, eos or pad.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(absl::string_view text, const std::string& name);

  // Ids are those of the `tokenizers` library. Invalid UTF-8 becomes U+FFFD, one for each maximal part that could have
  // begun a sequence.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      const EncodeOptions& options = {}) const = 0;

  // By the file's decoder; incomplete UTF-8 sequences become U+FFFD. Unknown ids: OutOfRange.
  virtual absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids,
                                             bool skip_special_tokens = true) const = 0;

  // A conversation in the model's own chat template, without what the post-processor adds. Special tokens of the
  // template are tokens, those written in messages plain text. NotFound when the model has no template; InvalidArgument
  // when the template refuses the conversation, or cannot be read.
  virtual absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::Span<const ChatMessage> messages,
                                                          bool add_generation_prompt = true) const = 0;

  virtual int vocab_size() const = 0;  // highest id + 1, added tokens included
  virtual std::optional<int32_t> bos_id() const = 0;
  // The id that is put after texts which are complete: what is trained on, and what is scored.
  virtual std::optional<int32_t> eos_id() const = 0;
  // Every id that ends a text which is generated; eos_id is the first.
  virtual const std::vector<int32_t>& eos_ids() const = 0;
  bool EndsText(int32_t id) const { return std::find(eos_ids().begin(), eos_ids().end(), id) != eos_ids().end(); }
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
