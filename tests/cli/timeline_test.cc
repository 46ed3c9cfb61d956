// A recorded job's rows and metrics as a Chrome trace.
#include "cli/report/timeline.h"

#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace rlhf::cli {
namespace {

using testing::ElementsAre;
using testing::Pair;

template <typename Message>
Message Parse(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

// Two workers, a reward server, two steps; the second step waits for a sample that was leased late.
TimelineJob Recorded() {
  TimelineJob job;
  job.job = Parse<v1::Job>(R"(
    id: "j1" spec { name: "small" } state: SUCCEEDED
    started_at { seconds: 100 } finished_at { seconds: 110 })");
  for (const char* text : {
           R"(id { job_id: "j1" step: 1 } attempt: 1 worker_id: "rollout-0"
              times { leased: 101000000 generated: 102000000 sent: 102100000 scored: 102500000 reward_server: "reward-0" })",
           R"(id { job_id: "j1" step: 1 index: 1 } attempt: 1 worker_id: "rollout-0"
              times { leased: 101500000 generated: 102500000 sent: 102600000 scored: 102700000 reward_server: "reward-0" })",
           R"(id { job_id: "j1" step: 2 } attempt: 3 worker_id: "rollout-1"
              times { leased: 101000000 generated: 103000000 sent: 103000000 scored: 103100000 reward_server: "reward-0" })",
           R"(id { job_id: "j1" step: 2 index: 1 } attempt: 1 worker_id: "rollout-0"
              times { leased: 105000000 generated: 106000000 })",
           // Of an older coordinator, and one that is still queued.
           R"(id { job_id: "j1" step: 3 } worker_id: "rollout-1")", R"(id { job_id: "j1" step: 3 index: 1 })"})
    job.rows.push_back(Parse<v1::SampleRow>(text));
  for (const char* text : {R"(step: 1 at { seconds: 104 } values { key: "seconds/wait_for_samples" value: 2 }
                              values { key: "seconds/train" value: 1 } values { key: "seconds/publish" value: 0.25 })",
                           R"(step: 2 at { seconds: 108 } values { key: "seconds/wait_for_samples" value: 1.5 }
                              values { key: "seconds/train" value: 1 } values { key: "seconds/publish" value: 0.5 })",
                           R"(step: 2 at { seconds: 109 } values { key: "kl" value: 1 })"})
    job.points.push_back(Parse<v1::MetricPoint>(text));
  return job;
}

struct Row {
  std::vector<nlohmann::json> spans;
  int process = 0;
};

std::map<std::string, Row> RowsOf(const nlohmann::json& trace) {
  std::map<std::pair<int, int>, std::string> names;
  for (const auto& event : trace["traceEvents"])
    if (event["ph"] == "M" && event["name"] == "thread_name")
      names[{event["pid"], event["tid"]}] = event["args"]["name"].get<std::string>();
  std::map<std::string, Row> rows;
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    Row& row = rows[names.at({event["pid"], event["tid"]})];
    row.spans.push_back(event);
    row.process = event["pid"];
  }
  return rows;
}

std::vector<std::pair<double, double>> TimesOf(const Row& row) {
  std::vector<std::pair<double, double>> times;
  for (const auto& span : row.spans)
    times.emplace_back(span["ts"].get<double>() / 1e6, span["dur"].get<double>() / 1e6);
  return times;
}

TEST(Timeline, EachRolesSpansAreWhereTheyWere) {
  const Timeline timeline = MakeTimeline({Recorded()});
  EXPECT_EQ(timeline.leases, 4);
  EXPECT_EQ(timeline.scorings, 3);
  const nlohmann::json trace = nlohmann::json::parse(timeline.chrome_json);
  EXPECT_EQ(trace["otherData"]["begin_unix_us"], 100'000'000);
  std::map<std::string, Row> rows = RowsOf(trace);
  EXPECT_THAT(TimesOf(rows["small"]), ElementsAre(Pair(0, 10)));
  // Two leases of a worker overlap; its first row says when it had any.
  EXPECT_THAT(TimesOf(rows["rollout-0"]), ElementsAre(Pair(1, 1.5), Pair(2.5, 2.5), Pair(5, 1)));
  EXPECT_EQ(rows["rollout-0"].spans[0]["name"], "busy");
  EXPECT_EQ(rows["rollout-0"].spans[1]["name"], "idle");
  EXPECT_THAT(TimesOf(rows["rollout-0 #1"]), ElementsAre(Pair(1, 1), Pair(5, 1)));
  EXPECT_THAT(TimesOf(rows["rollout-0 #2"]), ElementsAre(Pair(1.5, 1)));
  EXPECT_EQ(rows["rollout-0 #2"].spans[0]["args"]["sample"], "1/0/1");
  EXPECT_THAT(TimesOf(rows["rollout-1 #1"]), ElementsAre(Pair(1, 2)));
  EXPECT_EQ(rows["rollout-1 #1"].spans[0]["args"]["attempt"], 3);
  EXPECT_EQ(rows["reward-0 #1"].spans.size(), 3u);
  EXPECT_NE(rows["reward-0 #1"].process, rows["rollout-0 #1"].process);
  // wait, update, commit of both steps, without a gap: the first commit lasts until the second step is asked for.
  EXPECT_THAT(TimesOf(rows["small rank 0"]),
              ElementsAre(Pair(0.75, 2), Pair(2.75, 1), Pair(3.75, 1.25), Pair(5, 1.5), Pair(6.5, 1), Pair(7.5, 0.5)));
}

