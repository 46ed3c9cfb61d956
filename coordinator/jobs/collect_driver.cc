// collect: tasks for people, until enough are answered; then the comparisons become a data artifact.
#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_util.h"
#include "coordinator/feedback/comparison_set.h"
#include "coordinator/jobs/collect_metrics.h"
#include "coordinator/jobs/collect_tasks.h"
#include "coordinator/jobs/driver.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kKeepAgeEvery = absl::Minutes(1);

class CollectDriver final : public Driver {
 public:
  CollectDriver(JobHost* host, std::string job_id) : host_(host), job_id_(std::move(job_id)) {}

  void Start() override {
    if (deps().feedback->HasTasks(job_id_)) return Open({});
    const v1::Job& row = *job();
    std::array<Artifacts::Finder, 3> folders;
    const std::array<std::string, 3> references = {row.spec().collect().samples(), row.spec().collect().against(),
                                                   row.spec().collect().planted()};
    for (size_t i = 0; i < references.size(); ++i) {
      if (!references[i].empty()) folders[i] = deps().artifacts->Locate(Resolved(row, references[i]));
    }
    deps().background->Run([host = host_, job_id = job_id_, this, folders, spec = row.spec(), loop = deps().loop] {
      const auto read = [&]() -> absl::StatusOr<std::vector<v1::FeedbackTask>> {
        std::array<std::string, 3> paths;
        for (size_t i = 0; i < folders.size(); ++i) {
          if (!folders[i]) continue;
          RLHF_ASSIGN_OR_RETURN(paths[i], folders[i]());
        }
        return ReadTasks(paths, spec, job_id);
      };
      loop->Post(host->WhileActive(job_id, [this, tasks = read()]() mutable {
        if (ReasonOf(tasks.status()) == v1::STORE_UNAVAILABLE)
          return FailOrTryVolumeAgain(host_, job_id_, tasks.status(), &unpublished_, [this] { Start(); });
        unpublished_.clear();
        if (!tasks.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(tasks.status().message()));
        // A nanosecond apart: after a restart they are put in this order again.
        absl::Time made = deps().loop->clock().WallNow();
        for (v1::FeedbackTask& task : *tasks) *task.mutable_created_at() = ToTimestamp(made += absl::Nanoseconds(1));
        Open(*std::move(tasks));
      }));
    });
  }

  void Stop(WriteBatch*) override { deps().feedback->CloseJob(job_id_); }

