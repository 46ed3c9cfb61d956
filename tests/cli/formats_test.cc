// Comparisons in other people's formats, and files of them.
#include <zlib.h>

#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/feedback/formats.h"
#include "cli/feedback/record_reader.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

std::string Problem(const std::string& text, Format format = Format::kAuto) {
  const auto parsed = ParseRecord(text, format);
  return parsed.ok() ? "" : std::string(parsed.status().message());
}

v1::Comparison One(const std::string& text, Format format = Format::kAuto) {
  const auto parsed = ParseRecord(text, format);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  if (!parsed.ok() || parsed->size() != 1) {
    ADD_FAILURE() << "expected one comparison of " << text;
    return {};
  }
  return parsed->front();
}

TEST(FormatsTest, PlainPairs) {
  const auto c = One(
      R"({"prompt":"Q","chosen":"yes","rejected":"no","strength":0.5,"category":"known","tags":{"t":"1"},"rater":7,"id":"x"})");
  EXPECT_EQ(c.prompt().text(), "Q");
  EXPECT_EQ(c.first().text(), "yes");
  EXPECT_EQ(c.second().text(), "no");
  EXPECT_EQ(c.preference(), v1::FIRST);
  EXPECT_EQ(c.strength(), 0.5);
  EXPECT_EQ(c.prompt().category(), "known");
  EXPECT_EQ(c.prompt().tags().at("t"), "1");
  EXPECT_EQ(c.rater(), "7");
  EXPECT_EQ(c.id(), "x");
  EXPECT_EQ(One(R"({"prompt":"Q","chosen":"a","rejected":"b","tie":true})").preference(), v1::TIE);
  EXPECT_EQ(One(R"({"prompt":"Q","chosen":"a","rejected":"b","tie":false})").preference(), v1::FIRST);
  // What only looks like another format.
  EXPECT_EQ(One(R"({"prompt":"Q","chosen":"\n\nHuman: x\n\nAssistant: a","rejected":"b"})").prompt().text(), "Q");
  EXPECT_THAT(Problem(R"({"prompt":"Q","first":"a","second":"b"})"), HasSubstr("the key \"chosen\""));
  EXPECT_EQ(Problem(R"({"prompt":"Q","chosen":"a","rejected":"b","tags":{"t":1}})"), "expected a text in \"tags.t\"");
  EXPECT_EQ(Problem(R"({"prompt":"Q","chosen":"a"})"), "expected the key \"rejected\", found none");
  EXPECT_EQ(Problem(R"({"prompt":"Q","chosen":"a","rejected":3})"), "expected a text in \"rejected\", found number");
  EXPECT_THAT(Problem("{\"prompt\":"), HasSubstr("expected JSON"));
  EXPECT_THAT(Problem("[1]"), HasSubstr("expected a JSON object"));
}

