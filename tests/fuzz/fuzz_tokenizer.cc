// Any bytes as tokenizer.json, then a text through what was loaded: no crash, no hang, bounded memory; and what a
// loaded tokenizer encodes, it can decode.
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "artifact/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using rlhf::artifact::Tokenizer;
  const absl::string_view all(reinterpret_cast<const char*>(data), size);
  // What follows the last "\n" is the text.
  const size_t cut = all.rfind('\n');
  const auto tokenizer = Tokenizer::FromJson(all.substr(0, cut), "fuzz");
  if (!tokenizer.ok()) return 0;
  const absl::string_view text = cut == absl::string_view::npos ? "a <s>b \xE2\x82\xAC 12\xFF" : all.substr(cut + 1);
  for (const bool special : {false, true}) {
    const auto ids = (*tokenizer)->Encode(text, {.parse_special_tokens = special});
    if (!ids.ok()) continue;
    // A post-processor may name ids that no token has: an error, too.
    const auto back = (*tokenizer)->Decode(*ids, false);
    (void)back;
  }
  return 0;
}
