// Ids against those the `tokenizers` library gives (tests/golden/generate_tokenizer.py).
#include "artifact/tokenizer.h"

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::artifact {
namespace {

void ExpectCases(const Tokenizer& tokenizer, const nlohmann::json& cases, bool lossless) {
  ASSERT_GT(cases.size(), 10u);
  for (const auto& c : cases) {
    const auto text = c["text"].get<std::string>();
    const auto ids = tokenizer.Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    // A literal special token is plain text here, unless asked for; the library always reads it.
    if (!c["ids"].is_null()) EXPECT_EQ(*ids, c["ids"].get<std::vector<int32_t>>()) << text;
    if (!lossless) continue;
    const auto back = tokenizer.Decode(*ids);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, text);
  }
}

TEST(TokenizerTest, ByteLevelBpeAgreesWithTheLibrary) {
  const auto tokenizer = Tokenizer::Load(SourceDir() + "/tests/golden");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectCases(**tokenizer, Golden("tokenizer_cases.json")["byte_level"], true);
  EXPECT_EQ((*tokenizer)->TokenToId("</s>"), 2);
}

TEST(TokenizerTest, ARealTokenizerAgreesWithTheLibrary) {
  if (StoriesModel().empty()) GTEST_SKIP() << "stories260K is not beside the repository";
  const auto tokenizer = Tokenizer::Load(StoriesModel());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectCases(**tokenizer, Golden("tokenizer_cases.json")["stories260K"], false);
}

TEST(TokenizerTest, ALiteralSpecialTokenIsTextUnlessAskedFor) {
  const auto tokenizer = Tokenizer::Load(SourceDir() + "/tests/golden");
  ASSERT_TRUE(tokenizer.ok());
  const auto plain = (*tokenizer)->Encode("</s>", {.add_special_tokens = false});
  ASSERT_TRUE(plain.ok());
  EXPECT_GT(plain->size(), 1u);
  const auto parsed = (*tokenizer)->Encode("</s>", {.add_special_tokens = false, .parse_special_tokens = true});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed, std::vector<int32_t>{2});
}

TEST(TokenizerTest, OurTrainerMakesTheLibrarysMerges) {
  ScratchDir dir;
  std::string corpus;
  const nlohmann::json golden = Golden("tokenizer_cases.json");
  for (const auto& line : golden["corpus"]) {
    // Our trainer reads lines; the library's example has texts with line breaks in them.
    const auto text = line.get<std::string>();
    if (text.find('\n') == std::string::npos) corpus += text + "\n";
  }
  ASSERT_TRUE(WriteFileDurably(dir.File("corpus.txt"), corpus).ok());
  ASSERT_TRUE(TrainByteLevelBpe({dir.File("corpus.txt")}, 400, dir.path()).ok());
  const auto tokenizer = Tokenizer::Load(dir.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 400);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  const auto ids = (*tokenizer)->Encode("The cat sat");
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->front(), 1);
  EXPECT_LT(ids->size(), 9u);  // merges were learnt
  EXPECT_EQ(*(*tokenizer)->Decode(*ids), "The cat sat");
}

TEST(TokenizerTest, DamageIsOneClearError) {
  ScratchDir dir;
  EXPECT_EQ(Tokenizer::Load(dir.path()).status().code(), absl::StatusCode::kNotFound);
  const auto refuses = [&](const std::string& json) {
    EXPECT_TRUE(WriteFileDurably(dir.File("tokenizer.json"), json).ok());
    const auto loaded = Tokenizer::Load(dir.path());
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument) << json.substr(0, 60);
    EXPECT_THAT(std::string(loaded.status().message()), testing::HasSubstr("tokenizer.json"));
  };
  refuses("{");
  refuses("[]");
  refuses("{\"model\":{\"type\":\"Unigram\"}}");
  const auto whole = ReadFile(SourceDir() + "/tests/golden/tokenizer.json");
  ASSERT_TRUE(whole.ok());
  nlohmann::json bad = nlohmann::json::parse(*whole);
  bad["model"]["merges"][0] = "zzz qqq";
  refuses(bad.dump());
  const auto tokenizer = Tokenizer::Load(SourceDir() + "/tests/golden");
  EXPECT_EQ((*tokenizer)->Decode({100'000}).status().code(), absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace rlhf::artifact
