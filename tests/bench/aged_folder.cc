#include "tests/bench/aged_folder.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/artifact_root.h"
#include "artifact/digest.h"
#include "artifact/manifest_entries.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/ledger.h"
#include "coordinator/oversight/audit_chain.h"
#include "coordinator/store/keys.h"
#include "coordinator/store/state_store.h"
#include "coordinator/timestamps.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::bench {
namespace {

using coordinator::KeyOf;
using coordinator::Table;
using coordinator::WriteBatch;

constexpr size_t kRowsABatch = 20'000;
constexpr int kStages = 6;  // of every second job, a pipeline
constexpr absl::Duration kYear = absl::Hours(24 * 365);

class Writer {
 public:
  Writer(coordinator::StateStore* store, const std::string& dir, const AgedOptions& options)
      : store_(store), dir_(dir), options_(options), began_(absl::Now() - kYear) {}

  absl::Status Write() {
    RLHF_RETURN_IF_ERROR(Artifacts());
    RLHF_RETURN_IF_ERROR(Jobs());
    RLHF_RETURN_IF_ERROR(LongJob());
    RLHF_RETURN_IF_ERROR(Tokens());
    RLHF_RETURN_IF_ERROR(Audit());
    return Flush(0);
  }

 private:
  absl::Status Flush(size_t unless_fewer) {
    if (batch_.ops.size() < unless_fewer) return absl::OkStatus();
    return store_->CommitAndWait(std::exchange(batch_, {}));
  }
  void Put(Table table, std::string key, const google::protobuf::Message& row) {
    batch_.Put(table, std::move(key), row.SerializeAsString());
  }
  // The year's jobs came evenly.
  google::protobuf::Timestamp At(int job, int seconds) const {
    return coordinator::ToTimestamp(began_ + kYear * (static_cast<double>(job) / (options_.jobs + 1)) +
                                    absl::Seconds(seconds));
  }

  absl::Status Artifacts() {
    const artifact::ArtifactRoot root(dir_ + "/artifacts");
    for (int i = 0; i < options_.artifacts; ++i) {
      RLHF_ASSIGN_OR_RETURN(const std::string staging, root.MakeStaging());
      RLHF_RETURN_IF_ERROR(WriteFileDurably(staging + "/data.jsonl", absl::StrCat("{\"prompt\":\"", i, "\"}\n")));
      RLHF_ASSIGN_OR_RETURN(const artifact::Manifest manifest, root.PublishStaged(staging));
      v1::Artifact row;
      row.set_digest(manifest.digest);
      row.set_kind(i % 3 == 0 ? "data" : "model");
      row.set_project("default");
      row.set_total_size(manifest.total_size);
      *row.mutable_files() = artifact::EntriesOf(manifest);
      row.set_created_by("ann");
      *row.mutable_created_at() = At(i, 0);
      Put(Table::kArtifacts, row.digest(), row);
      digests_.push_back(row.digest());
    }
    v1::Alias alias;
    for (int i = 0; i < options_.aliases; ++i) {
      alias.set_digest(Digest(i));
      Put(Table::kAliases, absl::StrCat("default/nightly/", i), alias);
    }
    return Flush(0);
  }
  const std::string& Digest(int i) const { return digests_[static_cast<size_t>(i) % digests_.size()]; }

  v1::PpoSpec Ppo() const {
    v1::PpoSpec ppo;
    for (std::string* model : {ppo.mutable_policy(), ppo.mutable_critic(), ppo.mutable_reference()}) *model = Digest(1);
    ppo.set_prompts(Digest(0));
    ppo.set_steps(options_.long_job_steps);
    ppo.set_prompts_per_step(8);
    v1::RewardComponent& component = *ppo.mutable_scorer()->add_components();
    component.set_name("length");
    component.mutable_length()->set_max_tokens(100);
    return ppo;
  }
  v1::Job Job(int number, const std::string& id) const {
    v1::Job job;
    job.set_id(id);
    job.mutable_spec()->set_name(id.substr(0, id.rfind('-')));
    job.mutable_spec()->set_project("default");
    job.mutable_spec()->mutable_retention()->set_sample_steps(1);
    job.set_state(number % 10 == 9 ? v1::FAILED : v1::SUCCEEDED);
    job.set_submitted_by("ann");
    job.set_etag("7");
    *job.mutable_created_at() = At(number, 0);
    *job.mutable_started_at() = At(number, 5);
    *job.mutable_finished_at() = At(number, 600);
    *job.mutable_state_since() = At(number, 600);
    *job.mutable_last_progress_at() = At(number, 600);
    return job;
  }

