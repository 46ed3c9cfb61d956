#include "common/spec_loader.h"

#include <fstream>
#include <limits>

#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/state.pb.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr char kJob[] = R"(name: small
seed: 7
labels: {team: "3", note: plain text}
learners: {ranks: 2}
sft:
  model: "sha256:00"
  data: data
  steps: 1e2
  batchSize: 4            # lowerCamelCase is fine too
  prompt_loss_weight: 0.5
  optimizer:
    learning_rate: 3e-4
    schedule: cosine
  precision: BFLOAT16
)";

std::string ErrorOf(const std::string& yaml, const std::map<std::string, std::string>& variables = {}) {
  v1::JobSpec job;
  const absl::Status status = ParseYaml(yaml, "job.yaml", variables, &job);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status << " of:\n" << yaml;
  return std::string(status.message());
}

TEST(SpecLoaderTest, FillsEveryKindOfField) {
  v1::JobSpec job;
  const absl::Status status = ParseYaml(kJob, "job.yaml", {}, &job);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(job.name(), "small");
  EXPECT_EQ(job.seed(), 7u);
  EXPECT_EQ(job.labels().at("team"), "3");
  EXPECT_EQ(job.labels().at("note"), "plain text");
  EXPECT_EQ(job.learners().ranks(), 2);
  ASSERT_TRUE(job.has_sft());
  EXPECT_EQ(job.sft().steps(), 100);
  EXPECT_EQ(job.sft().batch_size(), 4);
  EXPECT_TRUE(job.sft().has_prompt_loss_weight());
  EXPECT_FALSE(job.sft().has_micro_batch_tokens());
  EXPECT_DOUBLE_EQ(job.sft().optimizer().learning_rate(), 3e-4);
  EXPECT_EQ(job.sft().optimizer().schedule(), v1::COSINE);
  EXPECT_EQ(job.sft().precision(), v1::BFLOAT16);
}

TEST(SpecLoaderTest, ListsOfMessagesAndEmptyMappings) {
  v1::JobSpec job;
  const absl::Status status = ParseYaml(R"(
name: s
sample:
  model: m
  prompts: p
  sampling: {stop: [a, "b"], temperature: 0}
  scorer:
    components:
      - name: one
        exact_answer: {}
      - {name: two, weight: -1, length: {max_tokens: 9, require_eos: true}}
)",
                                        "job.yaml", {}, &job);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(job.sample().sampling().stop(), testing::ElementsAre("a", "b"));
  EXPECT_TRUE(job.sample().sampling().has_temperature());
  ASSERT_EQ(job.sample().scorer().components_size(), 2);
  EXPECT_TRUE(job.sample().scorer().components(0).has_exact_answer());
  EXPECT_DOUBLE_EQ(job.sample().scorer().components(1).weight(), -1);
  EXPECT_TRUE(job.sample().scorer().components(1).length().require_eos());
}

TEST(SpecLoaderTest, UnknownKeyNamesPlaceNearestAndAllowed) {
  const std::string error = ErrorOf("name: a\nsft:\n  model: m\n  batch_szie: 4\n");
  EXPECT_THAT(error, StartsWith("job.yaml:4:3: unknown key \"sft.batch_szie\""));
  EXPECT_THAT(error, HasSubstr("did you mean \"batch_size\"?"));
  EXPECT_THAT(error, HasSubstr("allowed here: model, data, steps"));
  EXPECT_THAT(ErrorOf("zebra: 1\n"), testing::Not(HasSubstr("did you mean")));
}

