// What stands behind people's judgements: agreement between raters, sets and their digests, imports.
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/comparison_line.h"
#include "coordinator/feedback/agreement.h"
#include "coordinator/feedback/comparison_set.h"
#include "coordinator/feedback/import_log.h"
#include "coordinator/feedback/import_session.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(AgreementTest, MatchesScikitLearnAndKrippendorff) {
  const auto golden = Golden("agreement.json");
  ASSERT_FALSE(golden["cases"].empty());
  for (const auto& one : golden["cases"]) {
    const auto& table = one["table"];
    std::vector<Judgements> items(table[0].size());
    for (size_t r = 0; r < table.size(); ++r) {
      for (size_t i = 0; i < items.size(); ++i) {
        if (!table[r][i].is_null()) items[i][absl::StrCat("r", r)] = table[r][i].get<double>();
      }
    }
    EXPECT_NEAR(KrippendorffAlpha(items, MeasurementLevel::kNominal), one["alpha_nominal"].get<double>(), 1e-12);
    EXPECT_NEAR(KrippendorffAlpha(items, MeasurementLevel::kInterval), one["alpha_interval"].get<double>(), 1e-12);
    for (const auto& pair : one["pairs"]) {
      std::vector<std::pair<double, double>> both;
      for (const Judgements& item : items) {
        const auto a = item.find(absl::StrCat("r", pair["a"].get<int>()));
        const auto b = item.find(absl::StrCat("r", pair["b"].get<int>()));
        if (a != item.end() && b != item.end()) both.emplace_back(a->second, b->second);
      }
      EXPECT_EQ(both.size(), pair["common"].get<size_t>());
      if (pair["kappa"].is_null()) continue;
      EXPECT_NEAR(CohenKappa(both), pair["kappa"].get<double>(), 1e-12);
    }
  }
  EXPECT_TRUE(std::isnan(KrippendorffAlpha({{{"a", 1}, {"b", 1}}}, MeasurementLevel::kNominal)));
  EXPECT_TRUE(std::isnan(CohenKappa({})));
}

v1::Comparison Judged(const std::string& rater, int item, bool first_better, bool swapped) {
  v1::Comparison c;
  c.set_rater(rater);
  c.mutable_prompt()->set_text(absl::StrCat("Q", item));
  c.mutable_first()->set_text(swapped ? "b" : "a");
  c.mutable_second()->set_text(swapped ? "a" : "b");
  c.set_preference(first_better != swapped ? v1::FIRST : v1::SECOND);
  return c;
}

TEST(AgreementTest, TheOrderOnTheScreenDoesNotMatterAndARaterFarOffIsFlagged) {
  std::vector<v1::Comparison> all;
  for (int i = 0; i < 60; ++i) {
    const bool truth = i % 3 != 0;
    for (int r = 0; r < 3; ++r) all.push_back(Judged(absl::StrCat("good", r), i, truth, (i + r) % 2 == 0));
    all.push_back(Judged("random", i, (i * 7919 / 13) % 2 == 0, false));
    v1::Comparison planted = Judged("random", 1000 + i, true, false);
    planted.set_planted(true);
    planted.set_known(i % 2 == 0 ? v1::FIRST : v1::SECOND);
    all.push_back(planted);
  }
  const v1::AgreementReport report = MeasureAgreement(all);
  EXPECT_EQ(report.preference().items(), 60);
  EXPECT_GT(report.preference().krippendorff_alpha(), 0.2);
  for (const auto& rater : report.raters()) {
    EXPECT_EQ(rater.flagged(), rater.rater() == "random") << rater.rater() << ": " << rater.why();
    if (rater.rater() == "random") {
      EXPECT_THAT(rater.why(), HasSubstr("agrees with the others"));
      EXPECT_DOUBLE_EQ(rater.planted().value(), 0.5);
    }
  }
  EXPECT_THAT(RatersBelow(all, 0.6), ElementsAre("random"));
  EXPECT_THAT(RatersBelow(all, 0.4), ElementsAre());
}

