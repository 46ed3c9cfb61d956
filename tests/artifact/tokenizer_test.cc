// Ids against those the `tokenizers` library gives (tests/golden/generate_tokenizer.py).
#include "artifact/tokenizer.h"

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "absl/time/time.h"
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
    if (!c["ids"].is_null()) {
      EXPECT_EQ(*ids, c["ids"].get<std::vector<int32_t>>()) << text;
    }
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

TEST(TokenizerTest, ATrainedTokenizerLoads) {
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

class SpecialIdsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::copy(SourceDir() + "/tests/golden/tokenizer.json", dir_.File("tokenizer.json"));
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileDurably(dir_.File(name), text).ok());
  }
  std::vector<int32_t> Ends() {
    const auto tokenizer = Tokenizer::Load(dir_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    if (!tokenizer.ok()) return {};
    const std::vector<int32_t> ends = (*tokenizer)->eos_ids();
    EXPECT_EQ((*tokenizer)->eos_id(), ends.empty() ? std::nullopt : std::optional(ends.front()));
    for (const int32_t id : ends) EXPECT_TRUE((*tokenizer)->EndsText(id));
    EXPECT_FALSE((*tokenizer)->EndsText(17));
    return ends;
  }
  ScratchDir dir_;
};

TEST_F(SpecialIdsTest, EveryIdOfAListEndsAText) {
  EXPECT_THAT(Ends(), testing::IsEmpty());
  Write("config.json", R"({"vocab_size": 1000, "eos_token_id": [9, 8]})");
  EXPECT_THAT(Ends(), testing::ElementsAre(9, 8));
  Write("generation_config.json", R"({"temperature": 0.6})");  // says nothing about it
  EXPECT_THAT(Ends(), testing::ElementsAre(9, 8));
  Write("generation_config.json", R"({"eos_token_id": [7, 2, 999, 7]})");  // 999: padded beyond the tokenizer's
  EXPECT_THAT(Ends(), testing::ElementsAre(7, 2, 999));
  Write("tokenizer_config.json", R"({"eos_token": "</s>"})");  // what complete texts end with comes first
  EXPECT_THAT(Ends(), testing::ElementsAre(2, 7, 999));
  Write("generation_config.json", R"({"eos_token_id": 5})");
  EXPECT_THAT(Ends(), testing::ElementsAre(2, 5));
  Write("generation_config.json", R"({"eos_token_id": -1})");  // "none", as some files say it
  EXPECT_THAT(Ends(), testing::ElementsAre(2));
}

