// rlhf-model as people run it.
#include <cmath>
#include <filesystem>
#include <iostream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/linked_folder.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

class ModelToolTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteFileDurably(dir_.File("text.txt"), "the cat sat on the mat\nthe dog sat on the log\n").ok());
    ASSERT_EQ(Tool("train-tokenizer --vocab-size 270 --out " + dir_.File("tok") + " " + dir_.File("text.txt")).code, 0);
    nlohmann::json config = Golden("model.json")["models"]["llama"]["config"];
    config["vocab_size"] = 270;
    ASSERT_TRUE(WriteFileDurably(dir_.File("config.json"), config.dump()).ok());
    ASSERT_EQ(Tool("init --config " + dir_.File("config.json") + " --tokenizer " + dir_.File("tok") + " --out " +
                   Model() + " --seed 3")
                  .code,
              0);
  }
  std::string Model() const { return dir_.File("model"); }
  static CommandResult Tool(const std::string& arguments, const std::string& input = "") {
    return RunCommand("printf '%s' '" + input + "' | " + BinDir() + "/rlhf-model " + arguments);
  }
  ScratchDir dir_;
};

TEST_F(ModelToolTest, TextGoesThroughTheTokenizerAndBack) {
  const CommandResult ids = Tool("tokenize --model " + Model(), "\"the cat\"\n");
  ASSERT_EQ(ids.code, 0) << ids.output;
  const auto parsed = nlohmann::json::parse(ids.output, nullptr, false);
  ASSERT_TRUE(parsed.is_array()) << ids.output;
  EXPECT_EQ(parsed[0], 1);  // <s>
  const CommandResult text = Tool("detokenize --model " + Model(), ids.output);
  EXPECT_EQ(text.output, "\"the cat\"\n");
}

TEST_F(ModelToolTest, ConversationsGoThroughTheChatTemplate) {
  const std::string messages = "[{\"role\":\"user\",\"content\":\"the cat\"}]";
  EXPECT_THAT(Tool("generate --model " + Model() + " --messages '" + messages + "'").output,
              HasSubstr("chat template"));
  ASSERT_TRUE(
      WriteFileDurably(Model() + "/chat_template.jinja", "{% for m in messages %}{{ m.content }}!{% endfor %}").ok());
  const CommandResult ids = Tool("tokenize --model " + Model(), "{\"messages\":" + messages + "}\n");
  ASSERT_EQ(ids.code, 0) << ids.output;
  EXPECT_EQ(Tool("detokenize --model " + Model(), ids.output).output, "\"the cat!\"\n");
  const CommandResult generated =
      Tool("generate --model " + Model() + " --messages '" + messages + "' --max-new-tokens 2");
  EXPECT_EQ(generated.code, 0) << generated.output;
}

TEST_F(ModelToolTest, ScoresAreLogProbabilities) {
  const CommandResult scored = Tool("score --model " + Model(), "[1,5,9,20]\n");
  ASSERT_EQ(scored.code, 0) << scored.output;
  const auto log_probs = nlohmann::json::parse(scored.output)["logprobs"].get<std::vector<double>>();
  ASSERT_EQ(log_probs.size(), 3u);
  for (const double log_prob : log_probs) EXPECT_NEAR(log_prob, -std::log(270.0), 0.5);  // a fresh model knows nothing
}

TEST_F(ModelToolTest, GenerationIsSeeded) {
  const std::string command = "generate --model " + Model() + " --prompt 'the cat' --max-new-tokens 8 --n 2 --seed 4";
  const CommandResult first = Tool(command), second = Tool(command);
  EXPECT_EQ(first.code, 0) << first.output;
  EXPECT_EQ(first.output, second.output);
  EXPECT_NE(first.output, Tool(command + "5").output);
  const CommandResult inspected = Tool("inspect " + Model());
  EXPECT_THAT(inspected.output, HasSubstr("weights_digest"));
  EXPECT_THAT(Tool("bench --model " + Model() + " --batch 2 --prompt-tokens 4 --new-tokens 4").output,
              testing::AllOf(HasSubstr("prefill_tokens_per_second"), HasSubstr("decode_tokens_per_second"),
                             HasSubstr("scoring_tokens_per_second"), HasSubstr("training_tokens_per_second")));
}