  void Tick() override {
    if (!open_) return;
    const absl::Duration now = deps().loop->clock().Now();
    v1::Job* row = job();
    const int64_t deadline = row->spec().collect().deadline_seconds();
    deps().feedback->SetAge(job_id_, Age());
    if (deadline > 0 && Age() > absl::Seconds(deadline)) {
      return host_->Fail(
          job_id_, "DEADLINE",
          absl::StrCat(row->step(), " of ", row->total_steps(), " comparisons were given in ", deadline, " s"));
    }
    if (now - age_kept_ >= kKeepAgeEvery) KeepAge();
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
    facts->unpublished = unpublished_;
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

  // How long the job has been open, by the monotonic clocks of the coordinators that had it open: neither a wall clock
  // that is set nor the time in which none ran counts.
  absl::Duration Age() const { return age_before_ + deps().loop->clock().Now() - opened_at_; }
  void KeepAge() {
    age_kept_ = deps().loop->clock().Now();
    WriteBatch batch;
    batch.Put(Table::kMeta, CollectAgeKey(job_id_), absl::StrCat(absl::ToInt64Seconds(Age())));
    host_->Commit(job_id_, std::move(batch));
  }

  void Open(std::vector<v1::FeedbackTask> tasks) {
    v1::Job* row = job();
    int64_t seconds = 0;  // of a new job
    if (const absl::StatusOr<std::string> kept = deps().store->Get(Table::kMeta, CollectAgeKey(job_id_)); kept.ok())
      (void)absl::SimpleAtoi(*kept, &seconds);
    age_before_ = absl::Seconds(seconds);
    opened_at_ = age_kept_ = deps().loop->clock().Now();
    WriteBatch batch;
    const absl::Status status =
        deps().feedback->OpenJob(job_id_, row->spec().project(), row->spec().collect(), std::move(tasks), &batch,
                                 host_->WhileActive(job_id_, [this] { OnAnswers(); }));
    if (!status.ok()) return host_->Fail(job_id_, "STORE", std::string(status.message()));
    row->set_total_steps(row->spec().collect().comparisons());
    open_ = true;
    if (row->state() == v1::PENDING) host_->SetState(row, v1::WAITING, "for people's comparisons", "", &batch);
    host_->Commit(job_id_, std::move(batch), host_->WhileActive(job_id_, [this] { OnAnswers(); }));
  }

  static absl::StatusOr<std::vector<v1::FeedbackTask>> ReadTasks(const std::array<std::string, 3>& paths,
                                                                 const v1::JobSpec& spec, const std::string& job_id) {
    TaskSources sources;
    RLHF_ASSIGN_OR_RETURN(sources.samples, artifact::ReadSampleData(paths[0]));
    if (!paths[1].empty()) {
      RLHF_ASSIGN_OR_RETURN(sources.against, artifact::ReadSampleData(paths[1]));
    }
    if (!paths[2].empty()) {
      RLHF_ASSIGN_OR_RETURN(sources.planted, artifact::ReadComparisonData(paths[2]));
    }
    return MakeTasks(sources, spec.collect(), spec.seed(), job_id, spec.project());
  }

  void OnAnswers() {
    if (!publishing_ && deps().feedback->Finished(job_id_)) Publish();
  }

  // What the set begins with: an earlier set, in parts.
  struct Beginning {
    struct Part {
      v1::ComparisonSet lines;
      Artifacts::Finder find;  // of the lines' artifact; null: the comparisons
      std::vector<v1::Comparison> comparisons;
      bool pair_ratings = false;
    };
    std::string digest;
    std::set<std::string> excluded;
    std::vector<Part> parts;
  };
  // Somebody was forgotten meanwhile: what was written may have their judgements, and their questions may be open
  // again.
  void WriteAgain() {
    job()->mutable_result()->clear_artifacts();
    publishing_ = false;
    OnAnswers();
  }

  // What becomes of the answers, off the loop.
  struct Made {
    absl::Status status;
    v1::ComparisonSet set;
    std::map<std::string, v1::Metric> metrics;
    int64_t edits = 0;
  };

  void Publish() {
    publishing_ = true;
    v1::Job* row = job();
    auto comparisons = std::make_shared<const std::vector<v1::Comparison>>(deps().feedback->Comparisons(job_id_));
    // Tasks, as while it was open: of answers there may be several to one, and planted questions' beside them.
    if (const auto stats = deps().feedback->Stats(job_id_); stats.ok()) row->set_step(stats->answered());
    const v1::CollectSpec& spec = row->spec().collect();
    forgets_ = deps().feedback->forgets();
    const absl::StatusOr<Beginning> beginning = BeginningOf(*row, *comparisons);
    if (ReasonOf(beginning.status()) == v1::STORE_UNAVAILABLE)
      return FailOrTryAgain(beginning.status(), [this] { Publish(); });
    if (!beginning.ok()) return host_->Fail(job_id_, "BAD_DATA", std::string(beginning.status().message()));
    deps().background->Run([host = host_, job_id = job_id_, this, comparisons, spec, beginning = *beginning,
                            folders = std::array{deps().artifacts->NewStaging(), deps().artifacts->NewStaging()},
                            loop = deps().loop] {
      const std::string &staging = folders[0].path, &sft_staging = folders[1].path;
      Made made;
      made.status = folders[0].make();
      if (made.status.ok()) made.status = folders[1].make();
      if (made.status.ok()) {
        made = Write(*comparisons, spec, beginning, staging, sft_staging);
        if (!made.status.ok()) RemoveAll({staging, sft_staging});
      }
      loop->Post(host->WhileActive(job_id, [this, staging, sft_staging, made = std::move(made)]() mutable {
        if (!made.status.ok()) return FailOrTryAgain(made.status, [this] { Publish(); });
        if (deps().feedback->forgets() != forgets_) {
          deps().background->Run([staging, sft_staging] { RemoveAll({staging, sft_staging}); });
          return WriteAgain();
        }
        made_ = std::move(made);
        PublishNext(staging, "comparisons", [this, sft_staging] {
          if (made_.edits == 0) return Finish();
          PublishNext(sft_staging, "edits", [this] { Finish(); });
        });
      }));
    });
  }

  // What the set begins with, without those who were forgotten or are left out.
  absl::StatusOr<Beginning> BeginningOf(const v1::Job& row, const std::vector<v1::Comparison>& comparisons) const {
    const v1::CollectSpec& spec = row.spec().collect();
    Beginning beginning;
    beginning.excluded = RatersBelow(comparisons, spec.min_planted_accuracy());
    if (spec.previous().empty()) return beginning;
    const SetTable& sets = deps().feedback->sets();
    beginning.digest = Resolved(row, spec.previous());
    if (const v1::ComparisonSet* known = sets.FindDigest(beginning.digest); known != nullptr)
      beginning.excluded.insert(known->excluded_raters().begin(), known->excluded_raters().end());
    RLHF_ASSIGN_OR_RETURN(const std::vector<SetPart> parts,
                          PartsOfSet(sets, beginning.digest, beginning.excluded, [&](const std::string& id) {
                            const v1::Job* made_by = host_->Find(id);
                            return made_by != nullptr && made_by->spec().has_collect() && deps().feedback->HasTasks(id);
                          }));
    for (const SetPart& part : parts) {
      Beginning::Part& added = beginning.parts.emplace_back();
      added.lines = part.lines;
      if (part.job_id.empty()) {
        added.find = deps().artifacts->Locate(part.lines.digest());
      } else {
        added.comparisons = deps().feedback->Comparisons(part.job_id);
        added.pair_ratings = host_->Find(part.job_id)->spec().collect().pair_ratings();
      }
    }
    return beginning;
  }

  // Unavailable (STORE_UNAVAILABLE): a part is not there to be read.
  static absl::Status WriteBeginning(const Beginning& beginning, std::ofstream* out, SetBuilder* set) {
    for (const Beginning::Part& part : beginning.parts) {
      if (part.find == nullptr) {
        set->NextJob(part.pair_ratings);
        for (const v1::Comparison& comparison : part.comparisons) set->Add(comparison);
        continue;
      }
      RLHF_ASSIGN_OR_RETURN(const std::string folder, part.find());
      set->Begin(part.lines);
      std::vector<std::filesystem::path> files;
      std::error_code error;
      for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
        if (it->path().extension() == ".jsonl") files.push_back(it->path());
      if (error) {
        return WithReason(absl::UnavailableError(
                              absl::StrCat("cannot read ", folder, ": ", error.message(), "; is its volume mounted?")),
                          v1::STORE_UNAVAILABLE);
      }
      std::sort(files.begin(), files.end());
      for (const auto& file : files) {
        std::ifstream in(file, std::ios::binary);
        if (in.peek() != std::ifstream::traits_type::eof()) *out << in.rdbuf();
      }
    }
    return absl::OkStatus();
  }

  static void RemoveAll(std::initializer_list<std::string> folders) {
    std::error_code ignored;
    for (const std::string& folder : folders) std::filesystem::remove_all(folder, ignored);
  }

  static Made Write(const std::vector<v1::Comparison>& comparisons, const v1::CollectSpec& spec,
                    const Beginning& beginning, const std::string& staging, const std::string& sft_staging) {
    Made made;
    std::ofstream out(staging + "/comparisons.jsonl", std::ios::binary);
    SetBuilder set(&out, beginning.excluded, SetBuilder::Kind::kComparisons);
    made.status = WriteBeginning(beginning, &out, &set);
    if (!made.status.ok()) return made;
    set.NextJob(spec.pair_ratings());
    for (const v1::Comparison& comparison : comparisons) set.Add(comparison);
    made.set = set.Finish();
    made.set.set_previous(beginning.digest);
    // Whose judgements do not count does not teach by edits either, nor say how the policies compare.
    const std::set<std::string> left_out(made.set.excluded_raters().begin(), made.set.excluded_raters().end());
    made.metrics = CollectMetrics(comparisons, spec, left_out);
    std::ofstream sft(sft_staging + "/edits.jsonl", std::ios::binary);
    SetBuilder edits(&sft, left_out, SetBuilder::Kind::kSft);
    for (const v1::Comparison& comparison : comparisons) edits.Add(comparison);
    out.close();
    sft.close();
    if (!out.good() || !sft.good()) {
      made.status = WithReason(absl::UnavailableError(absl::StrCat(
                                   "cannot write ", staging, "/comparisons.jsonl: is its volume full or read-only?")),
                               v1::STORE_UNAVAILABLE);
      return made;
    }
    made.edits = edits.Finish().comparisons();
    made.metrics["comparisons"].set_value(static_cast<double>(made.set.comparisons()));
    return made;
  }

  void PublishNext(const std::string& staging, const std::string& name, std::function<void()> then) {
    deps().artifacts->PublishDirectory(
        staging, "data", job()->spec().project(), job_id_,
        host_->WhileActive(job_id_, [this, staging, name,
                                     then = std::move(then)](const absl::StatusOr<v1::Artifact>& artifact) {
          if (!artifact.ok()) {
            return FailOrTryAgain(artifact.status(), [this, staging, name, then] { PublishNext(staging, name, then); });
          }
          (*job()->mutable_result()->mutable_artifacts())[name] = artifact->digest();
          then();
        }));
  }

  // What people answered waits for its volume; anything else that is wrong with the artifact ends the job.
  void FailOrTryAgain(const absl::Status& status, std::function<void()> again) {
    FailOrTryVolumeAgain(host_, job_id_, status, &unpublished_, std::move(again));
  }

  void Finish() {
    if (deps().feedback->forgets() != forgets_) return WriteAgain();
    v1::Job* row = job();
    for (const auto& [name, metric] : made_.metrics) (*row->mutable_result()->mutable_metrics())[name] = metric;
    WriteBatch batch;
    v1::ComparisonSet& set = made_.set;
    set.set_project(row->spec().project());
    set.set_name(job_id_);
    set.set_digest(row->result().artifacts().at("comparisons"));
    set.set_made_by(job_id_);
    *set.mutable_created_at() = ToTimestamp(deps().loop->clock().WallNow());
    deps().feedback->sets().Add(&set, &batch);
    deps().oversight->Audit("coordinator", "comparisons.freeze", set.digest(), "done",
                            {{"job", job_id_},
                             {"content_sha256", set.content_sha256()},
                             {"comparisons", absl::StrCat(set.comparisons())},
                             {"excluded_raters", absl::StrJoin(set.excluded_raters(), ",")}},
                            &batch);
    host_->Succeed(job_id_, std::move(batch));
  }

  JobHost* const host_;
  const std::string job_id_;
  bool open_ = false, publishing_ = false;
  std::string unpublished_;
  int64_t forgets_ = 0;  // when the answers were read
  Made made_;
  absl::Duration last_progress_ = absl::ZeroDuration();
  absl::Duration age_before_, opened_at_, age_kept_;
};

}  // namespace

std::unique_ptr<Driver> MakeCollectDriver(JobHost* host, const std::string& job_id) {
  return std::make_unique<CollectDriver>(host, job_id);
}

}  // namespace rlhf::coordinator