TEST(FormatsTest, ChatMessagesSplitBeforeTheLastAnswer) {
  const std::string system = R"({"role":"system","content":"Be brief."})", user = R"({"role":"user","content":"Hi"})";
  const auto c =
      One(R"({"chosen":[)" + system + "," + user + R"(,{"role":"assistant","content":"Hello."}],"rejected":[)" +
          system + "," + user + R"(,{"role":"assistant","content":"What?"}]})");
  EXPECT_EQ(c.first().text(), "Hello.");
  EXPECT_EQ(c.second().text(), "What?");
  ASSERT_EQ(c.prompt().messages_size(), 2);
  EXPECT_EQ(c.prompt().messages(1).content(), "Hi");
  EXPECT_EQ(c.prompt().text(), "system: Be brief.\n\nuser: Hi");
  // The prompt apart, as a list or a text; one turn of a user is a plain prompt.
  const auto apart =
      One("{\"prompt\":[" + user +
          R"(],"chosen":[{"role":"assistant","content":"a"}],"rejected":[{"role":"assistant","content":"b"}]})");
  EXPECT_EQ(apart.prompt().text(), "Hi");
  EXPECT_EQ(apart.prompt().messages_size(), 0);
  const auto text =
      One(R"({"prompt":"Hi","chosen":[{"role":"user","content":"Hi"},{"role":"assistant","content":"a"}],)"
          R"("rejected":[{"role":"user","content":"Hi"},{"role":"assistant","content":"b"}]})");
  EXPECT_EQ(text.prompt().text(), "Hi");
  // The prompt apart, and the sides begin with it or go on from it.
  const auto turns = [](const std::string& last) {
    return R"({"role":"assistant","content":"Hello."},{"role":"user","content":"Why?"},{"role":"assistant","content":")" +
           last + "\"}]";
  };
  for (const std::string& begin : {user + ",", std::string()}) {
    const auto longer = One("{\"prompt\":[" + user + "],\"chosen\":[" + begin + turns("a") + ",\"rejected\":[" + begin +
                            turns("b") + "}");
    EXPECT_EQ(longer.prompt().text(), "user: Hi\n\nassistant: Hello.\n\nuser: Why?");
    EXPECT_EQ(longer.prompt().messages_size(), 3);
  }
  // A system's message alone is no plain prompt.
  const auto alone =
      One("{\"prompt\":[" + system +
          R"(],"chosen":[{"role":"assistant","content":"a"}],"rejected":[{"role":"assistant","content":"b"}]})");
  EXPECT_EQ(alone.prompt().text(), "system: Be brief.");
  EXPECT_EQ(alone.prompt().messages_size(), 1);
  EXPECT_THAT(Problem("{\"chosen\":[" + user + R"(,{"role":"assistant","content":"a"}],"rejected":[)" + user + "," +
                      turns("b") + "}"),
              HasSubstr("differ in their last message only"));
  EXPECT_THAT(Problem(R"({"chosen":[{"role":"system","content":"A"},{"role":"assistant","content":"a"}],)"
                      R"("rejected":[{"role":"user","content":"A"},{"role":"assistant","content":"a"}]})"),
              HasSubstr("differ in their last message only"));
  EXPECT_THAT(Problem("{\"chosen\":[" + user + "],\"rejected\":[" + user + "]}"),
              HasSubstr("end with a message of the assistant"));
  EXPECT_THAT(Problem(R"({"chosen":[{"role":"user","content":"A"},{"role":"assistant","content":"a"}],)"
                      R"("rejected":[{"role":"user","content":"B"},{"role":"assistant","content":"a"}]})"),
              HasSubstr("differ in their last message only"));
}

TEST(FormatsTest, TranscriptsSplitBeforeTheAssistantsLastTurn) {
  const auto c = One(
      R"({"chosen":"\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Why?\n\nAssistant: Because.","rejected":"\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Why?\n\nAssistant: Be gone."})");
  EXPECT_EQ(c.prompt().text(), "\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Why?\n\nAssistant:");
  EXPECT_EQ(c.first().text(), " Because.");
  EXPECT_EQ(c.second().text(), " Be gone.");
  EXPECT_THAT(Problem(R"({"chosen":"\n\nHuman: A\n\nAssistant: a","rejected":"\n\nHuman: B\n\nAssistant: b"})"),
              HasSubstr("begin alike"));
  EXPECT_THAT(Problem(R"({"chosen":"\n\nAssistant: a","rejected":"\n\nAssistant: b"})"), HasSubstr("begin alike"));
  EXPECT_THAT(
      Problem(
          R"({"chosen":"\n\nHuman: A\n\nAssistant: a\n\nHuman: C\n\nAssistant: c","rejected":"\n\nHuman: A\n\nAssistant: b"})"),
      HasSubstr("another turn"));
}