TEST(AgreementTest, ARaterWhoAlwaysTakesTheSideIsFlaggedAndOneWhoLeansIsNot) {
  // Item by item the left answer, for one who reads them now the one and now the other, for some now and then a tie.
  std::vector<v1::Comparison> all;
  const auto judge = [&all](const std::string& rater, int n, const std::function<bool(int)>& takes_first) {
    for (int i = 0; i < n; ++i) {
      v1::Comparison& c = all.emplace_back(Judged(rater, i, true, false));
      const bool second_shown_first = i % 2 == 0;
      c.set_second_shown_first(second_shown_first);
      c.set_preference(takes_first(i) != second_shown_first ? v1::FIRST : v1::SECOND);
    }
  };
  judge("left", 20, [](int) { return true; });
  judge("right", 100, [](int i) { return i % 10 == 0; });
  judge("half-left", 200, [](int i) { return i % 4 != 0; });
  judge("leans", 1000, [](int i) { return i % 5 < 3; });
  judge("few", 19, [](int) { return true; });
  judge("ties", 40, [](int) { return true; });
  for (v1::Comparison& c : all) {
    if (c.rater() == "ties") c.set_preference(v1::TIE);
  }
  for (int i = 0; i < 40; ++i) {
    all.push_back(Judged("imported", i, true, false));  // the better one comes first in many files
    v1::Comparison& planted = all.emplace_back(Judged("planted", i, true, false));
    planted.set_second_shown_first(false);
    planted.set_planted(true);
    planted.set_known(v1::FIRST);
  }
  std::map<std::string, v1::RaterQuality> raters;
  const v1::AgreementReport report = MeasureAgreement(all);
  for (const v1::RaterQuality& rater : report.raters()) raters[rater.rater()] = rater;
  for (const char* far : {"left", "right", "half-left"})
    EXPECT_THAT(raters[far].why(), HasSubstr("prefers the answer shown")) << far;
  EXPECT_THAT(raters["left"].why(), HasSubstr("prefers the answer shown first in 1.000 of 20"));
  EXPECT_THAT(raters["right"].why(), HasSubstr("prefers the answer shown second in 0.900 of 100"));
  EXPECT_TRUE(raters["left"].flagged());
  EXPECT_EQ(raters["left"].first_preferred().value(), 1);
  EXPECT_EQ(raters["leans"].first_preferred().n(), 1000);
  for (const char* fine : {"leans", "few", "ties", "imported", "planted"})
    EXPECT_THAT(raters[fine].why(), testing::Not(HasSubstr("shown"))) << fine;
  for (const char* unknown : {"ties", "imported", "planted"}) EXPECT_EQ(raters[unknown].first_preferred().n(), 0);
}

// Values of scipy.stats.binomtest(heads, n).pvalue.
TEST(AgreementTest, TheTestOfAFairCoinIsExact) {
  EXPECT_NEAR(FairCoinP(20, 20), 1.9073486328125e-06, 1e-15);
  EXPECT_NEAR(FairCoinP(3, 20), 0.0025768280029296875, 1e-12);
  EXPECT_NEAR(FairCoinP(17, 20), 0.0025768280029296875, 1e-12);
  EXPECT_NEAR(FairCoinP(15, 20), 0.04138946533203125, 1e-12);
  EXPECT_EQ(FairCoinP(10, 20), 1);
}