TEST_F(SpecialIdsTest, ANameThatTheVocabularyHasNotIsRefused) {
  for (const std::string key : {"eos_token", "bos_token", "pad_token"}) {
    Write("tokenizer_config.json", "{\"" + key + "\": {\"content\": \"<none of ours>\"}}");
    const absl::Status status = Tokenizer::Load(dir_.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(std::string(status.message()),
                testing::HasSubstr("tokenizer_config.json: " + key + ": expected a token of tokenizer.json"));
    Write("tokenizer_config.json", "{\"" + key + "\": null}");
    EXPECT_TRUE(Tokenizer::Load(dir_.path()).ok());
  }
}

TEST_F(SpecialIdsTest, TheConfigurationsFlagsOfAddedTokensCount) {
  const auto ids = [&](const std::string& text) {
    const auto tokenizer = Tokenizer::Load(dir_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return (*tokenizer)->Encode(text, {.add_special_tokens = false, .parse_special_tokens = true}).value();
  };
  const auto refused = [&](const std::string& config, const std::string& says) {
    Write("tokenizer_config.json", config);
    const absl::Status status = Tokenizer::Load(dir_.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << config;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(says));
  };
  EXPECT_GT(ids("</s>  ").size(), 1u);
  Write("tokenizer_config.json",
        R"({"added_tokens_decoder": {"2": {"content": "</s>", "special": true, "rstrip": true}}})");
  EXPECT_EQ(ids("</s>  "), std::vector<int32_t>{2});
  refused(R"({"added_tokens_decoder": {"3": {"content": "</s>", "special": true}}})", "\"</s>\" under another id");
  refused(R"({"added_tokens_decoder": {"9999": {"content": "<x>"}}})", "\"<x>\" is not among the added_tokens");
  refused(R"({"added_tokens_decoder": {"2": "</s>"}})", "expected an object");
  refused(R"({"added_tokens_decoder": []})", "expected an object");
  refused(R"({"add_prefix_space": true})", "add_prefix_space: expected false, as tokenizer.json has it, found true");
  Write("tokenizer_config.json", R"({"add_prefix_space": false})");
  EXPECT_GT(ids("a").size(), 0u);
}

// As in transformers, by any of them.
TEST_F(SpecialIdsTest, SpecialIsWhatEitherFileMarksAndWhatHasAName) {
  auto json = nlohmann::json::parse(ReadFile(dir_.File("tokenizer.json")).value());
  const auto text = [&](const std::string& config) {
    Write("tokenizer_config.json", config);
    const auto tokenizer = Tokenizer::Load(dir_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return (*tokenizer)->Decode({2}).value();
  };
  EXPECT_EQ(text(R"({"added_tokens_decoder": {"2": {"content": "</s>", "special": false}}})"), "");
  json["added_tokens"][2]["special"] = false;
  Write("tokenizer.json", json.dump());
  EXPECT_EQ(text("{}"), "</s>");
  EXPECT_EQ(text(R"({"added_tokens_decoder": {"2": {"content": "</s>", "special": true}}})"), "");
  EXPECT_EQ(text(R"({"eos_token": {"content": "</s>"}})"), "");
  EXPECT_EQ(text(R"({"additional_special_tokens": ["</s>"]})"), "");
  EXPECT_EQ(text(R"({"extra_special_tokens": ["</s>"]})"), "");
  EXPECT_EQ(text(R"({"extra_special_tokens": {"end": {"content": "</s>"}}})"), "");
}

TEST_F(SpecialIdsTest, AnEndOfTextThatCannotComeIsRefused) {
  const auto refuses = [&](const std::string& name, const std::string& value, const std::string& found) {
    Write(name, "{\"vocab_size\": 1000, \"eos_token_id\": " + value + "}");
    const absl::Status status = Tokenizer::Load(dir_.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << value;
    EXPECT_THAT(std::string(status.message()),
                testing::AllOf(testing::HasSubstr(name), testing::HasSubstr("eos_token_id: expected an id of 0 to 999"),
                               testing::EndsWith(found)));
  };
  for (const std::string name : {"config.json", "generation_config.json"}) {
    refuses(name, "[]", "an empty list; leave the key out if there is no such id");
    refuses(name, "[2, -1]", "-1");
    refuses(name, "[2, 1000]", "1000");
    refuses(name, "1000", "1000");
    refuses(name, "-2", "-2");
    refuses(name, "[2, 18446744073709551615]", "18446744073709551615");
    refuses(name, "[2, \"</s>\"]", "\"</s>\"");
    refuses(name, "[2, [3]]", "array");
    refuses(name, "2.5", "2.5");
    Write(name, R"({"vocab_size": 1000, "eos_token_id": [2, 999]})");
    EXPECT_THAT(Ends(), testing::ElementsAre(2, 999));
  }
  Write("generation_config.json", "{\"eos_token_id\": [2, ");
  EXPECT_THAT(std::string(Tokenizer::Load(dir_.path()).status().message()), testing::HasSubstr("is the file damaged?"));
}

// A small BPE whose parts a test replaces.
nlohmann::json SmallTokenizer() {
  return {
      {"added_tokens", nlohmann::json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder", nullptr},
      {"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}, {"\xC3\x83", 3}}}, {"merges", {"a b"}}}}};
}

absl::Status Encoded(const nlohmann::json& json, const std::string& text) {
  const auto tokenizer = Tokenizer::FromJson(json.dump(), "tokenizer.json");
  return tokenizer.ok() ? (*tokenizer)->Encode(text).status() : tokenizer.status();
}

TEST(TokenizerTest, WhatIsNotSupportedIsNamed) {
  const auto whole = ReadFile(SourceDir() + "/tests/golden/tokenizer.json");
  ASSERT_TRUE(whole.ok());
  const nlohmann::json good = nlohmann::json::parse(*whole);
  const auto refuses = [&](const char* pointer, const nlohmann::json& value, const std::string& name) {
    nlohmann::json changed = good;
    changed[nlohmann::json::json_pointer(pointer)] = value;
    const auto made = Tokenizer::FromJson(changed.dump(), "tokenizer.json");
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument) << pointer;
    EXPECT_THAT(std::string(made.status().message()), testing::HasSubstr(name)) << pointer;
  };
  refuses("/model/dropout", 0.1, "model.dropout");
  refuses("/model/type", "WordLevel", "WordLevel");
  refuses("/model/new_option", true, "model.new_option");
  refuses("/normalizer", {{"type", "Nmt"}}, "Nmt");
  refuses("/pre_tokenizer", {{"type", "UnicodeScripts"}}, "UnicodeScripts");
  refuses("/pre_tokenizer",
          {{"type", "Split"}, {"pattern", {{"Regex", "[a&&b]"}}}, {"behavior", "Isolated"}, {"invert", false}}, "&&");
  refuses("/pre_tokenizer",
          {{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}, {"invert", false}},
          "pattern.Regex");
  refuses("/pre_tokenizer",
          {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Sometimes"}, {"invert", false}},
          "Sometimes");
  refuses("/decoder", {{"type", "CTC"}}, "CTC");
  refuses("/post_processor", {{"type", "Other"}}, "Other");
  refuses("/added_tokens/0/id", 77, "added_tokens[0].id");
  refuses("/unheard_of", 1, "unheard_of");
}

TEST(TokenizerTest, LettersThatAreSeveralWithoutCaseAreRefused) {
  const auto compiled = [](const std::string& pattern) {
    nlohmann::json json = SmallTokenizer();
    json["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    return Tokenizer::FromJson(json.dump(), "tokenizer.json").status();
  };
  // The library finds "\xC3\x9F" for "ss", the sign for "fi", and the other way round.
  for (const char* pattern : {"(?i)ss", "(?i:xS)s|(?i:aFi)", "(?i)\xC3\x9F", "(?i)\\x{df}", "(?i:\\u00df)", "(?i)s{2}",
                              "(?i)[\xC3\x9F]", "(?i)[^a]", "(?i)\\p{L}", "(?i)[\\p{L}]", "a(?i)b|c", "(?i:(st))"}) {
    const absl::Status status = compiled(pattern);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("is not supported")) << pattern;
  }
  for (const char* pattern : {"(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)", "(?i:s)s", "(?i:(?-i:ss))",
                              "ss|fi", "(?i:s)|\\p{L}", "[^(?i)]\xC3\x9F", "(?i)a\\s+s+", "(?i)s|s", "(a|(?i)b)"}) {
    EXPECT_TRUE(compiled(pattern).ok()) << pattern << ": " << compiled(pattern);
  }
}

// Recorded from the `tokenizers` library.
TEST(TokenizerTest, WhatTakesTheBeginningAwayLeavesNoFirstPiece) {
  nlohmann::json json = SmallTokenizer();
  json["model"]["vocab"]["\xE2\x96\x81"] = 4;
  json["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", "\xE2\x96\x81"}, {"prepend_scheme", "first"}, {"split", true}};
  for (const nlohmann::json& pattern : {nlohmann::json{{"String", "a"}}, nlohmann::json{{"Regex", "\\Aa"}}}) {
    json["normalizer"] = {{"type", "Replace"}, {"pattern", pattern}, {"content", ""}};
    const auto tokenizer = Tokenizer::FromJson(json.dump(), "tokenizer.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->Encode("ab").value(), std::vector<int32_t>{1}) << pattern;
    EXPECT_EQ((*tokenizer)->Encode("b").value(), (std::vector<int32_t>{4, 1})) << pattern;
  }
  // The library ends with a panic for some texts.
  json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"Regex", "a*"}}}, {"content", "b"}};
  EXPECT_THAT(std::string(Encoded(json, "a").message()), testing::HasSubstr("found one that may match nothing"));
  json["normalizer"]["pattern"] = {{"String", ""}};
  EXPECT_THAT(std::string(Encoded(json, "a").message()), testing::HasSubstr("found one that may match nothing"));
}

// Recorded from the `tokenizers` library.
TEST(TokenizerTest, WhiteSpaceThatATokenTookIsNoSecondToken) {
  nlohmann::json json = SmallTokenizer();
  json["added_tokens"] = {{{"id", 9}, {"content", " "}, {"lstrip", true}, {"rstrip", true}, {"normalized", false}}};
  const auto both = Tokenizer::FromJson(json.dump(), "tokenizer.json");
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ((*both)->Encode("\t\n  ").value(), std::vector<int32_t>{9});
  EXPECT_EQ((*both)->Encode("a   b").value(), (std::vector<int32_t>{0, 9, 1}));
  json["added_tokens"][0]["lstrip"] = false;
  const auto right = Tokenizer::FromJson(json.dump(), "tokenizer.json");
  ASSERT_TRUE(right.ok()) << right.status();
  EXPECT_EQ((*right)->Encode("a  b").value(), (std::vector<int32_t>{0, 9, 9, 1}));
}

TEST(TokenizerTest, InvalidUtf8BecomesReplacementCharacters) {
  const auto tokenizer = Tokenizer::Load(SourceDir() + "/tests/golden");
  ASSERT_TRUE(tokenizer.ok());
  // Each maximal part that could have begun a sequence: a cut three-byte sequence, an overlong one, a surrogate.
  const auto ids = (*tokenizer)->Encode("a\xE2\x82z\xC0\xAF\xED\xA0\x80", {.add_special_tokens = false});
  ASSERT_TRUE(ids.ok());
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(*(*tokenizer)->Decode(*ids), "a" + r + "z" + r + r + r + r + r);
}

TEST(TokenizerTest, SpecialTokensStayTextWhereTheCallerSaysSo) {
  const auto tokenizer = Tokenizer::Load(SourceDir() + "/tests/golden");
  ASSERT_TRUE(tokenizer.ok());
  const std::vector<size_t> plain_at{1};
  const auto ids =
      (*tokenizer)
          ->Encode("</s></s>", {.add_special_tokens = false, .parse_special_tokens = true, .plain_at = plain_at});
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->back(), 2);
  EXPECT_EQ(std::count(ids->begin(), ids->end(), 2), 1);
  EXPECT_EQ(*(*tokenizer)->Decode(*ids, false), "</s></s>");
}

nlohmann::json Repeated(const nlohmann::json& step, size_t times) {
  nlohmann::json list = nlohmann::json::array();
  for (size_t i = 0; i < times; ++i) list.push_back(step);
  return list;
}

TEST(HostileTokenizerTest, AModelWithoutItsTypeIsRead) {
  nlohmann::json json = SmallTokenizer();
  json["model"]["type"] = nullptr;
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  EXPECT_TRUE(Encoded(json, "ab").ok()) << Encoded(json, "ab");
}

TEST(HostileTokenizerTest, TextsDoNotGrowWithoutBounds) {
  // Each of these doubles the text; a machine would be full after forty.
  nlohmann::json normalizer = SmallTokenizer();
  normalizer["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers", Repeated({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}}, 60)}};
  EXPECT_EQ(Encoded(normalizer, "a").code(), absl::StatusCode::kResourceExhausted);
  normalizer["normalizer"]["normalizers"][0]["pattern"] = {{"Regex", "a"}};
  EXPECT_EQ(Encoded(normalizer, "a").code(), absl::StatusCode::kResourceExhausted);
  nlohmann::json bytes = SmallTokenizer();
  bytes["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers", Repeated({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}, 60)}};
  EXPECT_EQ(Encoded(bytes, "\xC3\xA4").code(), absl::StatusCode::kResourceExhausted);
  nlohmann::json decoder = SmallTokenizer();
  decoder["decoder"] = {
      {"type", "Sequence"},
      {"decoders", Repeated({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}}, 60)}};
  const auto made = Tokenizer::FromJson(decoder.dump(), "tokenizer.json");
  ASSERT_TRUE(made.ok()) << made.status();
  const absl::Status blown_up = (*made)->Decode({0}).status();
  EXPECT_EQ(blown_up.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(blown_up.message()), testing::HasSubstr("more than 1048592 bytes"));  // 1 MiB + 16 of "a"
}