TEST(SpecLoaderTest, WrongTypesNameFieldPlaceAndWhatIsAllowed) {
  EXPECT_THAT(ErrorOf("seed: -1\n"), StartsWith("job.yaml:1:7: seed: expected an integer from 0 to"));
  EXPECT_THAT(ErrorOf("priority: 1.5\n"), HasSubstr("priority: expected an integer from -2147483648"));
  EXPECT_THAT(ErrorOf("priority: 3000000000\n"), HasSubstr("found \"3000000000\""));
  EXPECT_THAT(ErrorOf("sft: {optimizer: {beta1: high}}\n"), HasSubstr("sft.optimizer.beta1: expected a finite number"));
  EXPECT_THAT(ErrorOf("sft: {optimizer: {beta1: nan}}\n"), HasSubstr("expected a finite number"));
  EXPECT_THAT(ErrorOf("sft: {optimizer: {beta1: 1e999}}\n"), HasSubstr("expected a finite number"));
  EXPECT_THAT(ErrorOf("sft: {optimizer: {beta1: -inf}}\n"), HasSubstr("expected a finite number"));
  EXPECT_THAT(ErrorOf("sft: {optimizer: {schedule: cosin}}\n"),
              HasSubstr("expected one of constant, linear, cosine, found \"cosin\" (did you mean \"cosine\"?)"));
  EXPECT_THAT(ErrorOf("sft: {precision: precision_unspecified}\n"), HasSubstr("expected one of float32, bfloat16"));
  EXPECT_THAT(ErrorOf("sft: [1]\n"), HasSubstr("sft: expected a mapping, found a list"));
  EXPECT_THAT(ErrorOf("sft:\nname: x\n"), HasSubstr("sft: expected a mapping, found nothing (write {}"));
  EXPECT_THAT(ErrorOf("name:\n"), HasSubstr("name: expected a text, found nothing"));
  EXPECT_THAT(ErrorOf("name: {a: b}\n"), HasSubstr("name: expected a text, found a mapping"));
  EXPECT_THAT(ErrorOf("labels: [a]\n"), HasSubstr("labels: expected a mapping, found a list"));
  EXPECT_THAT(ErrorOf("sample: {sampling: {stop: x}}\n"),
              HasSubstr("sample.sampling.stop: expected a list, found \"x\""));
  EXPECT_THAT(ErrorOf("sample: {scorer: {components: [{name: a, length: {require_eos: 1}}]}}\n"),
              HasSubstr("sample.scorer.components[0].length.require_eos: expected true or false, found \"1\""));
  v1::RequestRow row;
  EXPECT_THAT(std::string(ParseYaml("response: abc\n", "f", {}, &row).message()), HasSubstr("raw bytes"));
}

TEST(SpecLoaderTest, DuplicatesAndSeveralKinds) {
  EXPECT_THAT(ErrorOf("name: a\nseed: 1\nname: b\n"), StartsWith("job.yaml:3:1: name: the key is given twice"));
  EXPECT_THAT(ErrorOf("sft: {batch_size: 1, batchSize: 2}\n"), HasSubstr("given twice"));
  EXPECT_THAT(ErrorOf("labels: {a: 1, a: 2}\n"), HasSubstr("labels.a: the key is given twice"));
  EXPECT_THAT(ErrorOf("sft: {model: m}\nreward_model: {model: m}\n"),
              StartsWith("job.yaml:2:1: reward_model: \"sft\" is given already"));
}

TEST(SpecLoaderTest, NotYamlAtAll) {
  EXPECT_THAT(ErrorOf("name: [a\n"), HasSubstr("not YAML"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("the file is empty"));
  EXPECT_THAT(ErrorOf("just text\n"), HasSubstr("the file: expected a mapping, found \"just text\""));
  EXPECT_THAT(ErrorOf("name: a\n---\nname: b\n"), HasSubstr("expected one YAML document, found 2"));
  EXPECT_THAT(ErrorOf("pipeline: &p {stages: [{job: {pipeline: *p}}]}\n"), testing::Not(testing::IsEmpty()));
}

TEST(SpecLoaderTest, Variables) {
  v1::JobSpec job;
  const std::string yaml = "name: run-${who}\nseed: ${seed:-12}\nproject: ${empty:-}$${kept}\npriority: \"${p}\"\n";
  const absl::Status status = ParseYaml(yaml, "job.yaml", {{"who", "ann"}, {"p", "3"}}, &job);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(job.name(), "run-ann");
  EXPECT_EQ(job.seed(), 12u);
  EXPECT_EQ(job.project(), "${kept}");
  EXPECT_EQ(job.priority(), 3);
  EXPECT_THAT(
      ErrorOf("name: a\nseed: ${sed}\n", {{"seed", "1"}}),
      StartsWith("job.yaml:2:7: ${sed} has no value and no default (\"seed\" is set); give it with --set sed="));
  EXPECT_THAT(ErrorOf("seed: ${x\n"), HasSubstr("without \"}\""));
  EXPECT_THAT(ErrorOf("seed: ${x}\n", {{"x", "many"}}), HasSubstr("found \"many\""));
}

TEST(SpecLoaderTest, YamlMakesTheRoundTrip) {
  v1::JobSpec job;
  ASSERT_TRUE(ParseYaml(kJob, "job.yaml", {}, &job).ok());
  (*job.mutable_labels())["odd"] = "line\nwith: \"colon\" ${x} # and more";
  (*job.mutable_labels())["empty"] = "";
  (*job.mutable_labels())["null"] = "null";
  job.mutable_sft()->mutable_optimizer()->set_weight_decay(0.1);
  const std::string yaml = ToYaml(job);
  EXPECT_EQ(yaml, ToYaml(job));
  EXPECT_THAT(yaml, testing::AllOf(HasSubstr("learning_rate: 3e-04"), HasSubstr("team: \"3\"")));
  EXPECT_LT(yaml.find("seed:"), yaml.find("learners:"));
  v1::JobSpec again;
  const absl::Status status = ParseYaml(yaml, "again.yaml", {}, &again);
  ASSERT_TRUE(status.ok()) << status << "\n" << yaml;
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(job, again)) << yaml;
}