TEST(FormatsTest, ArgillaOfBothGenerations) {
  const auto two = ParseRecord(
      R"({"fields":{"prompt":"Q","response1":"a","response2":"b"},"responses":[)"
      R"({"user_id":"u1","status":"submitted","values":{"preference":{"value":[{"value":"response2","rank":1},{"value":"response1","rank":2}]}}},)"
      R"({"user_id":"u2","status":"discarded","values":{"preference":{"value":[{"value":"response1","rank":1},{"value":"response2","rank":2}]}}},)"
      R"({"user_id":"u3","status":"submitted","values":{"preference":{"value":[{"value":"response1","rank":1},{"value":"response2","rank":1}]},"why":{"value":"alike"}}}]})",
      Format::kAuto);
  ASSERT_TRUE(two.ok()) << two.status();
  ASSERT_EQ(two->size(), 2u);
  EXPECT_EQ((*two)[0].preference(), v1::SECOND);
  EXPECT_EQ((*two)[0].rater(), "u1");
  EXPECT_EQ((*two)[1].preference(), v1::TIE);
  EXPECT_EQ((*two)[1].comment(), "alike");
  const auto newer =
      One(R"({"id":"r","fields":{"instruction":"Q","generation-0":"a","generation-1":"b"},"metadata":{},"responses":)"
          R"({"generation-0-rating":[{"value":4,"user_id":"u"}],"generation-1-rating":[{"value":2,"user_id":"u"}]}})");
  EXPECT_EQ(newer.preference(), v1::FIRST);
  EXPECT_EQ(newer.first_ratings().at("rating"), 4);
  EXPECT_EQ(newer.second_ratings().at("rating"), 2);
  EXPECT_EQ(
      One(R"({"fields":{"prompt":"Q","response1":"a","response2":"b"},"responses":{"preference":[{"value":["response2","response1"],"user_id":"u"}]}})")
          .preference(),
      v1::SECOND);
  const auto unanswered =
      ParseRecord(R"({"fields":{"prompt":"Q","response1":"a","response2":"b"},"responses":[]})", Format::kAuto);
  ASSERT_TRUE(unanswered.ok());
  EXPECT_TRUE(unanswered->empty());
  EXPECT_THAT(Problem(R"({"fields":{"prompt":"Q","response1":"a"},"responses":[]})"), HasSubstr("two answers"));
}

// One person's answers to one pair.
std::string Voice(const std::string& values) {
  return R"({"fields":{"prompt":"Q","response1":"a","response2":"b"},"responses":[{"user_id":"u","values":)" + values +
         "}]}";
}

TEST(FormatsTest, ArgillaRankingsLabelsAndRemarks) {
  const std::string second =
      R"("preference":{"value":[{"value":"response2","rank":1},{"value":"response1","rank":2}]})";
  // What a remark says is no verdict where there is one.
  const auto remarked = One(Voice(R"({"a":{"value":"both name the same cities"},"b":{"value":"but"},)" + second + "}"));
  EXPECT_EQ(remarked.preference(), v1::SECOND);
  EXPECT_EQ(remarked.comment(), "but\nboth name the same cities");
  const auto rated = One(Voice(R"({"a":{"value":"equally long"},"response1":{"value":1},"response2":{"value":3}})"));
  EXPECT_EQ(rated.preference(), v1::SECOND);
  EXPECT_EQ(rated.comment(), "equally long");
  const auto tie = One(Voice(R"({"choice":{"value":"about_equal"}})"));
  EXPECT_EQ(tie.preference(), v1::TIE);
  EXPECT_EQ(tie.comment(), "");
  for (const char* label : {"aboutTheSame", "“tie”", "[tie]", "bothbad", "tie|both"})
    EXPECT_EQ(One(Voice(R"({"choice":{"value":")" + std::string(label) + "\"}}")).preference(), v1::TIE) << label;
  // One word is a verdict, also beside ratings.
  EXPECT_EQ(One(Voice(R"({"a":{"value":"tie"},"response1":{"value":1},"response2":{"value":3}})")).preference(),
            v1::TIE);
  EXPECT_EQ(One(Voice(R"({"choice":{"value":"response2"},"why":{"value":"neither"}})")).preference(), v1::SECOND);
  for (const char* prose : {"entities", "it is the same thing over and over again"})
    EXPECT_THAT(Problem(Voice(R"({"why":{"value":")" + std::string(prose) + "\"}}")), HasSubstr("expected a ranking"));
  // As two lists; with a name that is no answer's; of one answer only.
  EXPECT_EQ(One(Voice(R"({"p":{"value":["response1","response2"],"rank":[2,1]}})")).preference(), v1::SECOND);
  EXPECT_EQ(One(Voice(R"({"p":{"value":["tie","response1","response2"]}})")).preference(), v1::FIRST);
  EXPECT_THAT(Problem(Voice(R"({"p":{"value":["response2"]}})")), HasSubstr("expected a ranking"));
  // Only what was submitted, which an older export does not say of anything.
  for (const auto& [status, taken] :
       {std::pair("null", 1u), {"\"submitted\"", 1u}, {"\"draft\"", 0u}, {"\"discarded\"", 0u}}) {
    const auto parsed = ParseRecord(R"({"fields":{"q":"Q","answer_a":"a","Answer B":"b"},"responses":[{"status":)" +
                                        std::string(status) + R"(,"values":{"p":{"value":["Answer B","answer_a"]}}}]})",
                                    Format::kAuto);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->size(), taken) << status;
  }
  EXPECT_THAT(Problem(R"({"fields":{"one":"Q","other":"R","response-1":"a","response-2":"b"},"responses":[]})"),
              HasSubstr("a prompt in \"fields\" (as prompt, instruction or question), found one, other"));
}

