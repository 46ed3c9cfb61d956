// sample and evaluate: every prompt is generated and scored once, then the samples become a data artifact.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "common/durable_file.h"
#include "common/intervals.h"
#include "common/status_util.h"
#include "coordinator/jobs/driver.h"
#include "coordinator/jobs/evaluation.h"
#include "coordinator/jobs/evaluation_against.h"

namespace rlhf::coordinator {
namespace {

constexpr int kIssuedAtOnce = 65'536;  // samples
constexpr int kPage = 1000;

// A line of samples.jsonl, which artifact/dataset.h reads.
std::string SampleLine(const v1::Sample& sample) {
  nlohmann::ordered_json line;
  line["id"] = sample.prompt().id();
  line["index"] = sample.id().index();
  line["prompt"] = sample.prompt().text();
  for (const v1::ChatMessage& message : sample.prompt().messages())
    line["messages"].push_back({{"role", message.role()}, {"content", message.content()}});
  line["response"] = sample.response_text();
  if (!sample.prompt().reference().empty()) line["reference"] = sample.prompt().reference();
  if (!sample.prompt().category().empty()) line["category"] = sample.prompt().category();
  line["finish_reason"] = v1::FinishReason_Name(sample.finish_reason());
  if (!sample.prompt().tags().empty()) {
    line["tags"] = std::map<std::string, std::string>(sample.prompt().tags().begin(), sample.prompt().tags().end());
  }
  if (sample.has_score()) {
    line["score"] = sample.score().total();
    for (const v1::ComponentScore& component : sample.score().components())
      line["components"][component.name()] = component.value();
  }
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

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
    plan.sampling = is_sample() ? row.spec().sample().sampling() : row.spec().evaluate().sampling();
    plan.policy.set_job_id(job_id_);
    plan.policy.set_deterministic(row.spec().deterministic());
    plan.policy.set_artifact(Resolved(row, is_sample() ? row.spec().sample().model() : row.spec().evaluate().model()));
    plan.scorer = ResolvedScorer(row, is_sample() ? row.spec().sample().scorer() : row.spec().evaluate().graders());
    plan.score = !plan.scorer.components().empty();
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
    const int count = static_cast<int>(std::min<int64_t>(left, std::max(1, kIssuedAtOnce / per_prompt())));
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
    std::string against;
    if (job()->spec().has_evaluate() && !job()->spec().evaluate().against().empty()) {
      const absl::StatusOr<std::string> path =
          deps().artifacts->Path(Resolved(*job(), job()->spec().evaluate().against()));
      if (!path.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(path.status().message()));
      against = *path;
    }
    const absl::StatusOr<std::string> staging = deps().artifacts->MakeStaging();
    if (!staging.ok()) return FailOrTryAgain(staging.status(), [this] { PublishAgain(); });
    // A job may have millions of samples: they are read, written and measured off the loop.
    deps().background->Run([host = host_, job_id = job_id_, this, sampling = deps().sampling,
                            expected = prompts_ * static_cast<size_t>(per_prompt()), staging = *staging, against,
                            spec = job()->spec().evaluate(), loop = deps().loop] {
      auto samples = std::make_shared<std::vector<v1::Sample>>();
      const absl::Status read = ReadScored(*sampling, job_id, expected, samples.get());
      absl::Status written;
      absl::StatusOr<std::map<std::string, v1::Metric>> measured = std::map<std::string, v1::Metric>();
      if (read.ok()) {
        std::string lines;
        for (const v1::Sample& sample : *samples) absl::StrAppend(&lines, SampleLine(sample), "\n");
        written = WithVolumeReason(WriteFileDurably(staging + "/samples.jsonl", lines));
        measured = Measure(spec, *samples, against);
      }
      std::error_code ignored;
      if (!read.ok() || !written.ok()) std::filesystem::remove_all(staging, ignored);
      loop->Post(host->WhileActive(job_id, [this, samples, staging, read, written, measured = std::move(measured)] {
        if (!read.ok()) return host_->Fail(job_id_, "STORE", std::string(read.message()));
        if (!written.ok()) return FailOrTryAgain(written, [this] { PublishAgain(); });
        if (!measured.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(measured.status().message()));
        Finish(*samples, *measured, staging);
      }));
    });
  }

