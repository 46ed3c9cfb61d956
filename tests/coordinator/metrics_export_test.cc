// What the coordinator's state looks like to Prometheus; jobs are recovered from rows, the clock is the test's.
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/metrics.h"
#include "coordinator/metrics_export.h"
#include "tests/coordinator/jobs_process.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;
using testing::Not;

class MetricsExportTest : public testing::Test {
 protected:
  // Of a job that is there when the coordinator starts.
  static v1::Job JobIn(const std::string& name, v1::JobState state) {
    v1::Job job;
    job.set_id(name);
    job.set_state(state);
    job.mutable_spec()->set_name(name);
    job.mutable_spec()->set_project("default");
    job.mutable_spec()->mutable_sft();
    job.mutable_created_at()->set_seconds(1'600'000'000);
    if (state != v1::PENDING) job.mutable_started_at()->set_seconds(1'600'000'000);
    return job;
  }
  void Put(const v1::Job& job) {
    WriteBatch batch;
    batch.Put(Table::kJobs, job.id(), job.SerializeAsString());
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  }
  std::string Scraped() {
    process_.Recover();
    MetricsSources sources;
    sources.loop = &process_.loop;
    sources.jobs = process_.jobs.get();
    sources.sampling = process_.sampling.get();
    sources.fleet = process_.fleet.get();
    sources.oversight = process_.oversight.get();
    sources.events = process_.events.get();
    MetricsExport::Make(sources, &metrics_)->Refresh();
    return metrics_.Text();
  }
  static std::string ProgressOf(const std::string& job) {
    return "rlhf_job_last_progress_timestamp_seconds{project=\"default\",rlhf_job=\"" + job + "\"} ";
  }

  ScratchDir dir_;
  FakeClock clock_;
  EdgeMemoryStore store_;
  JobsProcess process_{&store_, &clock_, dir_.path()};
  MetricsRegistry metrics_{"coordinator"};
};

TEST_F(MetricsExportTest, ProgressIsWatchedOfJobsThatShouldMakeSomeAndOfNoOthers) {
  Put(JobIn("trains", v1::RUNNING));
  v1::Job read_only = JobIn("read-only", v1::PAUSED);
  read_only.set_reason("the volume of /data is read-only");
  read_only.set_reason_code(kDiskReadOnly);
  Put(read_only);
  v1::Job by_person = JobIn("by-person", v1::PAUSED);
  by_person.set_reason("paused by ada");
  Put(by_person);
  Put(JobIn("waits-for-learners", v1::PENDING));
  v1::Job pipeline = JobIn("pipeline", v1::RUNNING);
  v1::StageSpec* sft = pipeline.mutable_spec()->mutable_pipeline()->add_stages();
  sft->set_name("sft");
  sft->mutable_sft();
  pipeline.set_round(1);
  pipeline.add_children("stage");
  Put(pipeline);
  v1::Job stage = JobIn("stage", v1::RUNNING);
  stage.set_parent_id("pipeline");
  stage.set_stage("sft");
  stage.set_round(1);
  Put(stage);

  const std::string scraped = Scraped();
  EXPECT_THAT(scraped, HasSubstr("rlhf_jobs{kind=\"pipeline\",state=\"running\"} 1"));
  EXPECT_THAT(scraped, HasSubstr("rlhf_jobs{kind=\"sft\",state=\"paused\"} 2"));
  for (const char* job : {"trains", "read-only", "stage"})
    EXPECT_THAT(scraped, HasSubstr(ProgressOf(job) + "16")) << job;
  for (const char* job : {"by-person", "waits-for-learners", "pipeline"})
    EXPECT_THAT(scraped, Not(HasSubstr(ProgressOf(job)))) << job;
}

TEST_F(MetricsExportTest, AMonitorsAlarmIsASeriesOfItsOwnWithTheTimeOfTheNewest) {
  Put(JobIn("games", v1::RUNNING));
  for (const char* monitor : {"kl", "gold_drop", "kl"}) {
    WriteBatch batch;
    v1::JobEvent event;
    event.mutable_alert()->set_monitor(monitor);
    process_.events->Append("games", event, &batch);
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    clock_.Advance(absl::Seconds(60));
  }
  const auto at = [](absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); };
  const std::string scraped = Scraped();
  const auto value = [&scraped](const std::string& monitor) {
    const std::string series =
        "rlhf_job_alarm_timestamp_seconds{monitor=\"" + monitor + "\",project=\"default\",rlhf_job=\"games\"} ";
    const size_t found = scraped.find(series);
    return found == std::string::npos ? -1 : std::stod(scraped.substr(found + series.size()));
  };
  const double now = at(clock_.WallNow());
  EXPECT_NEAR(value("kl"), now - 60, 1);
  EXPECT_NEAR(value("gold_drop"), now - 120, 1);
  EXPECT_EQ(value("length"), -1) << "it raised none";
}

}  // namespace
}  // namespace rlhf::coordinator