TEST(FormatsTest, KeysThatAreMissingOrOfAnotherKindAreSaid) {
  EXPECT_THAT(Problem(R"({"prompt":"Q","chosen":"a","rejected":"b"})", Format::kArgilla),
              HasSubstr("an object in \"fields\""));
  EXPECT_THAT(Problem(R"({"data":{"prompt":"Q","answer1":"a","answer2":"b"}})", Format::kLabelStudio),
              HasSubstr("a list in \"annotations\""));
  const auto parsed = ParseRecord(R"({"fields":{"prompt":"Q","response1":"a","response2":"b"}})", Format::kArgilla);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->empty());
  const std::string begin =
      R"({"data":{"prompt":"Q","answer1":"a","answer2":"b"},"annotations":[{"was_cancelled":null,"result":[)";
  EXPECT_EQ(One(begin + R"({"type":null,"value":{}},{"type":"pairwise","to_name":null,"value":{"selected":"right"}},)"
                        R"({"type":"textarea","value":{"text":[]}}]}]})")
                .preference(),
            v1::SECOND);
  EXPECT_THAT(Problem(R"({"data":{"prompt":"Q","answer1":"a","answer2":"b"},"annotations":[{"result":null}]})"),
              HasSubstr("annotations[].result"));
}

TEST(FormatsTest, LabelStudioPairwise) {
  const std::string data = R"("data":{"prompt":"Q","answer1":"a","answer2":"b"})";
  const auto several = ParseRecord(
      "{\"id\":1," + data +
          R"(,"annotations":[)"
          R"({"completed_by":10,"was_cancelled":false,"result":[{"type":"pairwise","from_name":"pw","to_name":"answer1,answer2","value":{"selected":"right"}}]},)"
          R"({"completed_by":{"id":3,"email":"x@example.org"},"result":[{"type":"pairwise","to_name":"answer1,answer2","value":{"selected":"left"}},)"
          R"({"type":"textarea","value":{"text":["clear"]}}]},)"
          R"({"completed_by":11,"was_cancelled":true,"result":[]}]})",
      Format::kAuto);
  ASSERT_TRUE(several.ok()) << several.status();
  ASSERT_EQ(several->size(), 2u);
  EXPECT_EQ((*several)[0].preference(), v1::SECOND);
  EXPECT_EQ((*several)[0].rater(), "10");
  EXPECT_EQ((*several)[1].preference(), v1::FIRST);
  EXPECT_EQ((*several)[1].rater(), "x@example.org");
  EXPECT_EQ((*several)[1].comment(), "clear");
  // The tag may compare them the other way round.
  EXPECT_EQ(
      One("{" + data +
          R"(,"annotations":[{"completed_by":1,"result":[{"type":"pairwise","to_name":"answer2,answer1","value":{"selected":"left"}}]}]})")
          .preference(),
      v1::SECOND);
  EXPECT_EQ(One(R"({"prompt":"Q","text1":"a","text2":"b","pw":"left","annotator":4,"annotation_id":1})").preference(),
            v1::FIRST);
  EXPECT_EQ(
      One("{" + data +
          R"(,"annotations":[{"completed_by":1,"result":[{"type":"choices","value":{"choices":["Both are the same"]}}]}]})")
          .preference(),
      v1::TIE);
  for (const char* chosen :
       {R"("answer1","answer2")", R"("Response 1 and Response 2 are, all in all, equally good")"}) {
    EXPECT_EQ(One("{" + data + R"(,"annotations":[{"completed_by":1,"result":[{"type":"choices","value":{"choices":[)" +
                  chosen + "]}}]}]}")
                  .preference(),
              v1::TIE)
        << chosen;
  }
  // Of a line of JSON-MIN the prompt is no choice, whatever is in it.
  EXPECT_EQ(One(R"({"prompt":"Are both the same?","text1":"a","text2":"b","pw":"right","annotator":4})").preference(),
            v1::SECOND);
  EXPECT_EQ(
      One(R"({"prompt":"Which cities?","text1":"a","text2":"b","zz":{"selected":"right"},"annotator":4})").preference(),
      v1::SECOND);
  EXPECT_EQ(One(R"({"prompt":"Q","text1":"a","text2":"b","choice":"Equal","annotator":4,"id":1})").preference(),
            v1::TIE);
  EXPECT_THAT(Problem(R"({"prompt":"the same","text1":"both","text2":"2","annotator":4,"id":1})"),
              HasSubstr("pairwise choice"));
  // The choice of two is the verdict, beside what else was chosen; older exports call annotations completions.
  EXPECT_EQ(
      One("{" + data +
          R"(,"completions":[{"result":[{"type":"pairwise","value":{"selected":"right"}},{"type":"choices","value":{"choices":["first"]}}]}]})")
          .preference(),
      v1::SECOND);
  EXPECT_THAT(Problem("{" + data + R"(,"annotations":[{"completed_by":1,"result":[]}]})"),
              HasSubstr("pairwise choice"));
}

