// An answer that is looked at by its end stops where one that is decoded whole would: over tokenizers of every family,
// for texts, and for tokens drawn at random, whose bytes are no characters.
#include "rollout_worker/stop_texts.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/testing/golden.h"

namespace rlhf::rollout {
namespace {

// The number of tokens after which the whole text has one of the stops; 0: never.
size_t WholeStopsAt(const artifact::Tokenizer& tokenizer, const std::vector<int32_t>& tokens,
                    const std::vector<std::string>& stops) {
  for (size_t n = 1; n <= tokens.size(); ++n) {
    const auto text = ResponseText(tokenizer, absl::MakeConstSpan(tokens).first(n));
    for (const std::string& stop : stops) {
      if (text.ok() && absl::StrContains(*text, stop)) return n;
    }
  }
  return 0;
}

size_t StopsAt(const artifact::Tokenizer& tokenizer, const std::vector<int32_t>& tokens,
               const std::vector<std::string>& stops) {
  StopTexts search(stops);
  std::vector<int32_t> so_far;
  for (const int32_t token : tokens) {
    so_far.push_back(token);
    if (search.Found(tokenizer, so_far)) return so_far.size();
  }
  return 0;
}

class StopTextsTest : public testing::Test {
 protected:
  void ForEachTokenizer(const std::function<void(const artifact::Tokenizer&)>& fn) {
    int tokenizers = 0;
    for (const auto& entry : std::filesystem::directory_iterator(SourceDir() + "/tests/golden/text")) {
      if (!std::filesystem::exists(entry.path() / "tokenizer.json")) continue;
      SCOPED_TRACE(entry.path().string());
      const auto tokenizer = artifact::Tokenizer::Load(entry.path().string());
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      fn(**tokenizer);
      ++tokenizers;
      if (HasFailure()) return;
    }
    EXPECT_GE(tokenizers, 12);
  }
  size_t Below(size_t bound) { return random_() % bound; }
  // A few bytes of the text, cut at characters, as a stop text; sometimes with something that never comes.
  std::vector<std::string> StopsIn(const std::string& text) {
    std::vector<std::string> stops;
    for (size_t i = 0; i <= Below(3); ++i) {
      size_t begin = text.empty() ? 0 : Below(text.size()),
             end = std::min(text.size(), begin + 1 + Below(Below(2) == 0 ? 10 : 150));
      while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
      while (end < text.size() && (text[end] & 0xC0) == 0x80) ++end;
      if (end > begin) stops.push_back(text.substr(begin, end - begin));
    }
    if (stops.empty() || Below(4) == 0) stops.emplace_back("never \xE2\x98\x83 there");
    if (Below(6) == 0) stops.assign({"##"});  // as parts of words look where their beginning is not there
    return stops;
  }
  void Expect(const artifact::Tokenizer& tokenizer, const std::vector<int32_t>& tokens,
              const std::vector<std::string>& stops, int* stopped) {
    const size_t whole = WholeStopsAt(tokenizer, tokens, stops);
    *stopped += whole > 0 ? 1 : 0;
    EXPECT_EQ(StopsAt(tokenizer, tokens, stops), whole) << "one of \"" << stops.front() << "\"…";
  }

  std::mt19937_64 random_{7};
};

TEST_F(StopTextsTest, TextsStopWhereTheWholeOnesDo) {
  const std::vector<std::string> pieces = {
      "the cat sat on the mat", " ",  "\n\n", "Grüße aus Köln", "数学と言語", "👩‍👩‍👧 🏳️‍🌈",
      "don't, won't.",          "  ", "##",   "1234567890",     "Ελλάδα",     "مرحبا"};
  ForEachTokenizer([&](const artifact::Tokenizer& tokenizer) {
    int stopped = 0;
    for (int round = 0; round < 40; ++round) {
      std::string text;
      while (text.size() < 900) absl::StrAppend(&text, pieces[Below(pieces.size())], Below(3) == 0 ? " " : "");
      const auto tokens = tokenizer.Encode(text, {.add_special_tokens = false});
      ASSERT_TRUE(tokens.ok()) << tokens.status();
      const auto decoded = ResponseText(tokenizer, *tokens);
      ASSERT_TRUE(decoded.ok());
      Expect(tokenizer, *tokens, StopsIn(*decoded), &stopped);
    }
    EXPECT_GT(stopped, 3);
  });
}

TEST_F(StopTextsTest, TokensAtRandomStopWhereTheWholeOnesDo) {
  ForEachTokenizer([&](const artifact::Tokenizer& tokenizer) {
    int stopped = 0;
    for (int round = 0; round < 40; ++round) {
      // Few different tokens come again and again, and so do texts; a third of them are of the first 300, bytes often.
      std::vector<int32_t> drawn;
      for (size_t i = 0; i < 40; ++i) {
        const auto size = static_cast<size_t>(tokenizer.vocab_size());
        drawn.push_back(static_cast<int32_t>(Below(i % 3 == 0 ? std::min<size_t>(size, 300) : size + 5)));
      }
      std::vector<int32_t> tokens;
      for (size_t i = 0; i < 220; ++i) tokens.push_back(drawn[Below(drawn.size())]);
      const auto decoded = ResponseText(tokenizer, tokens);
      if (!decoded.ok()) continue;
      Expect(tokenizer, tokens, StopsIn(*decoded), &stopped);
    }
    EXPECT_GT(stopped, 3);
  });
}

// A model has more rows of its head than its tokenizer has tokens, rounded up.
TEST_F(StopTextsTest, IdsBeyondTheTokenizersAreLeftOut) {
  ForEachTokenizer([](const artifact::Tokenizer& tokenizer) {
    const int32_t size = tokenizer.vocab_size();
    const auto text = ResponseText(tokenizer, {size - 1, 5, 6}),
               padded = ResponseText(tokenizer, {size - 1, size, 5, size + 70, 6});
    ASSERT_TRUE(text.ok() && padded.ok()) << text.status() << padded.status();
    EXPECT_EQ(*padded, *text);
  });
}

// A run of byte tokens is characters only if all of it is: one byte more or less changes all of its text.
TEST_F(StopTextsTest, AStopTextMayAppearWithTheLastByteOfACharacter) {
  int with_bytes = 0;
  ForEachTokenizer([&](const artifact::Tokenizer& tokenizer) {
    if (!tokenizer.TokenToId("<0xE2>").has_value()) return;
    ++with_bytes;
    const auto bytes = [&](const std::string& text) {
      std::vector<int32_t> ids;
      for (const char c : text)
        ids.push_back(*tokenizer.TokenToId(absl::StrFormat("<0x%02X>", static_cast<uint8_t>(c))));
      return ids;
    };
    int stopped = 0;
    for (int round = 0; round < 40; ++round) {
      std::string text;
      while (text.size() < 700)
        absl::StrAppend(&text, Below(3) == 0 ? "ab c" : Below(2) == 0 ? "\xE2\x98\x83" : "\xC3\xA9");
      const size_t end = text.find("ab c", 600);
      if (end == std::string::npos) continue;
      const size_t begin = text.rfind("ab c", end - 20);
      Expect(tokenizer, bytes(text), {text.substr(begin, end + 4 - begin)}, &stopped);
    }
    EXPECT_GT(stopped, 30);
  });
  EXPECT_GT(with_bytes, 0);
}

}  // namespace
}  // namespace rlhf::rollout
