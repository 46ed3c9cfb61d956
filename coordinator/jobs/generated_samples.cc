#include "coordinator/jobs/generated_samples.h"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "common/durable_file.h"
#include "common/intervals.h"
#include "common/status_util.h"
#include "coordinator/jobs/cut_answers.h"
#include "coordinator/jobs/evaluation.h"
#include "coordinator/jobs/evaluation_against.h"

namespace rlhf::coordinator {
namespace {

constexpr int kSamplesOfAPage = 1000;  // fewer where they are long

// Lines at the end of a new file. They are durable once their artifact is published, which syncs its files.
class LineFile {
 public:
  explicit LineFile(std::string path) : path_(std::move(path)), file_(std::fopen(path_.c_str(), "we"), std::fclose) {
    if (file_ == nullptr) status_ = WriteError(errno, "create", path_);
  }
  const absl::Status& Add(const std::string& line) {
    if (!status_.ok()) return status_;
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fputc('\n', file_.get()) == EOF)
      status_ = WriteError(errno, "write", path_);
    return status_;
  }
  absl::Status Close() {
    if (file_ != nullptr && std::fclose(file_.release()) != 0 && status_.ok())
      status_ = WriteError(errno, "write", path_);
    return status_;
  }

 private:
  const std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  absl::Status status_;
};

// The result's metrics, of samples that come one by one.
class Measures {
 public:
  virtual ~Measures() = default;
  virtual absl::Status Add(const v1::Sample& sample) = 0;
  virtual absl::StatusOr<std::map<std::string, v1::Metric>> Metrics() = 0;
};

// Of values that come prompt by prompt, equally many of each. A prompt's samples are not independent: the interval is
// over prompts.
class PromptTally {
 public:
  void Add(int64_t prompt, double value) {
    if (prompt != prompt_) EndPrompt();
    prompt_ = prompt;
    sum_ += value;
    ++of_prompt_;
  }
  v1::Metric Metric() {
    EndPrompt();
    v1::Metric metric = means_.Metric(Range::kAny);
    metric.set_n(n_);
    return metric;
  }
  bool empty() const { return n_ + of_prompt_ == 0; }

 private:
  void EndPrompt() {
    if (of_prompt_ > 0) means_.Add(sum_ / static_cast<double>(of_prompt_));
    n_ += std::exchange(of_prompt_, 0);
    sum_ = 0;
  }
  MeanTally means_;
  int64_t prompt_ = -1, of_prompt_ = 0, n_ = 0;
  double sum_ = 0;
};

class SampleMeasures final : public Measures {
 public:
  absl::Status Add(const v1::Sample& sample) override {
    lengths_.Add(sample.id().ordinal(), sample.response_tokens_size());
    if (sample.has_score()) scores_.Add(sample.id().ordinal(), sample.score().total());
    return absl::OkStatus();
  }
  absl::StatusOr<std::map<std::string, v1::Metric>> Metrics() override {
    std::map<std::string, v1::Metric> metrics;
    metrics["response_length"] = lengths_.Metric();
    if (!scores_.empty()) metrics["score"] = scores_.Metric();
    return metrics;
  }

 private:
  PromptTally lengths_, scores_;
};

class EvaluationMeasures final : public Measures {
 public:
  static absl::StatusOr<std::unique_ptr<Measures>> Make(const v1::EvaluateSpec& spec, const std::string& against) {
    auto measures = std::unique_ptr<EvaluationMeasures>(new EvaluationMeasures(spec));
    if (!against.empty()) {
      EvaluationComparison& comparison = measures->comparison_.emplace(spec);
      RLHF_RETURN_IF_ERROR(artifact::ForEachSample(against, [&](artifact::SampleRecord record) {
        comparison.AddBefore(record);
        return absl::OkStatus();
      }));
    }
    if (!spec.confidence_pattern().empty()) {
      RLHF_ASSIGN_OR_RETURN(measures->calibration_, StatedCalibration::Make(spec));
    }
    return measures;
  }
  absl::Status Add(const v1::Sample& sample) override {
    tally_.Add(sample);
    if (calibration_ != nullptr) calibration_->Add(sample);
    return comparison_.has_value() ? comparison_->Add(sample) : absl::OkStatus();
  }
  absl::StatusOr<std::map<std::string, v1::Metric>> Metrics() override {
    std::map<std::string, v1::Metric> metrics = tally_.Metrics();
    if (comparison_.has_value()) {
      RLHF_ASSIGN_OR_RETURN(auto compared, comparison_->Metrics());
      metrics.merge(compared);
    }
    if (calibration_ != nullptr) metrics.merge(calibration_->Metrics());
    return metrics;
  }

 private:
  explicit EvaluationMeasures(const v1::EvaluateSpec& spec) : tally_(spec.graders()) {}
  EvaluationTally tally_;
  std::optional<EvaluationComparison> comparison_;
  std::unique_ptr<StatedCalibration> calibration_;
};

absl::StatusOr<std::unique_ptr<Measures>> MakeMeasures(const v1::JobSpec& spec, const std::string& against) {
  if (spec.has_evaluate()) return EvaluationMeasures::Make(spec.evaluate(), against);
  return std::make_unique<SampleMeasures>();
}

}  // namespace

const v1::SamplingParams& SamplingOf(const v1::JobSpec& spec) {
  return spec.has_sample() ? spec.sample().sampling() : spec.evaluate().sampling();
}

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

GeneratedSamples WriteGeneratedSamples(const Sampling& sampling, const std::string& job_id, const v1::JobSpec& spec,
                                       int64_t expected, const std::string& against, const std::string& file) {
  GeneratedSamples made;
  const auto measures = MakeMeasures(spec, against);
  made.measured = measures.status();
  if (!made.measured.ok()) return made;
  LineFile lines(file);
  const int max_new_tokens = SamplingOf(spec).max_new_tokens();
  MeanTally cut;
  int64_t found = 0;
  std::string after;
  do {
    std::string next;
    const absl::StatusOr<std::vector<v1::SampleView>> page =
        sampling.List(job_id, -1, after, PageLimit(kSamplesOfAPage), &next);
    made.read = page.status();
    if (!made.read.ok()) return made;
    for (const v1::SampleView& view : *page) {
      if (view.row().state() != v1::SCORED) continue;
      if (!view.problem().empty()) made.read = absl::DataLossError(view.problem());
      if (made.read.ok()) made.written = WithVolumeReason(lines.Add(SampleLine(view.sample())));
      if (made.read.ok() && made.written.ok()) made.measured = (*measures)->Add(view.sample());
      if (!made.read.ok() || !made.written.ok() || !made.measured.ok()) return made;
      cut.Add(CutByContext(view.sample(), max_new_tokens) ? 1 : 0);
      ++found;
    }
    after = next;
  } while (!after.empty());
  if (found != expected) {
    made.read = absl::DataLossError(absl::StrCat("expected ", expected, " scored samples on the disk, found ", found));
    return made;
  }
  made.written = WithVolumeReason(lines.Close());
  if (!made.written.ok()) return made;
  absl::StatusOr<std::map<std::string, v1::Metric>> metrics = (*measures)->Metrics();
  made.measured = metrics.status();
  if (!metrics.ok()) return made;
  made.metrics = *std::move(metrics);
  made.metrics[kCutByContext] = cut.Metric(Range::kUnit);
  return made;
}

}  // namespace rlhf::coordinator