TEST(ComparisonSetTest, ASetLeavesOutRatersAndPlantedQuestionsAndHasADigest) {
  std::vector<v1::Comparison> all = {Judged("a", 1, true, false), Judged("b", 2, true, false),
                                     Judged("c", 3, true, false), Judged("c", 4, true, false)};
  all[2].set_preference(v1::TIE);
  all[3].set_planted(true);
  const auto build = [&](std::set<std::string> excluded, std::string* lines) {
    std::ostringstream out;
    SetBuilder builder(&out, std::move(excluded));
    for (const auto& c : all) builder.Add(c);
    *lines = out.str();
    return builder.Finish();
  };
  std::string lines, again;
  const auto whole = build({}, &lines);
  EXPECT_EQ(whole.comparisons(), 3);
  EXPECT_EQ(whole.ties(), 1);
  EXPECT_EQ(lines,
            "{\"prompt\":\"Q1\",\"chosen\":\"a\",\"rejected\":\"b\"}\n{\"prompt\":\"Q2\",\"chosen\":\"a\",\"rejected\":"
            "\"b\"}\n{\"prompt\":\"Q3\",\"chosen\":\"a\",\"rejected\":\"b\",\"tie\":true}\n");
  EXPECT_EQ(build({}, &again).content_sha256(), whole.content_sha256());
  const auto without = build({"b"}, &again);
  EXPECT_EQ(without.comparisons(), 2);
  EXPECT_NE(without.content_sha256(), whole.content_sha256());
  EXPECT_THAT(without.excluded_raters(), ElementsAre("b"));

  EdgeMemoryStore store;
  auto table = SetTable::Load(&store);
  ASSERT_TRUE(table.ok());
  WriteBatch batch;
  for (v1::ComparisonSet set : {whole, without}) {
    set.set_project("default");
    set.set_name("human/v");
    set.set_digest("sha256:" + set.content_sha256());
    table->Add(&set, &batch);
  }
  store.Commit(std::move(batch), [](absl::Status) {});
  table = SetTable::Load(&store);
  ASSERT_EQ(table->List("default", "human/v").size(), 2u);
  EXPECT_EQ(table->List("default", "human/v")[1].version(), 2);
  EXPECT_TRUE(table->List("default", "human").empty());
  WriteBatch forgotten;
  EXPECT_EQ(table->Forget("b", &forgotten).size(), 1u);
  EXPECT_TRUE(table->List("default", "")[0].forgotten());
}

TEST(ComparisonSetTest, ASetThatCannotStandIsMadeFromTheStoreAgain) {
  EdgeMemoryStore store;
  auto table = SetTable::Load(&store);
  ASSERT_TRUE(table.ok());
  WriteBatch batch;
  const auto add = [&](const std::string& name, const std::string& digest, const std::string& made_by,
                       const std::vector<std::string>& raters, const std::string& previous) {
    v1::ComparisonSet set;
    set.set_project("default");
    set.set_name(name);
    set.set_digest(digest);
    set.set_made_by(made_by);
    set.set_previous(previous);
    for (const std::string& rater : raters) (*set.mutable_raters())[rater] = 1;
    table->Add(&set, &batch);
  };
  add("human", "h1", "eva", {"carl"}, "");
  add("job1", "s1", "job1", {"carl", "anna"}, "h1");
  add("job2", "s2", "job2", {"carl", "anna", "ben"}, "s1");
  const auto parts = [&](const std::string& digest, const std::set<std::string>& excluded) {
    std::string all;
    const auto made = PartsOfSet(*table, digest, excluded, [](const std::string& id) { return id != "gone"; });
    if (!made.ok()) return std::string(made.status().message());
    for (const SetPart& part : *made) absl::StrAppend(&all, part.job_id, part.lines.digest(), " ");
    return all;
  };
  EXPECT_EQ(parts("s2", {}), "s2 ") << "nobody is to be left out";
  EXPECT_EQ(parts("of-a-file", {"anna"}), "of-a-file ");
  EXPECT_EQ(parts("s2", {"ben"}), "s1 job2 ");
  EXPECT_EQ(parts("s2", {"anna"}), "h1 job1 job2 ");
  EXPECT_EQ(parts("h1", {"carl"}), "h1 ") << "a frozen set stands as it was frozen";
  EXPECT_EQ(table->Forget("carl", &batch).size(), 3u);
  EXPECT_THAT(parts("s2", {}), HasSubstr("set human version 1 (h1) has judgements of a rater who was forgotten"));
  add("human", "h2", "coordinator", {"dora"}, "");
  EXPECT_EQ(parts("s2", {}), "h2 job1 job2 ") << "the newest version without the forgotten";

  // Who was left out of what a set begins with is named as left out of it.
  std::ostringstream out;
  SetBuilder builder(&out, {"ben"});
  v1::ComparisonSet previous;
  previous.add_excluded_raters("anna");
  builder.Begin(previous);
  builder.Add(Judged("anna", 1, true, false));
  const v1::ComparisonSet made = builder.Finish();
  EXPECT_THAT(made.excluded_raters(), ElementsAre("anna", "ben"));
  EXPECT_EQ(made.comparisons(), 0);
}

