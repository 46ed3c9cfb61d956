// Adapters and chat messages through the whole service: SFT, reward model and PPO train LoRA adapters on prompts that
// are messages, rendered by the model's own template; the result is a merged model with the adapter in PEFT's layout
// beside it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/local_service.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

constexpr char kTemplate[] =
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}";

std::string Chat(const std::string& question) {
  return nlohmann::json({{{"role", "system"}, {"content", "the cat"}}, {{"role", "user"}, {"content", question}}})
      .dump();
}

TEST(AdaptersTest, APipelineOfChatTrainsAdaptersAlone) {
  LocalService service;
  const std::string dir = service.scratch().path();
  MakeSmallModel(dir);
  ASSERT_FALSE(testing::Test::HasFailure());
  for (const char* model : {"/tok", "/model"})
    ASSERT_TRUE(WriteFileDurably(dir + model + "/chat_template.jinja", kTemplate).ok());
  std::string prompts, answers, pairs;
  for (int i = 0; i < 24; ++i) {
    const std::string messages = Chat(absl::StrCat("the dog number ", i));
    absl::StrAppend(&prompts, "{\"messages\":", messages, "}\n");
    absl::StrAppend(&answers, "{\"messages\":", messages, ",\"response\":\"sat on the mat\"}\n");
    absl::StrAppend(&pairs, "{\"messages\":", messages, ",\"chosen\":\"sat on the mat\",\"rejected\":\"log log\"}\n");
  }
  ASSERT_TRUE(WriteFileDurably(dir + "/chat.jsonl", prompts).ok());
  ASSERT_TRUE(WriteFileDurably(dir + "/answers.jsonl", answers).ok());
  ASSERT_TRUE(WriteFileDurably(dir + "/pairs.jsonl", pairs).ok());
  ASSERT_TRUE(WriteFileDurably(dir + "/chat.yaml", R"(name: chat
seed: 3
learners: {ranks: 2}
pipeline:
  stages:
    - name: sft
      sft:
        model: file:model
        data: file:answers.jsonl
        steps: 6
        batch_size: 4
        lora: {rank: 4, alpha: 8}
        optimizer: {learning_rate: 1e-2}
    - name: rm
      reward_model:
        model: stage:sft
        data: file:pairs.jsonl
        batch_size: 4
        lora: {rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}
    - name: ppo
      ppo:
        policy: stage:sft
        prompts: file:chat.jsonl
        scorer: {components: [{name: liked, reward_model: {model: stage:rm}}]}
        steps: 4
        prompts_per_step: 8
        samples_per_prompt: 2
        sampling: {max_new_tokens: 8}
        epochs: 1
        policy_optimizer: {learning_rate: 1e-3}
        lora: {rank: 4, alpha: 8, target_modules: [q_proj, v_proj, down_proj]}
    - name: after
      evaluate:
        model: stage:ppo
        suite: file:chat.jsonl
        sampling: {temperature: 0, max_new_tokens: 8}
)")
                  .ok());
  const CommandResult followed = service.Ctl("submit " + dir + "/chat.yaml --follow");
  ASSERT_EQ(followed.code, 0) << followed.output;
  const nlohmann::json stages =
      nlohmann::json::parse(service.Ctl("--output json list --stages").output, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(stages.is_array()) << stages.dump();
  nlohmann::json ppo;
  for (const nlohmann::json& job : stages)
    if (job.value("stage", "") == "ppo") ppo = job;
  ASSERT_TRUE(ppo.is_object()) << stages.dump(1);
  // The first minibatch's ratio: sampler and learner see the same adapters over the same base.
  EXPECT_LE(ppo["result"]["metrics"]["first_minibatch_ratio_error"].value("value", 0.0), 1e-4) << ppo.dump(1);
  EXPECT_NE(ppo["result"]["metrics"]["kl"].value("value", 0.0), 0) << "the policy did not move: " << ppo.dump(1);
  const std::string trained = service.scratch().File("trained");
  const CommandResult pulled =
      service.Ctl("models pull " + ppo["result"]["artifacts"].value("model", "none") + " --out " + trained);
  ASSERT_EQ(pulled.code, 0) << pulled.output;
  const nlohmann::json adapter =
      nlohmann::json::parse(ReadFile(trained + "/adapter/adapter_config.json").value_or(""), nullptr, false);
  ASSERT_TRUE(adapter.is_object());
  EXPECT_EQ(adapter.value("r", 0), 4);
  EXPECT_THAT(adapter["target_modules"].dump(), HasSubstr("down_proj"));
  EXPECT_TRUE(std::filesystem::exists(trained + "/adapter/adapter_model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(trained + "/chat_template.jinja"));
  EXPECT_EQ(RunCommand(BinDir() + "/rlhf-model inspect " + trained).code, 0);
  // What was sampled is the template's text.
  const CommandResult samples = service.Ctl("--output json samples " + ppo.value("id", "") + " --limit 1");
  EXPECT_EQ(samples.code, 0) << samples.output;
  EXPECT_THAT(samples.output, HasSubstr("the dog number"));
  EXPECT_EQ(service.Ctl("ledger " + ppo.value("id", "") + " --check").code, 0);
}

}  // namespace
}  // namespace rlhf
