#include "artifact/same_tokens.h"

#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer.h"
#include "common/durable_file.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::artifact {
namespace {

using testing::HasSubstr;

class SameTokensTest : public testing::Test {
 protected:
  // A model's folder with this tokenizer.json.
  std::string Model(const std::string& name, const std::string& json) {
    const std::string dir = dir_.File(name);
    EXPECT_TRUE(MakeDirs(dir).ok());
    EXPECT_TRUE(WriteFileDurably(dir + "/tokenizer.json", json).ok());
    return dir;
  }
  ScratchDir dir_;
};

TEST_F(SameTokensTest, WhatCountsIsTheTokenOfEachId) {
  const std::string one = Model("one", R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
                                           "added_tokens": [{"id": 2, "content": "<s>"}]})");
  EXPECT_TRUE(CheckSameTokens(one, one).ok());
  // Another normalizer, another order, an added token within the vocabulary.
  EXPECT_TRUE(CheckSameTokens(one, Model("written", R"({"normalizer": {"type": "NFC"}, "model": {"type": "WordPiece",
      "vocab": {"b": 1, "<s>": 2, "a": 0}}})"))
                  .ok());
  EXPECT_TRUE(
      CheckSameTokens(
          one, Model("unigram", R"({"model": {"type": "Unigram", "vocab": [["a", 0], ["b", -1.5], ["<s>", 0]]}})"))
          .ok());
  const auto differ = [&](const std::string& json, const char* how, bool swapped = false) {
    const std::string other = Model("other", json);
    const absl::Status status = swapped ? CheckSameTokens(other, one) : CheckSameTokens(one, other);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(std::string(status.message()), HasSubstr(how)) << json;
  };
  differ(R"({"model": {"vocab": {"a": 0, "c": 1, "<s>": 2}}})", "token 1 is \"");
  differ(R"({"model": {"vocab": {"a": 0, "<s>": 2}}})", "token 1 is \"b\" of one and no token of the other");
  // One that was given more reads all of the other's; what it says the other may not know.
  const std::string padded = R"({"model": {"vocab": {"a": 0, "b": 1, "<s>": 2}},
                                 "added_tokens": [{"id": 3, "content": "[PAD]"}]})";
  EXPECT_TRUE(CheckSameTokens(one, Model("padded", padded)).ok());
  differ(padded, "token 3 is \"[PAD]\" of one and no token", /*swapped=*/true);
  differ(R"({"model": {"vocab": {"a": 0, "b": "1"}}})", "other/tokenizer.json: expected");
  differ("{", "other/tokenizer.json: expected a tokenizer.json with model.vocab");
  EXPECT_TRUE(absl::IsNotFound(CheckSameTokens(one, dir_.File("nothing"))));
  const std::string large = Model("large", "{}");
  std::filesystem::resize_file(large + "/tokenizer.json", (64 << 20) + 1);
  EXPECT_THAT(std::string(CheckSameTokens(one, large).message()), HasSubstr("expected at most 67108864 bytes"));
}

TEST_F(SameTokensTest, OfTokenizersThatWereTrainedByAnotherTextTheFirstMergeTells) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("cats"), "the cat sat on the mat\n").ok());
  ASSERT_TRUE(WriteFileDurably(dir_.File("dogs"), "a dog ran in a big bog\n").ok());
  for (const char* name : {"cats", "dogs"}) {
    ASSERT_TRUE(MakeDirs(dir_.File(absl::StrCat(name, "-model"))).ok());
    ASSERT_TRUE(TrainByteLevelBpe({dir_.File(name)}, 264, dir_.File(absl::StrCat(name, "-model"))).ok());
  }
  const absl::Status status = CheckSameTokens(dir_.File("cats-model"), dir_.File("dogs-model"));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 259 is "));  // 3 special ones and 256 bytes are alike
}

}  // namespace
}  // namespace rlhf::artifact
