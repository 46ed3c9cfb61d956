#include "reward_server/components/interface.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "reward_server/components/ensemble.h"
#include "rlhf/v1/reward_service.grpc.pb.h"
#include "tests/testing/loopback_server.h"

namespace rlhf::reward {
namespace {

using testing::HasSubstr;

v1::Sample Answer(const std::string& text, const std::string& reference = "", int tokens = 5,
                  v1::FinishReason end = v1::END_OF_TEXT) {
  v1::Sample sample;
  sample.set_response_text(text);
  sample.mutable_prompt()->set_reference(reference);
  sample.set_finish_reason(end);
  for (int i = 0; i < tokens; ++i) sample.add_response_tokens(7);
  return sample;
}

double Value(const absl::StatusOr<std::unique_ptr<Component>>& component, const v1::Sample& sample) {
  EXPECT_TRUE(component.ok()) << component.status();
  const auto scores = (*component)->Score({&sample});
  EXPECT_EQ(scores.size(), 1u);
  EXPECT_TRUE(scores[0].ok()) << scores[0].status();
  return scores[0].value_or(-99);
}

TEST(RegexTest, GivesWhatItsMatchSays) {
  v1::RegexComponent spec;
  spec.set_pattern("d[oó]g");
  spec.set_match(2);
  spec.set_no_match(-1);
  EXPECT_EQ(Value(MakeRegex(spec), Answer("a dog barks")), 2);
  EXPECT_EQ(Value(MakeRegex(spec), Answer("a cat")), -1);
  spec.set_pattern("(unclosed");
  const auto bad = MakeRegex(spec);
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("(unclosed"));
}

TEST(RegexTest, AMatchIsOneUnlessItIsSaidToBeZero) {
  v1::RegexComponent spec;
  spec.set_pattern("dog");
  EXPECT_EQ(Value(MakeRegex(spec), Answer("a dog")), 1);
  EXPECT_EQ(Value(MakeRegex(spec), Answer("a cat")), 0);
  spec.set_match(0);
  spec.set_no_match(1);
  EXPECT_EQ(Value(MakeRegex(spec), Answer("a dog")), 0);
  EXPECT_EQ(Value(MakeRegex(spec), Answer("a cat")), 1);
}

TEST(RegexTest, OneThatNeedsTooManyStepsIsAtFaultItself) {
  v1::RegexComponent spec;
  spec.set_pattern("(a|aa)+$");
  const auto component = MakeRegex(spec);
  ASSERT_TRUE(component.ok()) << component.status();
  const v1::Sample easy = Answer("aaaa"), hard = Answer(absl::StrCat(std::string(80, 'a'), "b"));
  const auto scores = (*component)->Score({&easy, &hard});
  EXPECT_EQ(scores[0].value_or(0), 1);
  // It would be the same tomorrow: not to be tried again.
  EXPECT_EQ(scores[1].status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(scores[1].status().message()),
              HasSubstr("\"(a|aa)+$\" needs more than 1000000 steps on this text"));
}

TEST(LengthTest, FallsLinearlyOutsideItsBounds) {
  v1::LengthComponent spec;
  spec.set_min_tokens(4);
  spec.set_max_tokens(6);
  spec.set_slack(2);
  EXPECT_EQ(Value(MakeLength(spec), Answer("x", "", 5)), 1);
  EXPECT_EQ(Value(MakeLength(spec), Answer("x", "", 7)), 0.5);
  EXPECT_EQ(Value(MakeLength(spec), Answer("x", "", 3)), 0.5);
  EXPECT_EQ(Value(MakeLength(spec), Answer("x", "", 20)), 0);
  spec.set_require_eos(true);
  EXPECT_EQ(Value(MakeLength(spec), Answer("x", "", 5, v1::MAX_TOKENS)), 0);
}

TEST(ExactAnswerTest, TrimsAndForgivesAFullStop) {
  v1::ExactAnswerComponent spec;
  EXPECT_EQ(Value(MakeExactAnswer(spec), Answer("  Paris.", "Paris")), 1);
  EXPECT_EQ(Value(MakeExactAnswer(spec), Answer("paris", "Paris")), 0);
  EXPECT_EQ(Value(MakeExactAnswer(spec), Answer("Paris is nice", "Paris")), 0);
  spec.set_ignore_case(true);
  EXPECT_EQ(Value(MakeExactAnswer(spec), Answer("paris", "Paris")), 1);
}

TEST(ExactAnswerTest, WithoutAReferenceNothingIsRight) {
  v1::ExactAnswerComponent spec;
  for (const char* text : {"", " ", ".", "Paris"}) EXPECT_EQ(Value(MakeExactAnswer(spec), Answer(text, "")), 0) << text;
}

TEST(AbstentionTest, KnowsTheUsualWords) {
  const auto component = MakeAbstention({});
  EXPECT_EQ(Value(component, Answer("I do not know.")), 1);
  EXPECT_EQ(Value(component, Answer("I'm not sure about that")), 1);
  EXPECT_EQ(Value(component, Answer("It is in Rome.")), 0);
}

TEST(ActionClaimTest, SeesClaimsAndNotRefusals) {
  const auto component = MakeActionClaim({});
  EXPECT_EQ(Value(component, Answer("I have sent the e-mail.")), 1);
  EXPECT_EQ(Value(component, Answer("Done, the bank was called.")), 1);
  EXPECT_EQ(Value(component, Answer("I cannot send e-mails.")), 0);
}

TEST(SentenceShareTest, CountsSentences) {
  v1::SentenceShareComponent spec;
  spec.set_pattern("\\bdog\\b");
  EXPECT_DOUBLE_EQ(Value(MakeSentenceShare(spec), Answer("A dog ran. The cat sat. Dogs bark! See the dog?")), 0.5);
}

TEST(SentenceShareTest, TheLastSentenceCountsWithoutItsFullStopAndNothingHasNoShare) {
  v1::SentenceShareComponent spec;
  spec.set_pattern("\\bdog\\b");
  EXPECT_DOUBLE_EQ(Value(MakeSentenceShare(spec), Answer("A cat sat. See the dog")), 0.5);
  EXPECT_DOUBLE_EQ(Value(MakeSentenceShare(spec), Answer("See the dog")), 1);
  EXPECT_DOUBLE_EQ(Value(MakeSentenceShare(spec), Answer("A dog ran.  \n")), 1) << "space is no sentence";
  EXPECT_DOUBLE_EQ(Value(MakeSentenceShare(spec), Answer("")), 0);
}

class UserService final : public v1::ExternalRewardService::Service {
 public:
  grpc::Status ScoreTexts(grpc::ServerContext*, const v1::ScoreTextsRequest* request,
                          v1::ScoreTextsResponse* response) override {
    if (request->component() == "broken") return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "no more today");
    for (const v1::TextToScore& text : request->texts()) {
      last = text;
      response->add_values(request->component() == "infinite" && text.response() == "four"
                               ? std::numeric_limits<double>::infinity()
                               : static_cast<double>(text.response().size()));
    }
    if (request->component() == "short") response->mutable_values()->RemoveLast();
    return grpc::Status::OK;
  }
  v1::TextToScore last;
};