TEST(Timeline, OverlapsGapsAndWhatIsNotKnown) {
  TimelineJob job;
  job.job = Parse<v1::Job>(R"(id: "j1" spec { name: "small" } state: RUNNING
      started_at { seconds: 1 nanos: 500000000 } last_progress_at { seconds: 8 })");
  // One within another, one that begins where another ends, one that clocks have end before it began.
  for (const char* times : {"leased: 2000000 generated: 5000000", "leased: 3000000 generated: 4000000",
                            "leased: 5000000 generated: 6000000", "leased: 7000000 generated: 6900000",
                            "generated: 9000000", "scored: 9000000"})
    job.rows.push_back(
        Parse<v1::SampleRow>(absl::StrCat("id { job_id: \"j1\" } worker_id: \"w\" times { ", times, " }")));
  // The second step was begun before the first was told to be committed.
  for (const char* text : {R"(step: 1 at { seconds: 4 } values { key: "seconds/train" value: 1 })",
                           R"(step: 2 at { seconds: 5 } values { key: "seconds/train" value: 1.5 })"})
    job.points.push_back(Parse<v1::MetricPoint>(text));
  const Timeline timeline = MakeTimeline({job});
  EXPECT_EQ(timeline.leases, 4);
  EXPECT_EQ(timeline.scorings, 0);
  EXPECT_DOUBLE_EQ(timeline.learner.seconds, 2.5);
  EXPECT_DOUBLE_EQ(timeline.learner.publish, 0);
  std::map<std::string, Row> rows = RowsOf(nlohmann::json::parse(timeline.chrome_json));
  EXPECT_THAT(TimesOf(rows["small"]), ElementsAre(Pair(0, 6.5)));
  EXPECT_THAT(TimesOf(rows["w"]), ElementsAre(Pair(0.5, 4), Pair(4.5, 1), Pair(5.5, 0)));
  EXPECT_THAT(TimesOf(rows["w #1"]), ElementsAre(Pair(0.5, 3), Pair(3.5, 1), Pair(5.5, 0)));
  EXPECT_THAT(TimesOf(rows["w #2"]), ElementsAre(Pair(1.5, 1)));
  EXPECT_THAT(TimesOf(rows["small rank 0"]),
              ElementsAre(Pair(1.5, 0), Pair(1.5, 1), Pair(2.5, 0), Pair(2, 0), Pair(2, 1.5), Pair(3.5, 0)));
}

TEST(Timeline, TheLearnersShareIsOfItsWholeTime) {
  const LearnerShare share = MakeTimeline({Recorded()}).learner;
  EXPECT_EQ(share.steps, 2);
  EXPECT_DOUBLE_EQ(share.seconds, 7.25);
  EXPECT_DOUBLE_EQ(share.idle, 3.5 / 7.25);
  EXPECT_DOUBLE_EQ(share.update, 2 / 7.25);
  EXPECT_DOUBLE_EQ(share.publish, 1.75 / 7.25);
  // Of two stages together the same shares: one is as long as the other.
  const LearnerShare both = MakeTimeline({Recorded(), Recorded()}).learner;
  EXPECT_EQ(both.steps, 4);
  EXPECT_DOUBLE_EQ(both.seconds, 14.5);
  EXPECT_NEAR(both.idle, 3.5 / 7.25, 1e-12);
}

TEST(Timeline, AJobThatHasNotBegunIsAnEmptyTrace) {
  TimelineJob job;
  job.job.set_id("j1");
  const Timeline timeline = MakeTimeline({job});
  EXPECT_EQ(timeline.learner.steps, 0);
  const nlohmann::json trace = nlohmann::json::parse(timeline.chrome_json);
  EXPECT_TRUE(trace["traceEvents"].is_array());
  EXPECT_TRUE(trace["traceEvents"].empty());
}

}  // namespace
}  // namespace rlhf::cli