TEST_F(ModelToolTest, EveryEndOfTextOfTheModelsListEndsAGeneration) {
  const std::string command = "generate --model " + Model() + " --prompt 'the cat' --max-new-tokens 8 --seed 4";
  const CommandResult whole = Tool(command);
  ASSERT_EQ(whole.code, 0) << whole.output;
  // Every id but that of the pad: what comes first ends it.
  nlohmann::json ends = nlohmann::json::array();
  for (int id = 1; id < 270; ++id) ends.push_back(id);
  const auto write = [&](const nlohmann::json& ids) {
    EXPECT_TRUE(
        WriteFileDurably(Model() + "/generation_config.json", nlohmann::json{{"eos_token_id", ids}}.dump()).ok());
  };
  write(ends);
  const CommandResult none = Tool(command);
  EXPECT_EQ(none.code, 0) << none.output;
  EXPECT_EQ(none.output, "\"\"\n");
  EXPECT_NE(whole.output, none.output);
  write({2, 5});
  EXPECT_EQ(nlohmann::json::parse(Tool("inspect " + Model()).output)["tokenizer"]["eos_ids"],
            nlohmann::json::array({2, 5}));
  write({2, 270});
  const CommandResult refused = Tool(command);
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.output, HasSubstr("eos_token_id: expected an id of 0 to 269 or a list of such, found 270"));
}

// Each run is a process of its own, whose resident memory is read.
TEST_F(ModelToolTest, GradientCheckpointingTrainsInLessMemory) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer keeps what is freed: resident memory says nothing";
#endif
  constexpr int kLayers = 24, kHidden = 64, kTokens = 4 * 256;
  nlohmann::json config = Golden("model.json")["models"]["llama"]["config"];
  config["vocab_size"] = 270;
  config["hidden_size"] = kHidden;
  config["intermediate_size"] = 3 * kHidden;
  config["num_hidden_layers"] = kLayers;
  config["max_position_embeddings"] = 512;
  config["head_dim"] = kHidden / 4;
  ASSERT_TRUE(WriteFileDurably(dir_.File("deep.json"), config.dump()).ok());
  ASSERT_EQ(Tool("init --config " + dir_.File("deep.json") + " --out " + dir_.File("deep")).code, 0);
  for (const std::string precision : {"float32", "bfloat16"}) {
    const auto peak = [&](const std::string& options) {
      // Tensors this small would lie in glibc's heap, whose holes count as resident: give each its own mapping.
      const CommandResult run =
          RunCommand("MALLOC_MMAP_THRESHOLD_=65536 " + BinDir() + "/rlhf-model bench --model " + dir_.File("deep") +
                     " --batch 4 --prompt-tokens 256 --new-tokens 1" + " --precision " + precision + options);
      const auto json = nlohmann::json::parse(run.output, nullptr, false);
      EXPECT_TRUE(json.is_object() && json["precision"] == precision && json["training_tokens_per_second"] > 0)
          << run.output;
      EXPECT_EQ(json.value("gradient_checkpointing", false), !options.empty());
      return json.is_object() && json["training_peak_bytes"].is_number() ? json["training_peak_bytes"].get<double>()
                                                                         : 0.0;
    };
    const double plain = peak(""), checkpointed = peak(" --gradient-checkpointing");
    if (plain == 0) GTEST_SKIP() << "/proc/self/clear_refs cannot be written here";
    // A layer keeps 4 · hidden + attention + 3 · inner values a token, 17 · hidden here; its input is one of them.
    // Beside them both passes hold a layer in work, gradients and a chunk of logits.
    const double input = (precision == "float32" ? 4.0 : 2.0) * kTokens * kHidden;
    EXPECT_GT(plain, kLayers * 10 * input) << precision;
    EXPECT_GT(checkpointed, kLayers * input) << precision;
    EXPECT_LT(checkpointed, 0.5 * plain) << precision;
    std::cout << precision << ": " << plain / 1e6 << " MB, with checkpointing " << checkpointed / 1e6 << " MB\n";
  }
}