  // All of the job's samples, in their order, from the disk. DataLoss when there are not `expected` scored ones.
  static absl::Status ReadScored(const Sampling& sampling, const std::string& job_id, size_t expected,
                                 std::vector<v1::Sample>* samples) {
    std::string after;
    do {
      std::string next;
      RLHF_ASSIGN_OR_RETURN(std::vector<v1::SampleView> page, sampling.List(job_id, -1, after, PageLimit(kPage), &next));
      for (v1::SampleView& view : page) {
        if (view.row().state() != v1::SCORED) continue;
        if (!view.problem().empty()) return absl::DataLossError(view.problem());
        samples->push_back(std::move(*view.mutable_sample()));
      }
      after = next;
    } while (!after.empty());
    if (samples->size() == expected) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat("expected ", expected, " scored samples on the disk, found ", samples->size()));
  }

  // What an evaluation measures beside its graders' rates. Off the loop.
  static absl::StatusOr<std::map<std::string, v1::Metric>> Measure(const v1::EvaluateSpec& spec,
                                                                   const std::vector<v1::Sample>& samples,
                                                                   const std::string& against) {
    std::map<std::string, v1::Metric> metrics;
    if (!against.empty()) {
      RLHF_ASSIGN_OR_RETURN(const auto others, artifact::ReadSampleData(against));
      RLHF_ASSIGN_OR_RETURN(metrics, CompareEvaluations(spec, samples, others));
    }
    if (!spec.confidence_pattern().empty()) {
      RLHF_ASSIGN_OR_RETURN(auto calibration, StatedCalibration(spec, samples));
      metrics.merge(calibration);
    }
    return metrics;
  }

  void Finish(const std::vector<v1::Sample>& samples, const std::map<std::string, v1::Metric>& measured,
              const std::string& staging) {
    v1::Job* row = job();
    WriteBatch alerts;
    if (row->spec().has_evaluate()) {
      for (const auto& [name, metric] : measured) (*row->mutable_result()->mutable_metrics())[name] = metric;
      const auto rise = measured.find("disparity_rise");
      const double bound = row->spec().evaluate().max_disparity_rise();
      if (row->spec().evaluate().has_max_disparity_rise() && rise != measured.end() && rise->second.value() > bound) {
        v1::Alert alert;
        alert.set_monitor("disparity");
        alert.set_value(rise->second.value());
        alert.set_bound(bound);
        alert.set_text(
            absl::StrCat("the largest gap between slices grew by ", rise->second.value(), "; the bound is ", bound));
        host_->AppendAlert(row, alert, &alerts);
        host_->Commit(job_id_, std::move(alerts));
      }
      for (const auto& [name, metric] : EvaluationMetrics(row->spec().evaluate().graders(), samples))
        (*row->mutable_result()->mutable_metrics())[name] = metric;
    } else {
      std::vector<double> lengths, scores;
      for (const v1::Sample& sample : samples) {
        lengths.push_back(sample.response_tokens_size());
        if (sample.has_score()) scores.push_back(sample.score().total());
      }
      (*row->mutable_result()->mutable_metrics())["response_length"] = MeanWithInterval(lengths, Range::kAny);
      if (!scores.empty()) (*row->mutable_result()->mutable_metrics())["score"] = MeanWithInterval(scores, Range::kAny);
    }
    PublishSamples(staging);
  }

  void PublishSamples(const std::string& staging) {
    deps().artifacts->PublishDirectory(
        staging, "data", job()->spec().project(), job_id_,
        host_->WhileActive(job_id_, [this, staging](const absl::StatusOr<v1::Artifact>& artifact) {
          if (!artifact.ok()) return FailOrTryAgain(artifact.status(), [this, staging] { PublishSamples(staging); });
          (*job()->mutable_result()->mutable_artifacts())["samples"] = artifact->digest();
          WriteBatch batch;
          deps().sampling->MarkDelivered(job_id_, &batch);
          host_->Succeed(job_id_, std::move(batch));
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
