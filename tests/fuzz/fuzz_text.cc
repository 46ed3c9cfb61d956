// Any bytes as a text, through good tokenizers: encoding succeeds, and lossless ones give the text back.
#include <cstdio>
#include <cstdlib>

#include "artifact/tokenizer.h"
#include "artifact/tokenizer/unicode.h"

namespace {

using rlhf::artifact::Tokenizer;

const std::vector<std::unique_ptr<Tokenizer>>& Tokenizers() {
  static const auto* all = [] {
    auto* made = new std::vector<std::unique_ptr<Tokenizer>>();
    const char* root = std::getenv("RLHF_SOURCE_DIR");
    // The first two are lossless.
    for (const char* name : {"gpt2", "llama3", "llama2", "t5", "bert_uncased", "unigram_bytes", "flags"}) {
      auto tokenizer = Tokenizer::Load(std::string(root == nullptr ? "." : root) + "/tests/golden/text/" + name);
      if (!tokenizer.ok()) {
        std::fprintf(stderr, "%s\n", std::string(tokenizer.status().message()).c_str());
        std::abort();
      }
      made->push_back(*std::move(tokenizer));
    }
    return made;
  }();
  return *all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (size_t i = 0; i < Tokenizers().size(); ++i) {
    const auto ids = Tokenizers()[i]->Encode(text, {.add_special_tokens = false});
    if (!ids.ok()) std::abort();
    const auto back = Tokenizers()[i]->Decode(*ids, false);
    if (!back.ok()) std::abort();
    if (i < 2 && *back != rlhf::artifact::ReplaceInvalidUtf8(text)) std::abort();
  }
  return 0;
}