v1::Comparison Rated(const std::string& rater, const std::string& prompt, const std::string& answer, double helpful,
                     double honest) {
  v1::Comparison c;
  c.set_id(absl::StrCat(rater, prompt, answer));
  c.set_kind(v1::FEEDBACK_RATING);
  c.set_rater(rater);
  c.mutable_prompt()->set_text(prompt);
  c.mutable_first()->set_text(answer);
  (*c.mutable_first_ratings())["helpful"] = helpful;
  (*c.mutable_first_ratings())["honest"] = honest;
  return c;
}

TEST(ComparisonSetTest, ARatersRatingsOfAPromptsAnswersBecomeComparisons) {
  std::vector<v1::Comparison> all = {Rated("a", "Q", "one", 2, 5),   Rated("a", "Q", "two", 9, 5),
                                     Rated("b", "Q", "three", 0, 0), Rated("a", "P", "four", 1, 1),
                                     Rated("a", "Q", "one", 7, 7),   Rated("b", "Q", "two", 1, 0)};
  all[4].set_planted(true);
  all[3].mutable_first_ratings()->erase("honest");
  all.push_back(Rated("a", "P", "five", 1, 3));
  const auto build = [&](bool pair_ratings, std::set<std::string> excluded, std::string* lines) {
    std::ostringstream out;
    SetBuilder builder(&out, std::move(excluded), SetBuilder::Kind::kComparisons, pair_ratings);
    for (const auto& c : all) builder.Add(c);
    const v1::ComparisonSet set = builder.Finish();
    *lines = out.str();
    return set;
  };
  std::string lines;
  EXPECT_EQ(build(false, {}, &lines).comparisons(), 0) << "by default ratings alone train nothing";
  const v1::ComparisonSet paired = build(true, {}, &lines);
  EXPECT_EQ(
      lines,
      "{\"prompt\":\"P\",\"chosen\":\"four\",\"rejected\":\"five\",\"tie\":true,\"ratings\":{\"helpful\":[1.0,1.0]}}\n"
      "{\"prompt\":\"Q\",\"chosen\":\"two\",\"rejected\":\"one\",\"ratings\":{\"helpful\":[9.0,2.0],\"honest\":[5.0,5."
      "0]}}"
      "\n"
      "{\"prompt\":\"Q\",\"chosen\":\"two\",\"rejected\":\"three\",\"ratings\":{\"helpful\":[1.0,0.0],\"honest\":[0.0,"
      "0.0]}}"
      "\n");
  EXPECT_EQ(paired.comparisons(), 3);
  EXPECT_EQ(paired.ties(), 1);
  EXPECT_EQ(paired.raters().at("a"), 2);
  EXPECT_EQ(build(true, {"b"}, &lines).comparisons(), 2);
  EXPECT_FALSE(PairOfRatings(all[0], all[0])) << "the same answer twice";
  const auto rounded = PairOfRatings(Rated("a", "Q", "one", 7.1, 0.4), Rated("a", "Q", "two", 7.3, 0.2));
  ASSERT_TRUE(rounded.has_value());
  EXPECT_EQ(rounded->preference(), v1::TIE) << "7.5 each, whatever the sums round to";

  // The verdict stays, a rating changes: another set.
  (*all[1].mutable_first_ratings())["helpful"] = 8;
  const v1::ComparisonSet other = build(true, {}, &lines);
  EXPECT_EQ(other.comparisons(), paired.comparisons());
  EXPECT_NE(other.content_sha256(), paired.content_sha256());
  v1::Comparison judged = Judged("a", 1, true, false);
  const std::string unrated = ComparisonDigest(judged);
  (*judged.mutable_first_ratings())["helpful"] = 3;
  const std::string of_first = ComparisonDigest(judged);
  EXPECT_NE(of_first, unrated);
  judged.mutable_first_ratings()->swap(*judged.mutable_second_ratings());
  EXPECT_NE(ComparisonDigest(judged), of_first);
}

