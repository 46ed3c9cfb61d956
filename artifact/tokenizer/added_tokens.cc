#include "artifact/tokenizer/added_tokens.h"

#include <algorithm>

#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

// The last code point of valid, not empty UTF-8.
char32_t LastCodePoint(absl::string_view text, size_t* length) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return FirstCodePoint(text.substr(at), length);
}

bool EndsWithWord(absl::string_view text) {
  size_t length = 0;
  return !text.empty() && IsWord(LastCodePoint(text, &length));
}

bool BeginsWithWord(absl::string_view text) {
  size_t length = 0;
  return !text.empty() && IsWord(FirstCodePoint(text, &length));
}

size_t WhitespaceAtEnd(absl::string_view text) {
  size_t count = 0, length = 0;
  while (count < text.size() && IsWhitespace(LastCodePoint(text.substr(0, text.size() - count), &length)))
    count += length;
  return count;
}

size_t WhitespaceAtStart(absl::string_view text) {
  size_t count = 0, length = 0;
  while (count < text.size() && IsWhitespace(FirstCodePoint(text.substr(count), &length))) count += length;
  return count;
}

ByteTrie TrieOf(const std::vector<std::string>& keys) {
  std::vector<std::pair<std::string, int32_t>> entries;
  for (size_t i = 0; i < keys.size(); ++i) entries.emplace_back(keys[i], static_cast<int32_t>(i));
  return ByteTrie(std::move(entries));
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& keys)
    : tokens_(std::move(tokens)), trie_(TrieOf(keys)) {}

void AddedTokenFinder::Find(absl::string_view text, bool special, absl::Span<const size_t> plain_at,
                            std::vector<Section>* sections) const {
  size_t done = 0;  // where plain text that is not yet appended begins
  for (size_t at = 0; at < text.size() && !trie_.empty();) {
    if (!trie_.Begins(text[at])) {
      ++at;
      continue;
    }
    int32_t which = -1;
    const size_t length = trie_.Longest(text.substr(at), &which);
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[which];
    size_t begin = at, end = at + length;
    at = end;
    if (token.special) {
      const auto split = std::upper_bound(plain_at.begin(), plain_at.end(), begin);
      if (!special || (split != plain_at.end() && *split < end)) continue;
    }
    if (token.single_word && (EndsWithWord(text.substr(0, begin)) || BeginsWithWord(text.substr(end)))) continue;
    // White space that the token before it took is not taken twice.
    if (token.lstrip) begin = std::max(begin - WhitespaceAtEnd(text.substr(0, begin)), done);
    if (token.rstrip) end += WhitespaceAtStart(text.substr(end));
    if (done < begin) sections->push_back({done, begin, -1});
    // Nothing is left of white space that the token before it took whole.
    if (begin < end) sections->push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) sections->push_back({done, text.size(), -1});
}

}  // namespace rlhf::artifact
