// sample and evaluate: every prompt is answered as often as the job says, and the answers scored if there is a scorer;
// then the samples become a data artifact.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "coordinator/jobs/cut_answers.h"
#include "coordinator/jobs/driver.h"
#include "coordinator/jobs/generated_samples.h"
#include "coordinator/jobs/suite_tags.h"

namespace rlhf::coordinator {
namespace {

class GeneratingDriver final : public Driver, public SamplingListener {
 public:
  GeneratingDriver(JobHost* host, std::string job_id) : host_(host), job_id_(std::move(job_id)) {}

  void Start() override {
    const v1::Job& row = *job();
    const v1::JobSpec& spec = row.spec();
    const std::string prompts = Resolved(row, spec.has_sample() ? spec.sample().prompts() : spec.evaluate().suite());
    const int limit = spec.has_sample() ? spec.sample().num_prompts() : spec.evaluate().limit();
    LoadPrompts(deps(), prompts, limit > 0, spec.seed(), limit, host_->WhileActive(job_id_, [this](auto loaded) {
      if (!loaded.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(loaded.status().message()));
      if (const absl::Status status = CheckSlices(job()->spec().evaluate(), **loaded); !status.ok())
        return host_->Fail(job_id_, "BAD_DATA", std::string(status.message()));
      Begin(*std::move(loaded));
    }));
  }

  void Stop(WriteBatch* batch) override {
    deps().sampling->CancelOpen(job_id_, batch);
    deps().sampling->RemoveJob(job_id_);
  }
  void SetPaused(bool paused, WriteBatch*) override { deps().sampling->SetPaused(job_id_, paused); }

  void Tick() override {
    v1::Job* row = job();
    const absl::Duration now = deps().loop->clock().Now();
    // A store that refused the write before publishing may take it now.
    if (begun_ && row->prompt_cursor() == static_cast<int64_t>(prompts_) && deps().sampling->StepScored(job_id_, 0))
      PublishWhenDurable();
    if (!begun_ || now - last_progress_ < kProgressEvery) return;
    const v1::LedgerCounts counts = deps().sampling->Counts(job_id_);
    const int64_t finished = counts.scored() + counts.delivered();
    if (finished == row->step()) return;
    last_progress_ = now;
    Report(finished);
  }

  void OnStepScored(const std::string&, int64_t) override {
    v1::Job* row = job();
    if (row->prompt_cursor() < static_cast<int64_t>(prompts_)) {
      WriteBatch batch;
      Issue(&batch);
      return host_->Commit(job_id_, std::move(batch));
    }
    PublishWhenDurable();
  }
  void OnStepEndedShort(const std::string& job_id, int64_t step) override {
    // Of before a restart, when what comes of it had not been written.
    const std::vector<v1::SampleRow> failed = deps().sampling->FailedOf(job_id, step);
    if (!failed.empty()) OnSampleFailed(job_id, failed.front());
  }
  void OnSampleFailed(const std::string&, const v1::SampleRow& row) override {
    host_->Fail(job_id_, "SAMPLE_FAILED",
                absl::StrCat("prompt ", row.id().ordinal(), ", sample ", row.id().index(), ": ", row.reason()));
  }

  void Describe(JobFacts* facts) override {
    facts->starting = !begun_;
    facts->unpublished = unpublished_;
    if (!begun_) return;
    DescribeSamples(deps(), job_id_, &facts->samples);
    facts->no_progress = std::min(facts->no_progress, facts->samples.since);
  }

 private:
  v1::Job* job() const { return host_->Find(job_id_); }
  const JobsDeps& deps() const { return host_->deps(); }
  bool is_sample() const { return job()->spec().has_sample(); }
  int per_prompt() const { return is_sample() ? job()->spec().sample().samples_per_prompt() : 1; }

