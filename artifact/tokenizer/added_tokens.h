// Tokens that are found in a text before anything else is done to it. Thread-safe after construction.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "artifact/tokenizer/byte_trie.h"

namespace rlhf::artifact {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool normalized = false;   // searched in the normalized text, else in the raw text
  bool special = false;      // ignored unless special tokens are asked for
};

// Finds one of the two kinds (raw or normalized). Leftmost, then longest.
class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  // keys[i] is what tokens[i] looks like in the text that is searched.
  AddedTokenFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& keys);

  struct Section {
    size_t begin, end;
    int32_t id;  // -1: plain text
  };
  // Appends the sections of valid UTF-8 in order. special: find special tokens, too. plain_at: ascending offsets; a
  // special token that spans one (begins before it and ends after it) is plain text.
  void Find(absl::string_view text, bool special, absl::Span<const size_t> plain_at,
            std::vector<Section>* sections) const;
  bool empty() const { return tokens_.empty(); }

 private:
  std::vector<AddedToken> tokens_;
  ByteTrie trie_;
};

}  // namespace rlhf::artifact
