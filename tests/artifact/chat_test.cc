// Chat templates against what `transformers` makes of them (tests/golden/chat/generate.py), and the interpreter's
// limits.
#include "artifact/chat/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "artifact/tokenizer.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::artifact {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<ChatMessage> Messages(const json& list) {
  std::vector<ChatMessage> out;
  for (const auto& item : list) out.push_back({item["role"].get<std::string>(), item["content"].get<std::string>()});
  return out;
}

absl::StatusOr<std::string> Rendered(const std::string& source, const std::vector<ChatMessage>& messages,
                                     bool generation = true) {
  const auto made = ChatTemplate::Parse(source, "template", {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!made.ok()) return made.status();
  ChatOptions options;
  options.add_generation_prompt = generation;
  options.now = absl::FromUnixSeconds(1'700'000'000);
  auto chat = (*made)->Render(messages, {}, options);
  if (!chat.ok()) return chat.status();
  EXPECT_TRUE(chat->plain_at.empty());
  return chat->text;
}

void ExpectAsRecorded(const absl::StatusOr<std::string>& got, const json& want, const std::string& what) {
  if (want.contains("error")) {
    EXPECT_FALSE(got.ok()) << what << " gave " << *got << "; transformers refuses it: " << want["error"];
    return;
  }
  ASSERT_TRUE(got.ok()) << what << ": " << got.status();
  EXPECT_EQ(*got, want["text"].get<std::string>()) << what;
}

TEST(ChatTest, TheFamiliesTemplatesGiveWhatTransformersGives) {
  const json golden = Golden("chat/cases.json");
  ASSERT_GE(golden["templates"].size(), 12u);
  for (const auto& [family, results] : golden["templates"].items()) {
    const auto source = ReadFile(SourceDir() + "/tests/golden/chat/templates/" + family + ".jinja");
    ASSERT_TRUE(source.ok());
    const auto made = ChatTemplate::Parse(*source, family, {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
    ASSERT_TRUE(made.ok()) << made.status();
    for (size_t i = 0; i < results.size(); ++i) {
      for (const bool generation : {false, true}) {
        ChatOptions options;
        options.add_generation_prompt = generation;
        const auto chat = (*made)->Render(Messages(golden["conversations"][i]), {}, options);
        ExpectAsRecorded(chat.ok() ? absl::StatusOr<std::string>(chat->text) : chat.status(),
                         results[i][generation ? 1 : 0],
                         absl::StrCat(family, ", conversation ", i, generation ? ", generating" : ""));
      }
    }
  }
}

TEST(ChatTest, SyntaxGivesWhatTransformersGives) {
  const json golden = Golden("chat/cases.json");
  const auto messages = Messages(golden["conversations"][3]);
  ASSERT_GT(golden["snippets"].size(), 60u);
  for (const auto& snippet : golden["snippets"]) {
    const auto source = snippet["source"].get<std::string>();
    ExpectAsRecorded(Rendered(source, messages), snippet, source);
  }
}

TEST(ChatTest, WhatIsNotSupportedIsNamed) {
  const std::vector<ChatMessage> messages{{"user", "x"}};
  const auto refuses = [&](const std::string& source, const std::string& name) {
    const auto got = Rendered(source, messages);
    EXPECT_EQ(got.status().code(), absl::StatusCode::kInvalidArgument) << source;
    EXPECT_THAT(std::string(got.status().message()), HasSubstr(name)) << source;
    EXPECT_THAT(std::string(got.status().message()), HasSubstr("line 2")) << source;
  };
  refuses("\n{% include 'x' %}", "include");
  refuses("\n{% import 'x' as y %}", "import");
  refuses("\n{% call f() %}{% endcall %}", "call");
  refuses("\n{% raw %}{% endraw %}", "raw");
  refuses("\n{{ 1|groupby('x') }}", "groupby");
  refuses("\n{{ 1 is superb }}", "superb");
  refuses("\n{{ lipsum() }}", "lipsum");
  refuses("\n{{ f(*messages) }}", "\"*\"");
  refuses("\n{{ messages|sort(attribute='role') }}", "attribute");
  refuses("\n{% set ns = namespace() %}{% set ns.a = ns %}", "namespace");
}

TEST(ChatTest, TimeMemoryAndNestingAreBounded) {
  const std::vector<ChatMessage> messages{{"user", "x"}};
  const auto exhausts = [&](const std::string& source) {
    const auto got = Rendered(source, messages);
    EXPECT_FALSE(got.ok()) << source.substr(0, 80);
  };
  exhausts("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
  exhausts("{% set ns = namespace(x='ab') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}");
  exhausts("{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}");
  exhausts("{% set ns = namespace(x=[1]) %}{% for a in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}");
  exhausts("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}");
  exhausts("{{ 'x' * 999999999999 }}");
  exhausts("{{ [1] * 999999999999 }}");
  exhausts(
      "{% for a in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * "
      "99 }}{% endfor %}");
  // Each of these pays one step for a walk through much.
  std::string keys, names, fields = "{% set ns = namespace() %}";
  for (int i = 0; i < 2000; ++i) {
    absl::StrAppend(&keys, "'", i, "': 1,");
    absl::StrAppend(&names, "{% set a", i, " = 1 %}");
    absl::StrAppend(&fields, "{% set ns.a", i, " = 1 %}");
  }
  exhausts("{% set d = {" + keys + "} %}");
  exhausts(names);
  exhausts(fields);
  const std::string text =
      "{% set s = '" + std::string(64, 'a') + "' %}{% set t = s * 15000 %}{% set u = s * 6000 ~ 'b' %}";
  ASSERT_TRUE(Rendered(text, messages).ok());
  exhausts(text + "{{ u in t }}");
  exhausts(text + "{{ t.find(u) }}");
  exhausts(text + "{{ t.count(u) }}");
  exhausts(text + "{{ t.replace(u, '') }}");
  exhausts(text + "{{ t.rsplit(u) }}");
  exhausts(text + "{{ ([t] * 3000)|sort|length }}");
  std::string deep = "1";
  for (int i = 0; i < 5000; ++i) deep = "(" + deep;
  exhausts("{{ " + deep + " }}");
  std::string sum = "1";
  for (int i = 0; i < 5000; ++i) sum += "+1";
  exhausts("{{ " + sum + " }}");
  std::string ifs, ends;
  for (int i = 0; i < 500; ++i) ifs += "{% if 1 %}", ends += "{% endif %}";
  exhausts(ifs + ends);
}

// A long answer is split at its lines: that costs its length, not its square.
TEST(ChatTest, LongMessagesCanBeTakenApart) {
  std::string answer;
  for (int i = 0; i < 4000; ++i) absl::StrAppend(&answer, "line ", i, " of a long answer\n");
  const auto got =
      Rendered("{% set c = messages[0].content %}{{ c.split('\n')|length }} {{ c.rsplit('\n', 1)[0][-6:] }}",
               {{"user", answer}});
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, "4001 answer");
}

// A model directory with a byte-level tokenizer whose <pad>, <s>, </s> are special.
class ChatTokensTest : public testing::Test {
 protected:
  std::unique_ptr<Tokenizer> Load(const std::string& chat_template) {
    EXPECT_TRUE(MakeDirs(dir_.path()).ok());
    EXPECT_TRUE(
        WriteFileDurably(dir_.File("tokenizer.json"), *ReadFile(SourceDir() + "/tests/golden/tokenizer.json")).ok());
    const json config{{"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}}}, {"chat_template", chat_template}};
    EXPECT_TRUE(WriteFileDurably(dir_.File("tokenizer_config.json"), config.dump()).ok());
    auto made = Tokenizer::Load(dir_.path());
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  ScratchDir dir_;
};

TEST_F(ChatTokensTest, TheTemplatesSpecialTokensAreTokensTheMessagesAreText) {
  const auto tokenizer = Load("{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}");
  const auto ids = tokenizer->EncodeChat(std::vector<ChatMessage>{{"user", "a</s>b"}, {"user", "</s>"}});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->front(), 1);
  EXPECT_EQ(std::count(ids->begin(), ids->end(), 2), 2);  // the template's own two
  EXPECT_EQ(*tokenizer->Decode(*ids, false), "<s>a</s>b</s></s></s>");
  const auto text = tokenizer->Encode("</s>", {.add_special_tokens = false});
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(std::vector<int32_t>(ids->end() - 1 - static_cast<int64_t>(text->size()), ids->end() - 1), *text);
}

TEST_F(ChatTokensTest, AModelWithoutATemplateSaysSo) {
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("tokenizer.json"), *ReadFile(SourceDir() + "/tests/golden/tokenizer.json")).ok());
  const auto tokenizer = Tokenizer::Load(dir_.path());
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->EncodeChat(std::vector<ChatMessage>{{"user", "a"}}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ChatTokensTest, AnUnsupportedTemplateFailsOnlyWhereItIsNeeded) {
  const auto tokenizer = Load("{% include 'x' %}");
  EXPECT_TRUE(tokenizer->Encode("plain").ok());
  const auto chat = tokenizer->EncodeChat(std::vector<ChatMessage>{{"user", "a"}});
  EXPECT_EQ(chat.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(chat.status().message()), HasSubstr("tokenizer_config.json"));
}

TEST_F(ChatTokensTest, ATemplatesNameThatNestsDeeplyIsNoName) {
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("tokenizer.json"), *ReadFile(SourceDir() + "/tests/golden/tokenizer.json")).ok());
  const std::string deep = std::string(300'000, '[') + std::string(300'000, ']');
  ASSERT_TRUE(WriteFileDurably(dir_.File("tokenizer_config.json"),
                               absl::StrCat("{\"chat_template\":[{\"name\":", deep, ",\"template\":", deep,
                                            "},{\"name\":\"default\",\"template\":\"x\"}]}"))
                  .ok());
  const auto tokenizer = Tokenizer::Load(dir_.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->EncodeChat(std::vector<ChatMessage>{{"user", "a"}}).ok());
}

TEST_F(ChatTokensTest, AFileOfItsOwnComesFirst) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("chat_template.jinja"), "own {{ messages[0].content }}").ok());
  const auto tokenizer = Load("other");
  const auto ids = tokenizer->EncodeChat(std::vector<ChatMessage>{{"user", "a"}});
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*tokenizer->Decode(*ids, false), "own a");
}

TEST(ChatTest, TheDayIsOnlySeenWhenGiven) {
  const auto made =
      ChatTemplate::Parse("{{ strftime_now('%Y-%m-%d') if strftime_now is defined else 'no day' }}", "t", {});
  ASSERT_TRUE(made.ok());
  const std::vector<ChatMessage> messages{{"user", "x"}};
  EXPECT_EQ((*made)->Render(messages, {})->text, "no day");
  ChatOptions options;
  options.now = absl::FromUnixSeconds(1'700'000'000);
  EXPECT_EQ((*made)->Render(messages, {}, options)->text, "2023-11-14");
}

}  // namespace
}  // namespace rlhf::artifact