  absl::Status Jobs() {
    const int pipelines = options_.jobs / (kStages + 2);
    const int collects = std::max(1, pipelines / 4);  // of those one in four asks people
    for (int number = 0; number < options_.jobs;) {
      const std::string name = absl::StrFormat("nightly-%06d", number);
      const std::string id = absl::StrCat(name, "-0000abcd");
      v1::Job top = Job(number++, id);
      if (number % (kStages + 2) != 1) {
        RLHF_RETURN_IF_ERROR(End(&top, number, number % 2));
        continue;
      }
      const int pipeline = number / (kStages + 2);
      for (int stage = 0; stage < kStages && number < options_.jobs; ++stage) {
        v1::Job child = Job(number, absl::StrCat(name, "-stage-", stage, "-0000abcd"));
        child.set_parent_id(id);
        child.set_stage(absl::StrCat("stage-", stage));
        child.set_round(1);
        top.add_children(child.id());
        top.mutable_spec()->mutable_pipeline()->add_stages()->set_name(child.stage());
        if (stage == 2 && pipeline % 4 == 0) Judgements(child.id(), options_.judgements / collects);
        RLHF_RETURN_IF_ERROR(End(&child, number++, stage == 2 && pipeline % 4 == 0 ? 2 : stage % 2));
      }
      for (int gate = 0; gate < std::max(1, options_.gates / std::max(1, pipelines)); ++gate) Gate(id, number, gate);
      *top.mutable_spec()->mutable_pipeline()->mutable_stages(0)->mutable_ppo() = Ppo();
      Put(Table::kJobs, id, top);
      RLHF_RETURN_IF_ERROR(Flush(kRowsABatch));
    }
    return Flush(0);
  }

  // A job's rows. Kinds: 0 draws samples, 1 trains, 2 asks people.
  absl::Status End(v1::Job* job, int number, int kind) {
    if (kind == 0) {
      job->mutable_spec()->mutable_sample()->set_model(Digest(1));
      job->mutable_spec()->mutable_sample()->set_prompts(Digest(0));
      (*job->mutable_result()->mutable_artifacts())["samples"] = Digest(number);
    } else if (kind == 1) {
      *job->mutable_spec()->mutable_ppo() = Ppo();
      (*job->mutable_result()->mutable_artifacts())["model"] = Digest(number);
      job->set_step(10);
      batch_.Put(Table::kMeta, KeyOf(coordinator::CheckpointPrefix(job->id()), {10}), Digest(number + 1));
    } else {
      job->mutable_spec()->mutable_collect()->set_samples(Digest(0));
    }
    (*job->mutable_resolved())[Digest(0)] = Digest(0);
    (*job->mutable_resolved())[Digest(1)] = Digest(1);
    for (int i = 0; i < 10; ++i) (*job->mutable_result()->mutable_metrics())[absl::StrCat("metric-", i)].set_value(i);
    Events(job->id(), number, options_.events_a_job);
    v1::LedgerBase base;
    base.set_ended(true);
    base.set_through_step(10);
    base.mutable_counts()->set_issued(options_.samples_a_job);
    base.mutable_counts()->set_trained(options_.samples_a_job);
    Put(Table::kMeta, coordinator::Ledger::BaseKey(job->id()), base);
    batch_.Put(Table::kMeta, coordinator::FreedKey(job->id()), "9");
    for (int i = 0; i < options_.samples_a_job; ++i) Sample(job->id(), 1, i);
    Put(Table::kJobs, job->id(), *job);
    return Flush(kRowsABatch);
  }

