// Real input: the same binaries run PPO on a pretrained model, as examples/stories does with fewer prompts.
#include <cmath>

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
                                        data + " --count 400 --held-out 240");
  ASSERT_EQ(made.code, 0) << made.output;
  const std::string model = std::filesystem::canonical(StoriesModel()).string();
  const CommandResult followed =
      service.Ctl("submit " + SourceDir() + "/examples/stories/pipeline.yaml --set model=" + model +
                  " --set data=" + data + " --set steps=48 --follow");
  ASSERT_EQ(followed.code, 0) << followed.output;
  const nlohmann::json metrics = service.Job("stories")["result"]["metrics"];
  const auto value = [&](const std::string& name) {
    return metrics.contains(name) ? metrics[name].value("value", 0.0) : -1.0;
  };
  // Standard errors from the 95 % intervals; a rise of three of them is no accident.
  const auto error = [&](const std::string& name) {
    return (metrics[name].value("high", 0.0) - metrics[name].value("low", 0.0)) / (2 * 1.96);
  };
  ASSERT_TRUE(metrics.contains("before.story.dog") && metrics.contains("after.story.dog")) << metrics.dump();
  const double rise = value("after.story.dog") - value("before.story.dog");
  RecordProperty("rise_in_errors",
                 absl::StrCat(rise / std::hypot(error("before.story.dog"), error("after.story.dog"))));
  EXPECT_GE(rise, 3 * std::hypot(error("before.story.dog"), error("after.story.dog"))) << metrics.dump();
  EXPECT_LE(value("ppo.first_minibatch_ratio_error"), 1e-4);
  EXPECT_LE(std::abs(value("ppo.mismatch_kl")), 1e-4);
  EXPECT_GT(value("ppo.kl"), 0);
  EXPECT_LT(value("ppo.kl"), 40);
  EXPECT_EQ(service.Ctl("ledger stories --check").code, 0);
}

}  // namespace
}  // namespace rlhf
