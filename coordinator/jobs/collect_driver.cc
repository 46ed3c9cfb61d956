// collect: tasks for people, until enough are answered; then the comparisons become a data artifact.
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "coordinator/comparison_line.h"
#include "coordinator/jobs/collect_tasks.h"
#include "coordinator/jobs/driver.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kProgressEvery = absl::Seconds(1);

class CollectDriver final : public Driver {
 public:
  CollectDriver(JobHost* host, std::string job_id) : host_(host), job_id_(std::move(job_id)) {}

  void Start() override {
    const v1::Job& row = *job();
    const absl::StatusOr<std::string> path = deps().artifacts->Path(Resolved(row, row.spec().collect().samples()));
    if (!path.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(path.status().message()));
    if (deps().feedback->HasTasks(job_id_)) return Open({});
    deps().background->Run([host = host_, job_id = job_id_, this, path = *path, spec = row.spec(), loop = deps().loop] {
      absl::StatusOr<std::vector<v1::FeedbackTask>> tasks = [&]() -> absl::StatusOr<std::vector<v1::FeedbackTask>> {
        RLHF_ASSIGN_OR_RETURN(const std::vector<artifact::SampleRecord> samples, artifact::ReadSampleData(path));
        return MakeTasks(samples, spec.collect(), spec.seed(), job_id, spec.project());
      }();
      loop->Post([host, job_id, this, tasks = std::move(tasks)]() mutable {
        const v1::Job* current = host->Find(job_id);
        if (current == nullptr || IsTerminalState(current->state())) return;  // this driver is gone
        if (!tasks.ok()) return host->Fail(job_id, "BAD_DATA", std::string(tasks.status().message()));
        Open(*std::move(tasks));
      });
    });
  }

  void Stop(WriteBatch*) override { deps().feedback->CloseJob(job_id_); }

  void Tick() override {
    if (!open_) return;
    const absl::Duration now = deps().loop->clock().Now();
    v1::Job* row = job();
    const int64_t deadline = row->spec().collect().deadline_seconds();
    if (deadline > 0 && deps().loop->clock().WallNow() - FromTimestamp(row->started_at()) > absl::Seconds(deadline)) {
      return host_->Fail(
          job_id_, "DEADLINE",
          absl::StrCat(row->step(), " of ", row->total_steps(), " comparisons were given in ", deadline, " s"));
    }
    if (now - last_progress_ < kProgressEvery) return;
    const absl::StatusOr<v1::GetFeedbackStatsResponse> stats = deps().feedback->Stats(job_id_);
    if (!stats.ok() || stats->answered() == row->step()) return;
    last_progress_ = now;
    row->set_step(stats->answered());
    v1::MetricPoint point;
    point.set_step(row->step());
    (*point.mutable_values())["total_steps"] = static_cast<double>(row->total_steps());
    WriteBatch batch;
    host_->AppendMetrics(row, std::move(point), &batch);
    host_->Commit(job_id_, std::move(batch));
  }

  void Describe(JobFacts* facts) override {
    facts->starting = !open_;
    if (!open_) return;
    facts->collects = true;
    facts->wanted = job()->total_steps();
    facts->answered = job()->step();
    const absl::StatusOr<v1::GetFeedbackStatsResponse> stats = deps().feedback->Stats(job_id_);
    if (!stats.ok()) return;
    facts->answered = stats->answered();
    facts->handed_out = stats->handed_out();
  }

 private:
  v1::Job* job() const { return host_->Find(job_id_); }
  const JobsDeps& deps() const { return host_->deps(); }

  void Open(std::vector<v1::FeedbackTask> tasks) {
    v1::Job* row = job();
    WriteBatch batch;
    const absl::Status status =
        deps().feedback->OpenJob(job_id_, row->spec().project(), row->spec().collect(), std::move(tasks), &batch,
                                 [host = host_, job_id = job_id_, this] {
                                   const v1::Job* current = host->Find(job_id);
                                   if (current != nullptr && !IsTerminalState(current->state())) OnAnswers();
                                 });
    if (!status.ok()) return host_->Fail(job_id_, "STORE", std::string(status.message()));
    row->set_total_steps(row->spec().collect().comparisons());
    open_ = true;
    if (row->state() == v1::PENDING) host_->SetState(row, v1::WAITING, "for people's comparisons", "", &batch);
    host_->Commit(job_id_, std::move(batch), [host = host_, job_id = job_id_, this] {
      const v1::Job* current = host->Find(job_id);
      if (current != nullptr && !IsTerminalState(current->state())) OnAnswers();
    });
  }

  void OnAnswers() {
    const absl::StatusOr<v1::GetFeedbackStatsResponse> stats = deps().feedback->Stats(job_id_);
    if (!stats.ok() || publishing_) return;
    const bool all = stats->answered() + stats->skipped() >= stats->wanted();
    if (all) Publish();
  }

  void Publish() {
    publishing_ = true;
    v1::Job* row = job();
    auto comparisons = std::make_shared<const std::vector<v1::Comparison>>(deps().feedback->Comparisons(job_id_));
    const absl::StatusOr<std::string> staging = deps().artifacts->MakeStaging();
    if (!staging.ok()) return host_->Fail(job_id_, "STORE", std::string(staging.status().message()));
    int64_t ties = 0;
    for (const v1::Comparison& comparison : *comparisons) ties += comparison.preference() == v1::TIE ? 1 : 0;
    (*row->mutable_result()->mutable_metrics())["comparisons"].set_value(static_cast<double>(comparisons->size()));
    (*row->mutable_result()->mutable_metrics())["ties"].set_value(static_cast<double>(ties));
    row->set_step(static_cast<int64_t>(comparisons->size()));
    deps().background->Run([host = host_, job_id = job_id_, artifacts = deps().artifacts, comparisons,
                            staging = *staging, loop = deps().loop, project = row->spec().project()] {
      std::ofstream out(staging + "/comparisons.jsonl", std::ios::binary);
      for (const v1::Comparison& comparison : *comparisons) {
        // A tie says that both are alike; what they have in common teaches a reward model nothing it can be held to.
        if (comparison.preference() != v1::TIE) out << ComparisonLine(comparison) << "\n";
      }
      out.close();
      const bool good = out.good();
      loop->Post([host, job_id, artifacts, staging, good, project] {
        if (!good) return host->Fail(job_id, "STORE", absl::StrCat("cannot write ", staging, "/comparisons.jsonl"));
        artifacts->PublishDirectory(staging, "data", project, job_id, [host, job_id](auto artifact) {
          v1::Job* current = host->Find(job_id);
          if (current == nullptr || IsTerminalState(current->state())) return;
          if (!artifact.ok()) return host->Fail(job_id, "STORE", std::string(artifact.status().message()));
          (*current->mutable_result()->mutable_artifacts())["comparisons"] = artifact->digest();
          host->Succeed(job_id, WriteBatch());
        });
      });
    });
  }

  JobHost* const host_;
  const std::string job_id_;
  bool open_ = false, publishing_ = false;
  absl::Duration last_progress_ = absl::ZeroDuration();
};

}  // namespace

std::unique_ptr<Driver> MakeCollectDriver(JobHost* host, const std::string& job_id) {
  return std::make_unique<CollectDriver>(host, job_id);
}

}  // namespace rlhf::coordinator