// By whatever name the folder is given: its own, a relative one, or a link's.
TEST_F(ModelToolTest, NothingIsWrittenOverWhatIsRead) {
  const std::string weights = ReadFile(Model() + "/model.safetensors").value();
  const std::string config = ReadFile(Model() + "/config.json").value();
  std::filesystem::create_directory_symlink(Model(), dir_.File("link"));
  ASSERT_TRUE(WriteFileDurably(dir_.File("ids.json"), "[[1, 5, 9]]").ok());
  const auto refuses = [&](const std::string& arguments) {
    const CommandResult result = RunCommand("cd " + dir_.path() + " && " +
                                            std::filesystem::absolute(BinDir()).string() + "/rlhf-model " + arguments);
    EXPECT_EQ(result.code, 1) << arguments;
    EXPECT_THAT(result.output, HasSubstr("--out: expected other than what is read")) << arguments;
    EXPECT_EQ(ReadFile(Model() + "/model.safetensors").value(), weights) << arguments;
    EXPECT_EQ(ReadFile(Model() + "/config.json").value(), config) << arguments;
  };
  for (const std::string out : {"model", "./model/", "link", "model/../link"})
    refuses("merge --model " + Model() + " --dtype bfloat16 --out " + out);
  refuses("merge --model " + Model() + " --adapter tok --out tok");
  refuses("init --config model/config.json --out link");
  refuses("init --config config.json --tokenizer model --out model");
  refuses("numbers --model model --sequences ids.json --out link/model.safetensors");
  refuses("numbers --model model --sequences ids.json --out ids.json");
  EXPECT_EQ(ReadFile(dir_.File("ids.json")).value(), "[[1, 5, 9]]");
  refuses("train-tokenizer --vocab-size 270 --out model model/tokenizer.json");
  // Beside it, all is as before.
  EXPECT_EQ(Tool("merge --model " + Model() + " --out " + dir_.File("other")).code, 0);
  EXPECT_EQ(Tool("numbers --model " + Model() + " --sequences " + dir_.File("ids.json") + " --out " +
                 dir_.File("other/numbers.safetensors"))
                .code,
            0);
}

// As in the cache of Hugging Face; what is written are files.
TEST_F(ModelToolTest, AModelMayBeAFolderOfLinks) {
  const std::string linked = MakeLinkedFolder(Model(), dir_.File("cache"));
  const CommandResult inspected = Tool("inspect " + linked);
  EXPECT_EQ(inspected.code, 0) << inspected.output;
  EXPECT_EQ(inspected.output, Tool("inspect " + Model()).output);
  EXPECT_EQ(Tool("score --model " + linked, "[1,2,3]\n").output, Tool("score --model " + Model(), "[1,2,3]\n").output);
  const CommandResult merged = Tool("merge --model " + linked + " --out " + dir_.File("merged"));
  ASSERT_EQ(merged.code, 0) << merged.output;
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"})
    EXPECT_TRUE(std::filesystem::is_regular_file(std::filesystem::symlink_status(dir_.File("merged/") + name))) << name;
  EXPECT_EQ(Tool("inspect " + dir_.File("merged")).output, inspected.output);
}

TEST_F(ModelToolTest, SavingIsMeasuredAndLeavesNothing) {
  ASSERT_TRUE(MakeDirs(dir_.File("volume")).ok());
  const CommandResult run = Tool("bench-save --model " + Model() + " --out " + dir_.File("volume"));
  const auto json = nlohmann::json::parse(run.output, nullptr, false);
  ASSERT_TRUE(json.is_object()) << run.output;
  EXPECT_GT(json["bytes"], 0);
  EXPECT_GT(json["save_gb_per_second"], 0);
  EXPECT_GT(json["memcpy_gb_per_second"], 0);
  EXPECT_TRUE(std::filesystem::is_empty(dir_.File("volume")));
}

TEST_F(ModelToolTest, BadInputGetsOneClearError) {
  const auto fails = [&](const std::string& arguments, const std::string& input, int code, const std::string& says) {
    const CommandResult result = Tool(arguments, input);
    EXPECT_EQ(result.code, code) << arguments << ": " << result.output;
    EXPECT_THAT(result.output, HasSubstr(says)) << arguments;
  };
  fails("score --model " + Model(), "[1,5,270]\n", 1, "ids from 0 to 269");
  fails("score --model " + Model(), "nonsense\n", 1, "standard input:1");
  fails("tokenize --model " + Model(), "{}\n", 1, "a JSON string");
  fails("inspect " + dir_.File("nothing"), "", 1, "nothing");
  fails("generate --model " + Model() + " --prompt 'x' --temperature 11", "", 2, "temperature");
  fails("bench --model " + Model() + " --precision float16", "", 2, "bfloat16");
  fails("bench-save --model " + Model() + " --out " + Model() + "/config.json", "", 1, "config.json");
  fails("unknown", "", 2, "");
  const CommandResult full = RunCommand("( " + BinDir() + "/rlhf-model inspect " + Model() + " 1< /dev/null )");
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.output, HasSubstr("cannot write the standard output"));
  nlohmann::json config = Golden("model.json")["models"]["llama"]["config"];
  config["hidden_act"] = "relu6";
  ASSERT_TRUE(WriteFileDurably(dir_.File("bad.json"), config.dump()).ok());
  fails("init --config " + dir_.File("bad.json") + " --out " + dir_.File("m2"), "", 1, "relu6");
}

}  // namespace
}  // namespace rlhf
