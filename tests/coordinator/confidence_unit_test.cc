// The unit in which the answers of an evaluation state their confidence.
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/jobs/evaluation_against.h"

namespace rlhf::coordinator {
namespace {

class ConfidenceUnitTest : public testing::Test {
 protected:
  // Of answers that state their confidence so, the first `right` of which are right.
  static std::map<std::string, v1::Metric> Calibration(const std::vector<std::string>& stated, int right) {
    v1::EvaluateSpec spec;
    spec.set_confidence_pattern("sure: ([0-9.]+)");
    v1::RewardComponent* grader = spec.mutable_graders()->add_components();
    grader->set_name("exact");
    grader->mutable_exact_answer();
    const auto calibration = StatedCalibration::Make(spec);
    EXPECT_TRUE(calibration.ok()) << calibration.status();
    int graded = 0;
    for (const std::string& confidence : stated) {
      v1::Sample sample;
      sample.set_response_text(absl::StrCat("Oslo. sure: ", confidence));
      v1::ComponentScore* score = sample.mutable_score()->add_components();
      score->set_name("exact");
      score->set_value(++graded <= right ? 1 : 0);
      (*calibration)->Add(sample);
    }
    return (*calibration)->Metrics();
  }
};

TEST_F(ConfidenceUnitTest, OnePerCentIsNotCertainty) {
  const auto percents = Calibration({"99", "1"}, 1);
  EXPECT_NEAR(percents.at("calibration.ece").value(), 0.01, 1e-12);
  EXPECT_NEAR(percents.at("calibration.confidence/0").value(), 0.01, 1e-12);
  EXPECT_EQ(percents.at("calibration/0").value(), 0);
  const auto fractions = Calibration({"1", "0.5", "0.5"}, 2);
  EXPECT_NEAR(fractions.at("calibration.ece").value(), 0, 1e-12);
  EXPECT_EQ(fractions.at("calibration/9").value(), 1);
  EXPECT_EQ(fractions.at("calibration/5").value(), 0.5);
}

TEST_F(ConfidenceUnitTest, AStrayAnswerChangesNoOthersUnit) {
  const auto fractions = Calibration({"0.5", "0.5", "1", "95"}, 1);
  EXPECT_NEAR(fractions.at("calibration.confidence/5").value(), 0.5, 1e-12);
  EXPECT_EQ(fractions.at("calibration/5").value(), 0.5);
  EXPECT_NEAR(fractions.at("calibration.confidence/9").value(), (1 + 0.95) / 2, 1e-12);
  EXPECT_EQ(fractions.at("calibration.ece").n(), 4);
  const auto percents = Calibration({"90", "80", "1", "0.5"}, 2);
  EXPECT_NEAR(percents.at("calibration.confidence/0").value(), 0.01, 1e-12);
  EXPECT_NEAR(percents.at("calibration.confidence/5").value(), 0.5, 1e-12);
  EXPECT_NEAR(percents.at("calibration.ece").value(), (0.1 + 0.2 + 0.01 + 0.5) / 4, 1e-12);
}

TEST_F(ConfidenceUnitTest, WhatAnAnswerSaysItselfCounts) {
  const auto said = Calibration({"0.5 %", "1%", "1 percent", "1 Per cent"}, 0);
  EXPECT_NEAR(said.at("calibration.confidence/0").value(), (0.005 + 3 * 0.01) / 4, 1e-12);
  const auto certain = Calibration({"99", "98", "1.0"}, 3);
  EXPECT_NEAR(certain.at("calibration.confidence/9").value(), (0.99 + 0.98 + 1) / 3, 1e-12);
  // Nothing says which: certainty.
  EXPECT_NEAR(Calibration({"1", "0"}, 1).at("calibration.ece").value(), 0, 1e-12);
}

}  // namespace
}  // namespace rlhf::coordinator