  void Begin(std::shared_ptr<const std::vector<v1::Prompt>> prompts) {
    v1::Job& row = *job();
    prompts_ = prompts->size();
    SamplingPlan plan = PlanOf(row);
    plan.prompts = std::move(prompts);
    plan.samples_per_prompt = per_prompt();
    plan.sampling = SamplingOf(row.spec());
    plan.policy.set_job_id(job_id_);
    plan.policy.set_deterministic(row.spec().deterministic());
    plan.policy.set_artifact(Resolved(row, is_sample() ? row.spec().sample().model() : row.spec().evaluate().model()));
    plan.scorer = ResolvedScorer(row, is_sample() ? row.spec().sample().scorer() : row.spec().evaluate().graders());
    plan.score = !plan.scorer.components().empty();
    plan.delivers = true;
    if (const absl::Status status = deps().sampling->AddJob(std::move(plan), this); !status.ok()) {
      return host_->Fail(job_id_, "BAD_DATA", std::string(status.message()));
    }
    deps().sampling->SetPaused(job_id_, row.state() == v1::PAUSED);
    row.set_total_steps(static_cast<int64_t>(prompts_) * per_prompt());
    begun_ = true;
    WriteBatch batch;
    if (row.state() == v1::PENDING) host_->SetState(&row, v1::RUNNING, "", "", &batch);
    if (row.prompt_cursor() == 0) Issue(&batch);
    host_->Commit(job_id_, std::move(batch));
    // Everything may have been scored before a restart.
    if (row.prompt_cursor() == static_cast<int64_t>(prompts_) && deps().sampling->StepScored(job_id_, 0)) Publish();
  }

  void Issue(WriteBatch* batch) {
    v1::Job& row = *job();
    const int64_t left = static_cast<int64_t>(prompts_) - row.prompt_cursor();
    const int count = static_cast<int>(std::min<int64_t>(left, std::max(1, deps().issued_at_once / per_prompt())));
    deps().sampling->IssueStep(job_id_, 0, row.prompt_cursor(), count, batch);
    row.set_prompt_cursor(row.prompt_cursor() + count);
  }

  void Report(int64_t finished) {
    v1::Job* row = job();
    row->set_step(finished);
    const Sampling::Rates rates = deps().sampling->RatesOf(job_id_);
    v1::MetricPoint point;
    point.set_step(finished);
    (*point.mutable_values())["total_steps"] = static_cast<double>(row->total_steps());
    (*point.mutable_values())["samples_per_second"] = rates.samples_per_second;
    (*point.mutable_values())["tokens_per_second"] = rates.tokens_per_second;
    WriteBatch batch;
    host_->AppendMetrics(row, std::move(point), &batch);
    host_->Commit(job_id_, std::move(batch));
  }

  // Samples are read from the disk, where the last that memory has scored may not have arrived: a write behind theirs
  // shows that they have.
  void PublishWhenDurable() {
    if (publishing_ || std::exchange(waiting_, true)) return;
    auto durable = host_->WhileActive(job_id_, [this](const absl::Status& status) {
      waiting_ = false;
      if (status.ok()) Publish();  // else at a later tick
    });
    host_->CommitThen(job_id_, WriteBatch(),
                      [loop = deps().loop, durable = std::move(durable)](absl::Status status) mutable {
                        loop->Post([durable = std::move(durable), status]() mutable { durable(status); });
                      });
  }