TEST(SpecLoaderTest, IntegersAreExact) {
  for (const char* wrong :
       {"seed: 1e17", "learners: {ranks: 3e9}", "learners: {ranks: -3e9}", "learners: {ranks: 1.5}"}) {
    v1::JobSpec job;
    EXPECT_TRUE(absl::IsInvalidArgument(ParseYaml(wrong, "job.yaml", {}, &job))) << wrong;
  }
  v1::JobSpec job;
  ASSERT_TRUE(ParseYaml("seed: 1e15\nlearners: {ranks: 2e3}", "job.yaml", {}, &job).ok());
  EXPECT_EQ(job.seed(), 1'000'000'000'000'000);
  EXPECT_EQ(job.learners().ranks(), 2000);
  // At the bounds themselves, and one beyond.
  const auto ranks = [](const std::string& text) -> int64_t {
    v1::JobSpec read;
    const absl::Status status = ParseYaml("learners: {ranks: " + text + "}", "job.yaml", {}, &read);
    return status.ok() ? read.learners().ranks() : 0;
  };
  EXPECT_EQ(ranks("2147483647.0"), std::numeric_limits<int32_t>::max());
  EXPECT_EQ(ranks("2147483648.0"), 0);
  EXPECT_EQ(ranks("-2147483648.0"), std::numeric_limits<int32_t>::min());
  EXPECT_EQ(ranks("-2147483649.0"), 0);
  const auto seed = [](const std::string& text) {
    v1::JobSpec read;
    return ParseYaml("seed: " + text, "job.yaml", {}, &read).ok() ? read.seed() : 0;
  };
  EXPECT_EQ(seed("9007199254740992.0"), uint64_t{9007199254740992});
  EXPECT_EQ(seed("9007199254740994.0"), 0u) << "its neighbours are not told apart";
  EXPECT_EQ(seed("9007199254740994"), uint64_t{9007199254740994});
  EXPECT_EQ(seed("18446744073709551615"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(seed("18446744073709551616"), 0u);
  EXPECT_EQ(seed("-1.0"), 0u);
}

TEST(SpecLoaderTest, OtherReadersOfYamlSeeTextsAndOneOrder) {
  v1::JobSpec job;
  job.set_name("true");
  for (const char* key : {"d", "b", "e", "a", "c"}) (*job.mutable_labels())[key] = key == std::string("a") ? "3" : "no";
  EXPECT_EQ(ToYaml(job), "name: \"true\"\nlabels:\n  a: \"3\"\n  b: \"no\"\n  c: \"no\"\n  d: \"no\"\n  e: \"no\"\n");
}

TEST(SpecLoaderTest, TimesAreText) {
  v1::Comparison comparison;
  ASSERT_TRUE(ParseYaml("created_at: 2026-01-31T12:00:00Z\npreference: tie\n", "c.yaml", {}, &comparison).ok());
  EXPECT_EQ(comparison.created_at().seconds(), 1769860800);
  EXPECT_THAT(ToYaml(comparison), HasSubstr("created_at: 2026-01-31T12:00:00Z"));
  EXPECT_FALSE(ParseYaml("created_at: yesterday\n", "c.yaml", {}, &comparison).ok());
}

TEST(SpecLoaderTest, JsonHasSnakeCaseNames) {
  v1::JobSpec job;
  job.mutable_sft()->set_batch_size(4);
  EXPECT_EQ(ToJson(job, /*pretty=*/false), R"({"sft":{"batch_size":4}})");
  // JSON has no number that is not finite: protobuf's has names for them.
  v1::Metric metric;
  metric.set_value(std::numeric_limits<double>::quiet_NaN());
  metric.set_low(-std::numeric_limits<double>::infinity());
  metric.set_high(std::numeric_limits<double>::infinity());
  EXPECT_EQ(ToJson(metric, /*pretty=*/false), R"({"value":"NaN","low":"-Infinity","high":"Infinity","n":"0"})");
  EXPECT_THAT(ToJson(job), HasSubstr("\n"));
}

// A reader of a report asks for ["value"]; a specification is what somebody wrote.
TEST(SpecLoaderTest, ZerosOfReportsAreShownAndThoseOfSpecificationsAreNot) {
  v1::Job job;
  job.set_id("a");
  job.mutable_spec()->set_name("a");
  job.mutable_spec()->mutable_sft()->mutable_optimizer()->set_learning_rate(0);
  (*job.mutable_result()->mutable_metrics())["reward/mean"];
  (*job.mutable_result()->mutable_metrics())["kl"].set_low(0);
  const auto json = nlohmann::json::parse(ToJson(job));
  EXPECT_EQ(json["result"]["metrics"]["reward/mean"], nlohmann::json({{"value", 0}, {"n", "0"}}));
  EXPECT_EQ(json["result"]["metrics"]["kl"], nlohmann::json({{"value", 0}, {"low", 0}, {"n", "0"}}));
  EXPECT_EQ(json["step"], "0");
  EXPECT_EQ(json["spec"], nlohmann::json({{"name", "a"}, {"sft", {{"optimizer", {{"learning_rate", 0}}}}}}));
  EXPECT_FALSE(json.contains("reason")) << "an empty text says nothing";
  EXPECT_THAT(ToYaml(job), testing::AllOf(HasSubstr("reward/mean:\n      value: 0\n"), HasSubstr("\nstep: 0\n")));
  // In lists and in maps of numbers, and read back the same.
  v1::MetricPoint point;
  (*point.mutable_values())["kl"] = 0;
  EXPECT_EQ(nlohmann::json::parse(ToJson(point))["values"]["kl"], 0);
  v1::SampleView view;
  view.mutable_row()->mutable_id()->set_ordinal(3);
  view.mutable_sample()->mutable_score()->add_components()->set_name("dog");
  const std::string text = ToJson(view);
  const auto sample = nlohmann::json::parse(text);
  EXPECT_EQ(sample["sample"]["score"]["components"][0]["value"], 0);
  EXPECT_TRUE(sample["row"]["id"].contains("index")) << text;
  v1::SampleView again;
  ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(text, &again).ok()) << text;
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(view, again)) << text;
}

TEST(SpecLoaderTest, FilesAreNamedInErrors) {
  const ScratchDir dir;
  v1::JobSpec job;
  EXPECT_TRUE(absl::IsNotFound(LoadYamlFile(dir.File("none.yaml"), {}, &job)));
  std::ofstream(dir.File("bad.yaml")) << "nme: x\n";
  EXPECT_THAT(std::string(LoadYamlFile(dir.File("bad.yaml"), {}, &job).message()),
              StartsWith(dir.File("bad.yaml") + ":1:1: unknown key \"nme\" (did you mean \"name\"?)"));
}

TEST(NearestNameTest, FindsSlipsAndNothingElse) {
  const std::vector<std::string> names = {"learning_rate", "beta1", "beta2", "model"};
  EXPECT_EQ(NearestName("learning-rate", names), "learning_rate");
  EXPECT_EQ(NearestName("lerning_rtae", names), "learning_rate");
  EXPECT_EQ(NearestName("modle", names), "model");
  EXPECT_EQ(NearestName("temperature", names), "");
  EXPECT_EQ(NearestName("x", {}), "");
  EXPECT_EQ(NearestName("abcdef", {"abcxyz"}), "") << "half of it is another";
  EXPECT_EQ(NearestName(std::string(129, 'a'), {std::string(128, 'a')}), "") << "nobody mistypes so much";
}

}  // namespace
}  // namespace rlhf