TEST(FormatsTest, WhatIsExportedCanBeImported) {
  v1::Comparison c;
  c.set_id("c1");
  c.set_kind(v1::FEEDBACK_EDIT);
  c.mutable_prompt()->set_text("Q\n\"ü\"");
  c.mutable_prompt()->set_category("known");
  c.mutable_first()->set_text("bad");
  c.mutable_second()->set_text("better");
  c.mutable_second()->set_source("edited");
  c.set_preference(v1::SECOND);
  c.set_rater("rater-0123456789ab");
  EXPECT_EQ(One(FormatComparison(c, "own")).SerializeAsString(), c.SerializeAsString());
  const auto plain = One(FormatComparison(c, "plain"));
  EXPECT_EQ(plain.first().text(), "better");
  EXPECT_EQ(plain.prompt().text(), c.prompt().text());
  EXPECT_EQ(FormatComparison(c, "sft"), R"({"prompt":"Q\n\"ü\"","response":"better","category":"known"})");
  c.mutable_second()->set_source("sample");
  EXPECT_EQ(FormatComparison(c, "sft"), "");
  // Of answers that a rater wrote those that were the better ones, and none that is empty.
  c.mutable_second()->set_source("written");
  EXPECT_THAT(FormatComparison(c, "sft"), HasSubstr("\"response\":\"better\""));
  c.set_preference(v1::FIRST);
  EXPECT_EQ(FormatComparison(c, "sft"), "");
  c.mutable_second()->set_source("edited");
  c.mutable_second()->clear_text();
  EXPECT_EQ(FormatComparison(c, "sft"), "");
}