  void Sample(const std::string& id, int64_t step, int ordinal) {
    v1::SampleRow row;
    row.mutable_id()->set_job_id(id);
    row.mutable_id()->set_step(step);
    row.mutable_id()->set_ordinal(ordinal);
    row.set_state(v1::TRAINED);
    row.set_attempt(1);
    row.set_assigned_step(step);
    row.mutable_version()->set_step(step);
    row.mutable_version()->set_digest(artifact::Sha256Hex("version"));
    row.set_digest(artifact::Sha256Hex("sample"));
    row.set_worker_id("worker-17");
    row.mutable_times()->set_leased(1'700'000'000'000'000);
    row.mutable_times()->set_scored(1'700'000'000'000'000);
    row.set_freed(true);
    Put(Table::kSamples, coordinator::Ledger::RowKey(id, {step, ordinal, 0}), row);
  }

  void Events(const std::string& id, int number, int count) {
    v1::JobEvent event;
    event.set_job_id(id);
    for (int i = 1; i <= count; ++i) {
      event.set_sequence(i);
      *event.mutable_at() = At(number, 5 + i);
      v1::MetricPoint& point = *event.mutable_metrics();
      point.set_step(i);
      point.set_job_id(id);
      for (int value = 0; value < 20; ++value) (*point.mutable_values())[absl::StrCat("metric/", value)] = value;
      Put(Table::kEvents, KeyOf(absl::StrCat(id, "/"), {static_cast<uint64_t>(i)}), event);
    }
  }

  void Gate(const std::string& pipeline, int number, int gate) {
    v1::GateRow row;
    row.set_id(absl::StrCat(pipeline, "/stage-", gate));
    row.set_job_id(pipeline);
    row.set_stage(absl::StrCat("stage-", gate));
    row.set_policy(Digest(number));
    row.set_state(v1::GATE_APPROVED);
    *row.mutable_opened_at() = At(number, gate);
    row.set_report_sha256(artifact::Sha256Hex(row.id()));
    for (int i = 0; i < 10; ++i) (*row.mutable_metrics())[absl::StrCat("metric-", i)].set_value(i);
    v1::Approval& approval = *row.add_approvals();
    approval.set_subject("bea");
    approval.set_approved(true);
    Put(Table::kGates, row.id(), row);
  }

  void Judgements(const std::string& id, int count) {
    for (int i = 0; i < count; ++i) {
      v1::FeedbackTask task;
      task.set_id(absl::StrFormat("t%06d", i));
      task.set_job_id(id);
      task.set_project("default");
      task.mutable_prompt()->set_text("What is the answer to this question, which is of a usual length?");
      task.mutable_first()->set_text(std::string(200, 'a'));
      task.mutable_second()->set_text(std::string(200, 'b'));
      task.set_state(v1::TASK_ANSWERED);
      Put(Table::kFeedbackTasks, absl::StrCat(id, "/", task.id()), task);
      v1::Comparison comparison;
      comparison.set_id(absl::StrCat(task.id(), ".0"));
      comparison.set_task_id(task.id());
      comparison.set_rater(absl::StrFormat("rater-%012x", i % 50));
      *comparison.mutable_prompt() = task.prompt();
      *comparison.mutable_first() = task.first();
      *comparison.mutable_second() = task.second();
      Put(Table::kComparisons, absl::StrCat(id, "/", comparison.id()), comparison);
    }
  }

  absl::Status LongJob() {
    const std::string id = "long-0000abcd";
    v1::Job job = Job(options_.jobs, id);
    *job.mutable_spec()->mutable_ppo() = Ppo();
    job.set_state(v1::SUCCEEDED);
    job.set_step(options_.long_job_steps);
    job.set_total_steps(options_.long_job_steps);
    (*job.mutable_result()->mutable_artifacts())["model"] = Digest(1);
    v1::LedgerBase base;
    base.set_ended(true);
    base.set_through_step(options_.long_job_steps);
    base.mutable_counts()->set_issued(8 * static_cast<int64_t>(options_.long_job_steps));
    base.mutable_counts()->set_trained(base.counts().issued());
    Put(Table::kMeta, coordinator::Ledger::BaseKey(id), base);
    batch_.Put(Table::kMeta, coordinator::FreedKey(id), absl::StrCat(options_.long_job_steps - 1));
    Put(Table::kJobs, id, job);
    Events(id, options_.jobs, options_.long_job_steps);
    for (int step = 1; step <= options_.long_job_steps; ++step) {
      v1::CommittedStep row;
      row.set_step(step);
      row.set_weights_digest("00112233445566778899aabbccddeeff");
      row.set_metrics_digest("00112233445566778899aabbccddeeff");
      row.set_batch_digest("00112233445566778899aabbccddeeff");
      row.set_world_size(2);
      row.set_epoch(1);
      row.set_commits(1);
      Put(Table::kMeta, KeyOf(coordinator::CommittedStepPrefix(id), {static_cast<uint64_t>(step)}), row);
      for (int i = 0; i < 8; ++i) Sample(id, step, i);
      RLHF_RETURN_IF_ERROR(Flush(kRowsABatch));
    }
    return Flush(0);
  }

  absl::Status Tokens() {
    for (int i = 0; i < options_.tokens; ++i) {
      v1::TokenRow row;
      row.set_id(absl::StrFormat("%012x", i));
      row.set_sha256(artifact::Sha256Hex(row.id()));
      row.set_subject(absl::StrCat("person-", i));
      row.set_project("default");
      row.add_roles(v1::RATER);
      *row.mutable_created_at() = At(i, 0);
      *row.mutable_expires_at() = At(i, 30 * 24 * 3600);
      Put(Table::kTokens, row.id(), row);
    }
    return Flush(0);
  }

  absl::Status Audit() {
    const Clock* const clock = Clock::Real();
    coordinator::AuditChain chain(clock, store_);
    for (int i = 0; i < options_.audit_records; ++i) {
      chain.Append("ann", "job.submit", absl::StrCat("nightly-", i), "done",
                   {{"kind", "ppo"}, {"spec_sha256", artifact::Sha256Hex("specification")}}, &batch_);
      RLHF_RETURN_IF_ERROR(Flush(kRowsABatch));
    }
    return Flush(0);
  }

  coordinator::StateStore* const store_;
  const std::string dir_;
  const AgedOptions options_;
  const absl::Time began_;
  WriteBatch batch_;
  std::vector<std::string> digests_;
};

}  // namespace

absl::Status WriteAgedFolder(const std::string& dir, const AgedOptions& options) {
  RLHF_RETURN_IF_ERROR(MakeDirs(dir + "/data"));
  RLHF_RETURN_IF_ERROR(MakeDirs(dir + "/artifacts"));
  RLHF_ASSIGN_OR_RETURN(const std::unique_ptr<coordinator::StateStore> store,
                        coordinator::OpenSqliteStore(dir + "/data/state.db"));
  return Writer(store.get(), dir, options).Write();
}

}  // namespace rlhf::bench