TEST(ComparisonSetTest, ChatsWithoutATextDifferByTheirMessages) {
  const auto chat = [](const std::string& question) {
    v1::Comparison c = Judged("a", 1, true, false);
    c.mutable_prompt()->clear_text();
    v1::ChatMessage& message = *c.mutable_prompt()->add_messages();
    message.set_role("user");
    message.set_content(question);
    return c;
  };
  EXPECT_EQ(ComparisonDigest(chat("Who?")), ComparisonDigest(chat("Who?")));
  EXPECT_NE(ComparisonDigest(chat("Who?")), ComparisonDigest(chat("Why?"))) << "no duplicate of the other";
  // As sets that were made before have it.
  EXPECT_EQ(ComparisonDigest(Judged("a", 1, true, false)), "bcb8a36ad836ec2daaff18cfbe1ae4db");
}

TEST(ImportTest, RatingsAreFiniteNumbers) {
  v1::Comparison comparison;
  comparison.mutable_prompt()->set_text("Q");
  comparison.mutable_first()->set_text("one");
  comparison.set_preference(v1::FIRST);
  (*comparison.mutable_first_ratings())["honest"] = 7;
  (*comparison.mutable_second_ratings())["honest"] = -1;
  EXPECT_EQ(ImportProblem(comparison), "");
  (*comparison.mutable_second_ratings())["honest"] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(ImportProblem(comparison), "second_ratings.honest: expected a finite number, found nan");
  (*comparison.mutable_first_ratings())["honest"] = std::numeric_limits<double>::infinity();
  EXPECT_EQ(ImportProblem(comparison), "first_ratings.honest: expected a finite number, found inf");
}

TEST(ImportLogTest, OnlyWhatWasAcknowledgedIsRead) {
  ScratchDir dir;
  const std::string path = dir.File("logs/one");
  uint64_t length = 0;
  {
    auto writer = ImportLogWriter::Open(path, 0);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Append(Judged("a", 1, true, false)).ok());
    const auto synced = (*writer)->Sync();
    ASSERT_TRUE(synced.ok());
    length = *synced;
    ASSERT_TRUE((*writer)->Append(Judged("a", 2, true, false)).ok());
    ASSERT_TRUE((*writer)->Sync().ok());
  }
  const auto read = [&](uint64_t until) {
    std::vector<std::string> prompts;
    auto reader = ImportLogReader::Open(path, until);
    EXPECT_TRUE(reader.ok());
    v1::Comparison c;
    while (true) {
      const auto more = (*reader)->Next(&c);
      if (!more.ok()) prompts.push_back(std::string(absl::StatusCodeToString(more.status().code())));
      if (!more.ok() || !*more) return prompts;
      prompts.push_back(c.prompt().text());
    }
  };
  EXPECT_THAT(read(length), ElementsAre("Q1"));
  EXPECT_THAT(read(length + 3), ElementsAre("Q1", "DATA_LOSS"));
  ASSERT_TRUE(ImportLogWriter::Open(path, length).ok()) << "cuts what was not acknowledged";
  EXPECT_TRUE(absl::IsDataLoss(ImportLogWriter::Open(path, length + 1).status()));
  EXPECT_THAT(read(length + 3), ElementsAre("Q1", "DATA_LOSS")) << "cut where a record ends";
  std::ofstream(path, std::ios::app) << std::string(20, '\xff');
  EXPECT_THAT(read(length + 20), ElementsAre("Q1", "DATA_LOSS")) << "no size begins so";
}

}  // namespace
}  // namespace rlhf::coordinator
