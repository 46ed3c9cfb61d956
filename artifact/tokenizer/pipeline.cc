#include "artifact/tokenizer/pipeline.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {

std::optional<int32_t> PipelineTokenizer::TokenToId(absl::string_view token) const {
  if (const auto added = parts_.added_ids.find(token); added != parts_.added_ids.end()) return added->second;
  return parts_.model->TokenToId(token);
}

absl::Status PipelineTokenizer::EncodeNormalized(absl::string_view text, bool at_start,
                                                 std::vector<int32_t>* ids) const {
  TextArena arena;
  std::vector<Piece> pieces{{text, at_start}};
  if (parts_.pre_tokenizer != nullptr) {
    if (absl::Status status = parts_.pre_tokenizer->Apply(&pieces, &arena); !status.ok()) return status;
  }
  return parts_.model->Encode(pieces, ids);
}

absl::Status PipelineTokenizer::EncodeRaw(absl::string_view text, bool at_start, bool parse_special,
                                          std::vector<int32_t>* ids) const {
  NormalizedText normalized{parts_.normalizer != nullptr ? std::string(text) : ""};
  absl::string_view view = text;
  if (parts_.normalizer != nullptr) {
    if (absl::Status status = parts_.normalizer->Normalize(&normalized); !status.ok()) return status;
    view = normalized.text;
    at_start = at_start && normalized.keeps_start;
  }
  std::vector<AddedTokenFinder::Section> sections;
  parts_.normalized_tokens.Find(view, parse_special, {}, &sections);
  for (const auto& section : sections) {
    if (section.id >= 0) {
      ids->push_back(section.id);
      continue;
    }
    absl::Status status =
        EncodeNormalized(view.substr(section.begin, section.end - section.begin), at_start && section.begin == 0, ids);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::Encode(absl::string_view text,
                                                               const EncodeOptions& options) const {
  std::string replaced;
  if (!IsValidUtf8(text)) {
    if (!options.plain_at.empty())
      return absl::InvalidArgumentError("expected valid UTF-8 with plain_at, found other bytes");
    replaced = ReplaceInvalidUtf8(text);
    text = replaced;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  if (options.add_special_tokens) ids = parts_.post_processor.prefix;
  std::vector<AddedTokenFinder::Section> sections;
  parts_.raw_tokens.Find(text, options.parse_special_tokens, options.plain_at, &sections);
  for (const auto& section : sections) {
    if (section.id >= 0) {
      ids.push_back(section.id);
      continue;
    }
    // Normalizing moves offsets: where a special token must stay plain, none is looked for in the normalized text.
    const auto plain = std::lower_bound(options.plain_at.begin(), options.plain_at.end(), section.begin);
    const bool parse_special =
        options.parse_special_tokens && (plain == options.plain_at.end() || *plain >= section.end);
    absl::Status status =
        EncodeRaw(text.substr(section.begin, section.end - section.begin), section.begin == 0, parse_special, &ids);
    if (!status.ok()) return status;
  }
  if (options.add_special_tokens)
    ids.insert(ids.end(), parts_.post_processor.suffix.begin(), parts_.post_processor.suffix.end());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::EncodeChat(absl::Span<const ChatMessage> messages,
                                                                   bool add_generation_prompt) const {
  if (!chat_template_.ok()) return chat_template_.status();
  const auto chat =
      (*chat_template_)->Render(messages, parts_.special_texts, {.add_generation_prompt = add_generation_prompt});
  if (!chat.ok()) return chat.status();
  return Encode(chat->text, {.add_special_tokens = false, .parse_special_tokens = true, .plain_at = chat->plain_at});
}

absl::StatusOr<std::string> PipelineTokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size() || parts_.tokens[id].empty())
      return absl::OutOfRangeError(absl::StrCat("token id ", id, ": expected 0 to ", vocab_size() - 1));
    if (!skip_special_tokens || !parts_.special[id]) tokens.push_back(parts_.tokens[id]);
  }
  if (parts_.decoder == nullptr) return absl::StrJoin(tokens, " ");
  if (absl::Status status = parts_.decoder->Apply(&tokens); !status.ok()) return status;
  return absl::StrJoin(tokens, "");
}

}  // namespace rlhf::artifact
