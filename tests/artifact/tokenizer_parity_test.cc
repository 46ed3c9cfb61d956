// Tokenizers of every component and family against what the `tokenizers` library gave on more than 1 MB of varied text
// (tests/golden/text/compare.py --record). The text is made anew by make_text.py, from its seed.
#include <cstdio>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/tokenizer.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::artifact {
namespace {

using nlohmann::json;
constexpr EncodeOptions kSpecial{.parse_special_tokens = true};
constexpr size_t kTextsOfADigest = 256;

std::string GoldenDir() {
  return SourceDir() + "/tests/golden/text";
}

std::vector<std::string> MakeTexts(int64_t seed, int64_t bytes) {
  const std::string command = absl::StrCat("/usr/bin/python3 ", GoldenDir(), "/make_text.py ", seed, " ", bytes);
  std::FILE* pipe = popen(command.c_str(), "r");
  std::string all;
  char buffer[1 << 16];
  for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) all.append(buffer, n);
  EXPECT_EQ(pclose(pipe), 0);
  std::vector<std::string> texts;
  for (size_t at = 0, end; (end = all.find('\n', at)) != std::string::npos; at = end + 1)
    texts.push_back(json::parse(all.substr(at, end - at)).get<std::string>());
  return texts;
}

uint64_t Fnv(const void* data, size_t size, uint64_t hash) {
  for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001B3ULL;
  return hash;
}

TEST(TokenizerParityTest, IdsAndDecodedTextsAreTheLibrarys) {
  const json golden = Golden("text/recorded.json");
  const std::vector<std::string> texts = MakeTexts(golden["seed"].get<int64_t>(), golden["bytes"].get<int64_t>());
  size_t bytes = 0;
  for (const std::string& text : texts) bytes += text.size();
  ASSERT_GE(bytes, 1'000'000u);
  ASSERT_GE(golden["tokenizers"].size(), 12u);
  for (const auto& [name, recorded] : golden["tokenizers"].items()) {
    SCOPED_TRACE(name);
    const auto tokenizer = Tokenizer::Load(GoldenDir() + "/" + name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (const auto& c : recorded["cases"]) {
      const auto text = c["input"].get<std::string>();
      const auto plain = (*tokenizer)->Encode(text), special = (*tokenizer)->Encode(text, kSpecial);
      ASSERT_TRUE(plain.ok() && special.ok());
      EXPECT_EQ(*plain, c["plain"].get<std::vector<int32_t>>()) << text;
      EXPECT_EQ(*special, c["special"].get<std::vector<int32_t>>()) << text;
      EXPECT_EQ(*(*tokenizer)->Decode(*special, false), c["text"].get<std::string>()) << text;
    }
    std::vector<std::string> digests;
    uint64_t hash = 0xCBF29CE484222325ULL;
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto ids = (*tokenizer)->Encode(texts[i], kSpecial);
      ASSERT_TRUE(ids.ok()) << ids.status();
      const auto text = (*tokenizer)->Decode(*ids, false);
      ASSERT_TRUE(text.ok()) << text.status();
      hash = Fnv(text->data(), text->size(), Fnv(ids->data(), ids->size() * sizeof(int32_t), hash));
      if (i % kTextsOfADigest + 1 < kTextsOfADigest && i + 1 < texts.size()) continue;
      digests.push_back(absl::StrFormat("%016x", hash));
      hash = 0xCBF29CE484222325ULL;
    }
    EXPECT_EQ(digests, recorded["digests"].get<std::vector<std::string>>());
  }
}

// What lossless tokenizers promise for any bytes: decoding gives the text back, with U+FFFD for what was not UTF-8.
TEST(TokenizerParityTest, ByteLevelTokenizersGiveTheTextBack) {
  const std::vector<std::string> texts = MakeTexts(7, 100'000);
  for (const char* name : {"gpt2", "llama3"}) {
    const auto tokenizer = Tokenizer::Load(GoldenDir() + "/" + name);
    ASSERT_TRUE(tokenizer.ok());
    for (const std::string& text : texts) {
      const auto ids = (*tokenizer)->Encode(text, {.add_special_tokens = false});
      ASSERT_TRUE(ids.ok());
      EXPECT_EQ(*(*tokenizer)->Decode(*ids, false), text);
    }
  }
}

TEST(TokenizerParityTest, TrainingGivesTheLibrarysMerges) {
  const json want = Golden("text/recorded.json")["training"];
  ScratchDir dir;
  std::string corpus;
  for (const std::string& text : MakeTexts(want["seed"].get<int64_t>(), want["bytes"].get<int64_t>()))
    absl::StrAppend(&corpus, corpus.empty() ? "" : "\n", text);
  ASSERT_TRUE(WriteFileDurably(dir.File("corpus.txt"), corpus).ok());
  ASSERT_TRUE(TrainByteLevelBpe({dir.File("corpus.txt")}, want["vocab_size"].get<int>(), dir.path()).ok());
  const json merges = json::parse(*ReadFile(dir.File("tokenizer.json")))["model"]["merges"];
  ASSERT_EQ(merges.size(), want["merges"].get<size_t>());
  std::string lines;
  for (size_t i = 0; i < merges.size(); ++i) {
    if (i < 40) {
      EXPECT_EQ(merges[i], want["first"][i]) << i;
    }
    absl::StrAppend(&lines, merges[i].get<std::string>(), "\n");
  }
  EXPECT_EQ(absl::StrFormat("%016x", Fnv(lines.data(), lines.size(), 0xCBF29CE484222325ULL)), want["digest"]);
}

}  // namespace
}  // namespace rlhf::artifact