TEST(FormatsTest, APlainExportHasWhatAnImportReads) {
  v1::Comparison c;
  c.set_id("c1");
  c.set_kind(v1::FEEDBACK_COMPARISON);
  c.mutable_prompt()->set_text("Q");
  (*c.mutable_prompt()->mutable_tags())["topic"] = "cities";
  c.mutable_first()->set_text("a");
  c.mutable_second()->set_text("b");
  c.set_preference(v1::TIE);
  c.set_strength(0.5);
  c.set_rater("rater-1");
  c.set_comment("alike");
  (*c.mutable_tags())["raters"] = "east";
  EXPECT_EQ(
      FormatComparison(c, "plain"),
      R"({"prompt":"Q","chosen":"a","rejected":"b","tie":true,"strength":0.5,"rater":"rater-1","comment":"alike",)"
      R"("id":"c1","tags":{"raters":"east","topic":"cities"}})");
  const auto again = One(FormatComparison(c, "plain"));
  EXPECT_EQ(again.preference(), v1::TIE);
  EXPECT_EQ(again.comment(), "alike");
  c.mutable_second()->set_source("edited");
  EXPECT_THAT(FormatComparison(c, "sft"), HasSubstr(R"("tags":{"topic":"cities"})"))
      << "a rater's group is not the prompt's";
  c.set_preference(v1::SECOND);
  EXPECT_THAT(FormatComparison(c, "plain"), HasSubstr(R"("chosen":"b","rejected":"a")"));
  c.set_kind(v1::FEEDBACK_RATING);
  EXPECT_EQ(FormatComparison(c, "plain"), "");
}

std::vector<std::pair<int64_t, std::string>> ReadAll(const std::string& path, absl::Status* status) {
  std::vector<std::pair<int64_t, std::string>> records;
  auto reader = RecordReader::Open(path);
  if (!reader.ok()) {
    *status = reader.status();
    return records;
  }
  std::string text;
  int64_t line = 0;
  while (true) {
    const auto more = (*reader)->Next(&text, &line);
    *status = more.status();
    if (!more.ok() || !*more) return records;
    records.emplace_back(line, text);
  }
}

TEST(RecordReaderTest, LinesArraysAndGzip) {
  ScratchDir dir;
  absl::Status status;
  std::ofstream(dir.File("lines")) << "{\"a\":1}\n \t\r\n  {\"b\":2}\r\n{\"c\":3}";
  EXPECT_THAT(ReadAll(dir.File("lines"), &status),
              ElementsAre(Pair(1, "{\"a\":1}"), Pair(3, "  {\"b\":2}\r"), Pair(4, "{\"c\":3}")));
  EXPECT_TRUE(status.ok());
  std::ofstream(dir.File("array")) << "\n[\n {\"a\":\"[,]\\\"}\\\\\"},\n {\"b\":[1,{\"c\":2}]}\n]\n";
  EXPECT_THAT(ReadAll(dir.File("array"), &status),
              ElementsAre(Pair(3, "{\"a\":\"[,]\\\"}\\\\\"}"), Pair(4, "{\"b\":[1,{\"c\":2}]}\n")));
  EXPECT_TRUE(status.ok());
  const gzFile gz = gzopen(dir.File("lines.gz").c_str(), "wb");
  gzputs(gz, "{\"a\":1}\n{\"b\":2}\n");
  gzclose(gz);
  EXPECT_THAT(ReadAll(dir.File("lines.gz"), &status), ElementsAre(Pair(1, "{\"a\":1}"), Pair(2, "{\"b\":2}")));
  // Cut short: what was whole was delivered, then the damage is named.
  std::string bytes;
  {
    std::ifstream in(dir.File("lines.gz"), std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  std::ofstream(dir.File("cut.gz"), std::ios::binary) << bytes.substr(0, bytes.size() - 6);
  ReadAll(dir.File("cut.gz"), &status);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  ReadAll(dir.File("nothing"), &status);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
}

}  // namespace
}  // namespace rlhf::cli