TEST(HostileTokenizerTest, WhatCostsMoreThanItsLengthIsRefused) {
  const auto refused = [](const nlohmann::json& json, const std::string& says) {
    const absl::Status status = Encoded(json, "a");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << says;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(says));
  };
  nlohmann::json steps = SmallTokenizer();
  steps["normalizer"] = {{"type", "Sequence"}, {"normalizers", Repeated({{"type", "Lowercase"}}, 65)}};
  refused(steps, "at most 64 steps");
  steps["normalizer"]["normalizers"] =
      Repeated({{"type", "Sequence"}, {"normalizers", Repeated({{"type", "Lowercase"}}, 9)}}, 8);
  refused(steps, "at most 64 steps");
  // Found in the text again and again, each time to nearly its end.
  const std::string longest(4000, 'a');
  nlohmann::json added = SmallTokenizer();
  added["added_tokens"] = {{{"id", 9}, {"content", longest}}};
  refused(added, "at most 2048 bytes");
  nlohmann::json unigram = SmallTokenizer();
  unigram["model"] = {{"type", "Unigram"}, {"vocab", nlohmann::json::array()}, {"unk_id", 0}};
  unigram["model"]["vocab"].push_back(nlohmann::json::array({longest, -1.0}));
  refused(unigram, "at most 2048 bytes");
  nlohmann::json wordpiece = SmallTokenizer();
  wordpiece["model"] = {{"type", "WordPiece"}, {"vocab", {{"[UNK]", 0}, {"##" + longest, 1}}}};
  refused(wordpiece, "at most 2048 bytes");
  // A thousand ids, a thousand times.
  nlohmann::json around = SmallTokenizer();
  const nlohmann::json special = {{"SpecialToken", {{"id", "s"}, {"type_id", 0}}}};
  around["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", Repeated(special, 1000)},
      {"special_tokens", {{"s", {{"id", "s"}, {"ids", Repeated(0, 100)}, {"tokens", nlohmann::json::array()}}}}}};
  refused(around, "at most 256 tokens");
  around["post_processor"]["special_tokens"]["s"]["ids"] = Repeated(0, 1000);
  refused(around, "at most 256 tokens");
  around["post_processor"] = {
      {"type", "Sequence"},
      {"processors", Repeated({{"type", "BertProcessing"}, {"sep", {"b", 1}}, {"cls", {"a", 0}}}, 1000)}};
  refused(around, "at most 256 tokens");
}

// A prompt may be hostile, too: marks in an order that normalizing turns around.
TEST(HostileTokenizerTest, ManyMarksInARowCostTheirNumber) {
  std::string text = "a";
  for (int i = 0; i < 100'000; ++i) text += i % 2 == 0 ? "\xCC\x81" : "\xCC\x96";
  for (const char* form : {"NFC", "NFD", "NFKC", "NFKD"}) {
    nlohmann::json json = SmallTokenizer();
    json["normalizer"] = {{"type", form}};
    const absl::Time started = absl::Now();
    EXPECT_TRUE(Encoded(json, text).ok()) << form;
    EXPECT_LT(absl::Now() - started, absl::Seconds(10)) << form;
  }
}

TEST(HostileTokenizerTest, AnExpressionThatReadsAllAtEveryPlaceEnds) {
  nlohmann::json json = SmallTokenizer();
  json["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "[\\s\\S]*(?:x|y)"}}}, {"behavior", "Isolated"}, {"invert", false}};
  EXPECT_TRUE(Encoded(json, std::string(1000, 'a') + "x" + std::string(1000, 'b')).ok());
  EXPECT_EQ(Encoded(json, std::string(8'000'000, 'a')).code(), absl::StatusCode::kResourceExhausted);
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