  void Publish() {
    if (std::exchange(publishing_, true)) return;
    if (unpublished_.empty()) Report(job()->total_steps());  // not at every try
    Artifacts::Finder against;
    if (job()->spec().has_evaluate() && !job()->spec().evaluate().against().empty())
      against = deps().artifacts->Locate(Resolved(*job(), job()->spec().evaluate().against()));
    // A job may have millions of samples: they are read, written and measured off the loop.
    deps().background->Run([host = host_, job_id = job_id_, this, sampling = deps().sampling,
                            expected = job()->total_steps(), folder = deps().artifacts->NewStaging(), against,
                            spec = job()->spec(), loop = deps().loop] {
      const absl::StatusOr<std::string> compared = against ? against() : std::string();
      GeneratedSamples made;
      made.written = compared.ok() ? folder.make() : absl::OkStatus();
      if (compared.ok() && made.written.ok()) {
        made = WriteGeneratedSamples(*sampling, job_id, spec, expected, *compared, folder.path + "/samples.jsonl");
        std::error_code ignored;
        if (!made.read.ok() || !made.written.ok()) std::filesystem::remove_all(folder.path, ignored);
      }
      loop->Post(host->WhileActive(job_id,
                                   [this, compared = compared.status(), staging = folder.path, made = std::move(made)] {
                                     if (compared.ok()) return Written(made, staging);
                                     if (ReasonOf(compared) == v1::STORE_UNAVAILABLE)
                                       return FailOrTryAgain(compared, [this] { PublishAgain(); });
                                     host_->Fail(job_id_, "BAD_DATA", std::string(compared.message()));
                                   }));
    });
  }
  void Written(const GeneratedSamples& made, const std::string& staging) {
    if (!made.read.ok()) return host_->Fail(job_id_, "STORE", std::string(made.read.message()));
    if (!made.written.ok()) return FailOrTryAgain(made.written, [this] { PublishAgain(); });
    if (!made.measured.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(made.measured.message()));
    Finish(made.metrics, staging);
  }

  void Finish(const std::map<std::string, v1::Metric>& metrics, const std::string& staging) {
    v1::Job* row = job();
    for (const auto& [name, metric] : metrics) (*row->mutable_result()->mutable_metrics())[name] = metric;
    if (const auto cut = metrics.find(kCutByContext); cut != metrics.end() && cut->second.value() > 0) {
      WriteBatch told;
      host_->AppendMessage(row, CutByContextMessage(cut->second.value(), SamplingOf(row->spec()).max_new_tokens()),
                           &told);
      host_->Commit(job_id_, std::move(told));
    }
    const v1::EvaluateSpec& spec = row->spec().evaluate();
    const auto rise = metrics.find("disparity_rise");
    if (spec.has_max_disparity_rise() && rise != metrics.end() && rise->second.value() > spec.max_disparity_rise()) {
      v1::Alert alert;
      alert.set_monitor("disparity");
      alert.set_value(rise->second.value());
      alert.set_bound(spec.max_disparity_rise());
      alert.set_text(
          absl::StrCat("the largest gap between slices grew by ", alert.value(), "; the bound is ", alert.bound()));
      WriteBatch alerts;
      host_->AppendAlert(row, alert, &alerts);
      host_->Commit(job_id_, std::move(alerts));
    }
    PublishSamples(staging);
  }

  void PublishSamples(const std::string& staging) {
    deps().artifacts->PublishDirectory(
        staging, "data", job()->spec().project(), job_id_,
        host_->WhileActive(job_id_, [this, staging](const absl::StatusOr<v1::Artifact>& artifact) {
          if (!artifact.ok()) return FailOrTryAgain(artifact.status(), [this, staging] { PublishSamples(staging); });
          (*job()->mutable_result()->mutable_artifacts())["samples"] = artifact->digest();
          deps().sampling->MarkDelivered(job_id_);
          host_->Succeed(job_id_, WriteBatch());
        }));
  }

  // What was generated waits for its volume; anything else that is wrong with the artifact ends the job.
  void FailOrTryAgain(const absl::Status& status, std::function<void()> again) {
    FailOrTryVolumeAgain(host_, job_id_, status, &unpublished_, std::move(again));
  }

  void PublishAgain() {
    publishing_ = false;
    PublishWhenDurable();
  }

  JobHost* const host_;
  const std::string job_id_;
  size_t prompts_ = 0;
  bool begun_ = false, publishing_ = false;
  bool waiting_ = false;  // for the scores' writes to be durable
  std::string unpublished_;
  absl::Duration last_progress_ = absl::ZeroDuration();
};

}  // namespace

std::unique_ptr<Driver> MakeGeneratingDriver(JobHost* host, const std::string& job_id) {
  return std::make_unique<GeneratingDriver>(host, job_id);
}

}  // namespace rlhf::coordinator
