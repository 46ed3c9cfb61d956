// The parts of a tokenizer.json put together. Thread-safe: const after construction.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "artifact/chat/chat_template.h"
#include "artifact/tokenizer.h"
#include "artifact/tokenizer/added_tokens.h"
#include "artifact/tokenizer/decoder.h"
#include "artifact/tokenizer/model.h"
#include "artifact/tokenizer/normalizer.h"
#include "artifact/tokenizer/post_processor.h"
#include "artifact/tokenizer/pre_tokenizer.h"

namespace rlhf::artifact {

struct SpecialIds {
  std::optional<int32_t> bos, eos, pad;
  std::vector<int32_t> ends;  // eos, then the others that end a text
};

class PipelineTokenizer : public Tokenizer {
 public:
  struct Parts {
    AddedTokenFinder raw_tokens, normalized_tokens;
    std::unique_ptr<Normalizer> normalizer;       // null: none
    std::unique_ptr<PreTokenizer> pre_tokenizer;  // null: none
    std::unique_ptr<TokenModel> model;
    PostProcessor post_processor;
    std::unique_ptr<Decoder> decoder;  // null: tokens are joined by spaces
    absl::flat_hash_map<std::string, int32_t> added_ids;
    std::vector<std::string> tokens;  // by id; empty: no such token
    std::vector<bool> special;        // by id
    std::vector<std::string> special_texts;
  };
  explicit PipelineTokenizer(Parts parts) : parts_(std::move(parts)) {}
  void set_special_ids(SpecialIds ids) { special_ids_ = std::move(ids); }
  // A template that cannot be read is an error of the prompts that need it only.
  void set_chat_template(absl::StatusOr<std::unique_ptr<ChatTemplate>> made) { chat_template_ = std::move(made); }

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, const EncodeOptions& options) const override;
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const override;
  absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::Span<const ChatMessage> messages,
                                                  bool add_generation_prompt) const override;
  int vocab_size() const override { return static_cast<int>(parts_.tokens.size()); }
  std::optional<int32_t> bos_id() const override { return special_ids_.bos; }
  std::optional<int32_t> eos_id() const override { return special_ids_.eos; }
  const std::vector<int32_t>& eos_ids() const override { return special_ids_.ends; }
  std::optional<int32_t> pad_id() const override { return special_ids_.pad; }
  std::optional<int32_t> TokenToId(absl::string_view token) const override;

 private:
  absl::Status EncodeRaw(absl::string_view text, bool at_start, bool parse_special, std::vector<int32_t>* ids) const;
  absl::Status EncodeNormalized(absl::string_view text, bool at_start, std::vector<int32_t>* ids) const;

  Parts parts_;
  SpecialIds special_ids_;
  absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template_ = absl::NotFoundError("the model has no chat template");
};

// tokenizer_config.json names tokens, generation_config.json and config.json ids; the first that says something wins,
// save that a text also ends with the ids of the first of the latter two that has some. InvalidArgument for an empty
// list of them, for one that the vocabulary has not, and for a name that it has not; ids of bos and pad, which only
// stand beside a text, may be anything.
absl::StatusOr<SpecialIds> ReadSpecialIds(const std::string& model_dir, const Tokenizer& tokenizer);

// Puts what MODEL_DIR/tokenizer_config.json says of added tokens (their flags, which rule; special is what either file
// marks, or the former names) into a tokenizer.json that has been parsed. InvalidArgument where the two contradict:
// tokens, ids, add_prefix_space.
absl::Status ApplyTokenizerConfig(const std::string& model_dir, nlohmann::json* tokenizer);

}  // namespace rlhf::artifact
