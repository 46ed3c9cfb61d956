// The samples browser's tokens: their texts together are the response, whatever the tokenizer's decoder does at a
// text's beginning.
#include "coordinator/web/token_texts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_join.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::Contains;
using testing::StartsWith;

TEST(TokenTextsTest, TogetherTheyAreTheResponse) {
  // Byte-level; a decoder that strips a space; byte fallback behind it; Metaspace.
  for (const std::string name : {"gpt2", "llama3", "llama2", "gemma", "t5", "mistral_metaspace"}) {
    SCOPED_TRACE(name);
    ScratchDir dir;
    const std::string folder = SourceDir() + "/tests/golden/text/" + name;
    const auto model = artifact::ArtifactRoot(dir.path()).Publish(folder);
    ASSERT_TRUE(model.ok()) << model.status();
    const auto tokenizer = artifact::Tokenizer::Load(folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto tokens = (*tokenizer)->Encode("the dog and the other dog were there, and so was the cat");
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    ASSERT_GT(tokens->size(), 4u);
    const auto whole = (*tokenizer)->Decode(*tokens, /*skip_special_tokens=*/false);
    ASSERT_TRUE(whole.ok()) << whole.status();
    const auto texts = TokenTexts(dir.path()).Of(model->digest, *tokens);
    ASSERT_TRUE(texts.ok()) << texts.status();
    ASSERT_EQ(texts->size(), tokens->size());
    EXPECT_EQ(absl::StrJoin(*texts, ""), *whole);
    EXPECT_THAT(*texts, Contains(StartsWith(" "))) << absl::StrJoin(*texts, "|");
  }
}

TEST(TokenTextsTest, ACharacterOfSeveralTokensIsTheLastOnes) {
  ScratchDir dir;
  const std::string folder = SourceDir() + "/tests/golden/text/gpt2";
  const auto model = artifact::ArtifactRoot(dir.path()).Publish(folder);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto tokens =
      (*artifact::Tokenizer::Load(folder))->Encode("a \xF0\x9F\xA6\xAB z");  // a beaver, which no merge makes
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  const auto texts = TokenTexts(dir.path()).Of(model->digest, *tokens);
  ASSERT_TRUE(texts.ok()) << texts.status();
  EXPECT_EQ(absl::StrJoin(*texts, ""), "a \xF0\x9F\xA6\xAB z");
  EXPECT_THAT(*texts, Contains(""));
}

}  // namespace
}  // namespace rlhf::coordinator