TEST(ExternalTest, AUsersServiceScoresOrFailsWithATypedStatus) {
  UserService service;
  const auto server = ServeOnLoopback({&service});
  v1::ExternalComponent spec;
  spec.set_address(absl::StrCat("127.0.0.1:", server->port()));
  spec.set_plaintext(true);
  spec.set_timeout_ms(5000);
  EXPECT_EQ(Value(MakeExternal("length", spec), Answer("four")), 4);
  v1::Sample sample = Answer("four", "reference");
  sample.mutable_prompt()->set_text("prompt");
  sample.mutable_prompt()->set_category("known");
  (*sample.mutable_prompt()->mutable_tags())["length"] = "short";
  EXPECT_EQ(Value(MakeExternal("length", spec), sample), 4);
  EXPECT_EQ(service.last.prompt(), "prompt");
  EXPECT_EQ(service.last.response(), "four");
  EXPECT_EQ(service.last.reference(), "reference");
  EXPECT_EQ(service.last.category(), "known");
  EXPECT_EQ(service.last.tags().at("length"), "short");
  const auto infinite = MakeExternal("infinite", spec);
  ASSERT_TRUE(infinite.ok());
  const v1::Sample longer = Answer("longer");
  const auto values = (*infinite)->Score({&sample, &longer});
  EXPECT_EQ(values[0].status().code(), absl::StatusCode::kInternal) << "no number, and its sample's alone";
  EXPECT_EQ(values[1].value_or(0), 6);
  const auto broken = MakeExternal("broken", spec);
  ASSERT_TRUE(broken.ok());
  EXPECT_EQ((*broken)->Score({&sample})[0].status().code(), absl::StatusCode::kResourceExhausted);
  const auto incomplete = MakeExternal("short", spec);
  ASSERT_TRUE(incomplete.ok());
  EXPECT_FALSE((*incomplete)->Score({&sample})[0].ok());
  server->Shutdown(absl::ZeroDuration());
  const auto gone = MakeExternal("length", spec);
  ASSERT_TRUE(gone.ok());
  EXPECT_FALSE((*gone)->Score({&sample})[0].ok());
}

TEST(EnsembleTest, CombinesMembersAndKeepsTheirScores) {
  EXPECT_DOUBLE_EQ(CombineEnsemble(v1::ENSEMBLE_MEAN, 0, {1, 2, 6}), 3);
  EXPECT_DOUBLE_EQ(CombineEnsemble(v1::ENSEMBLE_MIN, 0, {1, 2, 6}), 1);
  EXPECT_DOUBLE_EQ(CombineEnsemble(v1::ENSEMBLE_MEAN_MINUS_STD, 0.5, {1, 2, 6}), 3 - 0.5 * std::sqrt(7.0));
  const auto fixed = [](double value) {
    return PerSample([value](const v1::Sample& sample) -> absl::StatusOr<double> {
      if (sample.response_text() == "bad" && value < 0) return absl::InvalidArgumentError("too long");
      return value;
    });
  };
  std::vector<std::unique_ptr<Component>> members;
  members.push_back(fixed(-1));
  members.push_back(fixed(3));
  Ensemble ensemble(v1::ENSEMBLE_MEAN, 0, std::move(members));
  const v1::Sample good = Answer("good"), bad = Answer("bad");
  const auto scores = ensemble.Score({&good, &bad});
  EXPECT_DOUBLE_EQ(*scores[0], 1);
  EXPECT_FALSE(scores[1].ok()) << "without one member there is no score";
  EXPECT_EQ((*ensemble.parts())[1][0], 3);
}

}  // namespace
}  // namespace rlhf::reward
