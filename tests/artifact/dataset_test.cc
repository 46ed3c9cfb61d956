#include "artifact/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::artifact {
namespace {

using testing::HasSubstr;

class DatasetTest : public testing::Test {
 protected:
  std::string Write(const std::string& content, const std::string& name = "data.jsonl") {
    EXPECT_TRUE(WriteFileDurably(dir_.File(name), content).ok());
    return dir_.File(name);
  }
  template <typename Result>
  void ExpectRefused(const Result& result, const std::string& says) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(says));
  }
  ScratchDir dir_;
};

// What is wrong with data is told to people who are not to know where the service keeps it.
TEST_F(DatasetTest, ErrorsNameFilesAndArtifactsAndNoFolderOfTheService) {
  const std::string artifact = dir_.File("sha256/2f2670c0");
  const auto says = [&](const std::string& path, const std::string& problem) {
    const std::string message(ReadPromptData(path).status().message());
    EXPECT_EQ(message.find(dir_.path()), std::string::npos) << message;
    EXPECT_THAT(message, HasSubstr(problem));
  };
  says(artifact, "sha256:2f2670c0: expected a data file or folder, found none");
  ASSERT_TRUE(MakeDirs(artifact).ok());
  says(artifact + "/", "sha256:2f2670c0: expected at least one .jsonl file, found none");
  ASSERT_TRUE(WriteFileDurably(artifact + "/a.jsonl", "\n").ok());
  says(artifact, "sha256:2f2670c0: expected at least one record, found none");
  ASSERT_TRUE(WriteFileDurably(artifact + "/a.jsonl", "[]\n").ok());
  says(artifact, "a.jsonl:1: expected a JSON object on the line");
  says(Write(""), "data.jsonl: expected at least one record, found none");
}

TEST_F(DatasetTest, RecordsAreReadInOrderFromFilesAndFolders) {
  const auto sft = ReadSftData(Write(
      "{\"prompt\":\"p\",\"response\":\"r\",\"tags\":{\"k\":\"v\"}}\n\n{\"prompt\":\"p2\",\"response\":\"r2\"}\n"));
  ASSERT_TRUE(sft.ok()) << sft.status();
  ASSERT_EQ(sft->size(), 2u);
  EXPECT_EQ((*sft)[0].tags.at("k"), "v");
  EXPECT_EQ((*sft)[1].response, "r2");
  ScratchDir folder;
  ASSERT_TRUE(WriteFileDurably(folder.File("b.jsonl"), "{\"prompt\":\"second\"}\n").ok());
  ASSERT_TRUE(
      WriteFileDurably(folder.File("a.jsonl"), "{\"prompt\":\"first\",\"reference\":\"x\",\"category\":\"c\"}\n").ok());
  ASSERT_TRUE(WriteFileDurably(folder.File("notes.txt"), "not data").ok());
  const auto prompts = ReadPromptData(folder.path());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 2u);
  EXPECT_EQ((*prompts)[0].prompt, "first");
  EXPECT_EQ((*prompts)[0].reference, "x");
  const auto pairs =
      ReadComparisonData(Write("{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\",\"tie\":true,\"margin\":0.5}\n"));
  ASSERT_TRUE(pairs.ok()) << pairs.status();
  EXPECT_TRUE((*pairs)[0].tie);
  EXPECT_EQ((*pairs)[0].margin, 0.5);
}

TEST_F(DatasetTest, MessagesStandForThePrompt) {
  const auto prompts = ReadPromptData(
      Write("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"q\"}]}\n"
            "{\"prompt\":\"shown\",\"messages\":[{\"role\":\"user\",\"content\":\"q\"}]}\n"));
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_EQ((*prompts)[0].messages.size(), 2u);
  EXPECT_EQ((*prompts)[0].prompt, "system: s\n\nuser: q");
  EXPECT_EQ((*prompts)[1].prompt, "shown");
  const auto sft = ReadSftData(
      Write("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}\n"
            "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"response\":\"r\"}\n"));
  ASSERT_TRUE(sft.ok()) << sft.status();
  EXPECT_EQ((*sft)[0].response, "a");
  EXPECT_EQ((*sft)[0].messages.size(), 1u);
  EXPECT_EQ((*sft)[0].prompt, "q");
  EXPECT_EQ((*sft)[1].response, "r");
  const std::string message = "{\"role\":\"user\",\"content\":\"q\"}",
                    answer = "{\"role\":\"assistant\",\"content\":\"a\"}";
  ExpectRefused(ReadSftData(Write("{\"messages\":[" + message + "]}\n")), "response");
  ExpectRefused(ReadSftData(Write("{\"messages\":[" + answer + "]}\n")), "a question before the answer");
  ExpectRefused(ReadSftData(Write("{\"messages\":[" + message + "," + answer + "],\"response\":\"x\"}\n")),
                "one of the two");
  ExpectRefused(ReadPromptData(Write("{\"messages\":[]}\n")), "1 to 1000");
  ExpectRefused(ReadPromptData(Write("{\"messages\":[{\"role\":\"user\"}]}\n")), "messages[0]");
  ExpectRefused(ReadPromptData(Write("{\"messages\":[{\"role\":\"user\",\"content\":\"q\",\"name\":\"n\"}]}\n")),
                "no other key");
}

TEST_F(DatasetTest, AProblemNamesFileAndLine) {
  ExpectRefused(ReadSftData(Write("{\"prompt\":\"p\",\"response\":\"r\"}\n{\"prompt\":\"p\",\"reponse\":\"r\"}\n")),
                "data.jsonl:2");
  ExpectRefused(ReadSftData(Write("{\"prompt\":\"p\",\"response\":\"r\",\"respnse\":1}\n")),
                "did you mean \"response\"?");
  ExpectRefused(ReadSftData(Write("{\"prompt\":\"p\"}\n")), "response");
  ExpectRefused(ReadSftData(Write("{\"prompt\":3,\"response\":\"r\"}\n")), "expected a string, found number");
  ExpectRefused(ReadPromptData(Write("{\"prompt\":\"p\"\n")), "data.jsonl:1");
  ExpectRefused(ReadPromptData(Write("[1]\n")), "data.jsonl:1");
  ExpectRefused(ReadPromptData(Write("\n")), "data.jsonl");
  ExpectRefused(ReadPromptData(Write("{\"prompt\":\"p\",\"tags\":{\"k\":1}}\n")), "tags.k");
  EXPECT_FALSE(ReadPromptData(dir_.File("nothing.jsonl")).ok());
}

TEST_F(DatasetTest, SampleFilesMayHoldMore) {
  const auto samples =
      ReadSampleData(Write("{\"id\":\"7\",\"index\":1,\"prompt\":\"p\",\"response\":\"r\",\"finish_reason\":\"MAX_"
                           "TOKENS\",\"score\":0.5,\"components\":{}}\n"));
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_EQ((*samples)[0].index, 1);
  EXPECT_EQ((*samples)[0].finish_reason, "MAX_TOKENS");
}

}  // namespace
}  // namespace rlhf::artifact
