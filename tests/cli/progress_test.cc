// The lines of `watch` and `submit --follow`: each says whose it is.
#include "cli/progress.h"

#include <gtest/gtest.h>

namespace rlhf::cli {
namespace {

v1::Job JobOf(const std::string& id, const std::string& stage, int round = 0) {
  v1::Job job;
  job.set_id(id);
  job.mutable_spec()->set_name("honesty");
  job.set_stage(stage);
  job.set_round(round);
  job.set_total_steps(60);
  return job;
}
v1::JobEvent State(const std::string& job_id, v1::JobState to, const std::string& reason = "") {
  v1::JobEvent event;
  event.set_job_id(job_id);
  event.mutable_state()->set_to(to);
  event.mutable_state()->set_reason(reason);
  return event;
}

TEST(ProgressTest, AStatesLineNamesItsStage) {
  ProgressView view;
  view.SetJob(JobOf("honesty-1", ""));
  view.SetJob(JobOf("ppo-2", "ppo", 1));
  view.SetJob(JobOf("ppo-3", "ppo", 2));
  EXPECT_EQ(view.Line(State("honesty-1", v1::RUNNING)), "honesty RUNNING");
  EXPECT_EQ(view.Line(State("ppo-2", v1::SUCCEEDED)), "ppo SUCCEEDED");
  EXPECT_EQ(view.Line(State("ppo-3", v1::FAILED, "no room")), "ppo (round 2) FAILED: no room");
  EXPECT_EQ(view.Line(State("unknown-4", v1::RUNNING)), "unknown-4 RUNNING");
}

TEST(ProgressTest, MessagesAlertsAndMetricsNameTheirs) {
  ProgressView view;
  view.SetJob(JobOf("honesty-1", ""));
  view.SetJob(JobOf("ppo-2", "ppo", 1));
  v1::JobEvent message;
  message.set_job_id("ppo-2");
  message.set_message("the learner group broke");
  EXPECT_EQ(view.Line(message), "ppo: the learner group broke");
  v1::JobEvent alert;
  alert.set_job_id("ppo-2");
  alert.mutable_alert()->set_monitor("kl");
  alert.mutable_alert()->set_text("it runs away");
  EXPECT_EQ(view.Line(alert), "ppo ALERT kl: it runs away");
  // A pipeline tells its stages' metrics among its own events.
  v1::JobEvent metrics;
  metrics.set_job_id("honesty-1");
  metrics.mutable_metrics()->set_job_id("ppo-2");
  metrics.mutable_metrics()->set_step(7);
  (*metrics.mutable_metrics()->mutable_values())["kl"] = 0.5;
  view.Apply(metrics);
  EXPECT_EQ(view.Line(metrics), "ppo step 7/60  KL 0.5");
  (*metrics.mutable_metrics()->mutable_values())["monitor/cut_by_context"] = 0;
  EXPECT_EQ(view.Line(metrics), "ppo step 7/60  KL 0.5");
  (*metrics.mutable_metrics()->mutable_values())["monitor/cut_by_context"] = 0.25;
  EXPECT_EQ(view.Line(metrics), "ppo step 7/60  KL 0.5  cut by context 0.25");
}

TEST(ProgressTest, TheBarIsAsLongAsTheTerminalIsWide) {
  ProgressView view;
  EXPECT_EQ(view.Bar(80), "");
  v1::JobEvent metrics;
  metrics.set_job_id("ppo-2");
  metrics.mutable_metrics()->set_step(7);
  (*metrics.mutable_metrics()->mutable_values())["loss"] = -1500;
  view.Apply(metrics);
  EXPECT_EQ(view.Bar(80), "ppo-2          step 7  loss -1.5k");
  (*metrics.mutable_metrics()->mutable_values())["total_steps"] = 14;
  view.Apply(metrics);
  const auto cells = [](int filled) {
    std::string out;
    for (int i = 0; i < 24; ++i) out += i < filled ? "━" : "╌";
    return out;
  };
  EXPECT_EQ(view.Bar(80), "ppo-2          " + cells(12) + "  7/14  loss -1.5k");
  EXPECT_EQ(view.Bar(39), "ppo-2          " + cells(12)) << "a character is a column";
  EXPECT_EQ(view.Bar(15), "ppo-2          ");
  metrics.mutable_metrics()->set_step(3);  // of a step that is told late
  view.Apply(metrics);
  EXPECT_EQ(view.Bar(45), "ppo-2          " + cells(12) + "  7/14");
}

}  // namespace
}  // namespace rlhf::cli
