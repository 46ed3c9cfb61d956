// Real input: the same binaries run PPO on a pretrained model; a shorter version of examples/stories.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/local_service.h"

namespace rlhf {
namespace {

TEST(StoriesTest, PpoRaisesARuleOnARealModelAndStaysNearIt) {
  if (StoriesModel().empty()) GTEST_SKIP() << "stories260K is not beside the repository";
  LocalService service;
  const std::string data = service.scratch().File("data");
  const CommandResult made = RunCommand("/usr/bin/python3 " + SourceDir() + "/examples/stories/generate.py --out " +
                                        data + " --count 400 --held-out 40");
  ASSERT_EQ(made.code, 0) << made.output;
  const std::string model = std::filesystem::canonical(StoriesModel()).string();
  const CommandResult followed =
      service.Ctl("submit " + SourceDir() + "/examples/stories/pipeline.yaml --set model=" + model +
                  " --set data=" + data + " --set steps=6 --set prompts_per_step=32 --set minibatch_size=16 --follow");
  ASSERT_EQ(followed.code, 0) << followed.output;
  const nlohmann::json metrics = service.Job("stories")["result"]["metrics"];
  const auto value = [&](const std::string& name) {
    return metrics.contains(name) ? metrics[name].value("value", 0.0) : -1.0;
  };
  EXPECT_GE(value("before.story.dog"), 0) << metrics.dump();
  EXPECT_GE(value("after.story.dog"), 0);
  EXPECT_LE(value("ppo.first_minibatch_ratio_error"), 1e-4);
  EXPECT_LE(std::abs(value("ppo.mismatch_kl")), 1e-4);
  EXPECT_GT(value("ppo.kl"), 0);
  EXPECT_LT(value("ppo.kl"), 40);
  EXPECT_EQ(service.Ctl("ledger stories --check").code, 0);
}

}  // namespace
}  // namespace rlhf
