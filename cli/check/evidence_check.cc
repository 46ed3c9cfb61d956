// The coordinator's records against what its fleet noted down.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "artifact/sample_digest.h"
#include "cli/check/ledger_check.h"
#include "common/job_state.h"

namespace rlhf::cli {
namespace {

using StepKey = std::pair<uint64_t, int64_t>;  // epoch, step

struct TrainedStep {
  const StepLine* line = nullptr;  // of the rank that lists the samples, where there is one
  std::set<int> ranks;             // that have a line
};
using TrainedSteps = std::map<StepKey, TrainedStep>;

// What all ranks of an epoch say of a step, which must be the same.
TrainedSteps CheckRanks(const std::vector<const StepLine*>& lines, std::vector<std::string>* out) {
  TrainedSteps trained;
  for (const StepLine* line : lines) {
    if (line->event != "trained") continue;
    const auto [it, first] = trained.try_emplace({line->epoch, line->step}, TrainedStep{line, {}});
    it->second.ranks.insert(line->rank);
    const StepLine& other = *it->second.line;
    const auto differs = [&](const char* what, const std::string& a, const std::string& b) {
      if (a != b)
        out->push_back(absl::StrCat("step ", line->step, " at epoch ", line->epoch, ": ", other.source, " ended with ",
                                    what, " ", a, ", ", line->source, " with ", b));
    };
    differs("weights", other.weights, line->weights);
    differs("an optimizer state", other.state, line->state);
    differs("metrics", other.metrics, line->metrics);
    differs("a batch", other.batch, line->batch);
    if (!line->samples.empty()) {
      if (artifact::BatchDigest(line->samples) != line->batch)
        out->push_back(absl::StrCat("step ", line->step, " at epoch ", line->epoch,
                                    ": the batch's digest is not of the ", line->samples.size(), " samples that ",
                                    line->source, " lists"));
      it->second.line = line;
    }
  }
  return trained;
}

// A rank notes a step before the ranks agree on it, and only then is it committed: who died later has its line all the
// same. `world` 0: not known; then rank 0 alone is asked for. False: lines are missing.
bool CheckAllRanks(const TrainedSteps& trained, const StepKey& key, int world, std::vector<std::string>* out) {
  const std::string name = absl::StrCat("step ", key.second, " at epoch ", key.first);
  const auto found = trained.find(key);
  if (found == trained.end()) {
    out->push_back(
        absl::StrCat(name, ": no step log says that it was trained: the evidence is of another run, or not whole"));
    return false;
  }
  bool all = true;
  for (int rank = 0; rank < std::max(world, 1); ++rank) {
    if (found->second.ranks.count(rank) > 0) continue;
    out->push_back(absl::StrCat(name, ": no step log says that rank ", rank, " of ", world, " trained it"));
    all = false;
  }
  return all;
}

// Deterministic jobs: whenever a step is trained again, the same bytes come of it.
void CheckRepeats(const TrainedSteps& trained, std::vector<std::string>* out) {
  std::map<int64_t, const StepLine*> first;
  for (const auto& [key, step] : trained) {
    const auto [it, fresh] = first.try_emplace(key.second, step.line);
    const StepLine &before = *it->second, &now = *step.line;
    if (before.weights != now.weights || (!before.state.empty() && !now.state.empty() && before.state != now.state)) {
      out->push_back(absl::StrCat("step ", key.second, ": epoch ", before.epoch, " ended with weights ", before.weights,
                                  " and state ", before.state, ", epoch ", now.epoch, " with ", now.weights, " and ",
                                  now.state, ", but the job is deterministic"));
    }
  }
}

// What rank 0 told the coordinator is what it noted; and the samples of the surviving lineage are each in one step.
void CheckRecords(const LedgerFacts& facts, const TrainedSteps& trained, std::vector<std::string>* out,
                  Compared* compared) {
  std::map<std::string, int64_t> trained_in;
  for (const v1::CommittedStep& record : facts.steps) {
    const int64_t step = record.step();
    if (step > facts.job.step()) continue;  // rolled back, to be trained again
    if (CheckAllRanks(trained, {record.epoch(), step}, record.world_size(), out)) ++compared->steps;
    const auto found = trained.find({record.epoch(), step});
    if (found == trained.end()) continue;
    const StepLine& line = *found->second.line;
    const auto differs = [&](const char* what, const std::string& committed, const std::string& noted) {
      if (!committed.empty() && committed != noted)
        out->push_back(absl::StrCat("step ", step, ": committed with ", what, " ", committed, ", but ", line.source,
                                    " trained ", noted));
    };
    differs("weights", record.weights_digest(), line.weights);
    differs("the state", record.state_digest(), line.state);
    differs("metrics", record.metrics_digest(), line.metrics);
    if (!record.batch_digest().empty() && line.batch != record.batch_digest())
      out->push_back(absl::StrCat("step ", step, ": ", line.source, " trained another batch than was committed"));
    if (!record.batch_digest().empty() && line.samples.empty())
      out->push_back(absl::StrCat("step ", step, ": ", line.source, " does not list its samples"));
    for (const std::string& sample : line.samples) {
      const auto [it, fresh] = trained_in.try_emplace(sample.substr(0, sample.find('@')), step);
      if (!fresh) out->push_back(absl::StrCat("sample ", it->first, ": trained in steps ", it->second, " and ", step));
    }
  }
}

// SFT and reward models commit no steps: what their ranks show is the end, by the group that finished the job.
void CheckEnd(const v1::Job& job, const TrainedSteps& trained, std::vector<std::string>* out, Compared* compared) {
  if (job.state() != v1::SUCCEEDED) return;
  const StepKey end = {job.group_epoch(), job.total_steps()};
  const auto found = trained.find(end);
  const int world = found == trained.end() ? 0 : found->second.line->world;
  if (CheckAllRanks(trained, end, world, out)) ++compared->steps;
  if (found != trained.end() && (found->second.line->weights.empty() || found->second.line->state.empty()))
    out->push_back(
        absl::StrCat("step ", end.second, ": ", found->second.line->source, " noted no digests of what it ended with"));
}

// Each learner's commits in the order of its log.
void CheckOrder(const std::vector<const StepLine*>& lines, std::vector<std::string>* out) {
  std::map<std::string, const StepLine*> last;
  for (const StepLine* line : lines) {
    if (line->event != "committed") continue;
    const StepLine*& before = last[line->source];
    if (before != nullptr) {
      const bool same_epoch = before->epoch == line->epoch;
      if (line->epoch < before->epoch)
        out->push_back(absl::StrCat(line->source, ": epoch ", line->epoch, " after ", before->epoch));
      if (same_epoch && line->step != before->step + 1)
        out->push_back(
            absl::StrCat(line->source, ": step ", line->step, " after step ", before->step, " at epoch ", line->epoch));
    }
    before = line;
  }
}

void CheckCommits(const LedgerFacts& facts, const std::vector<const StepLine*>& lines, const TrainedSteps& trained,
                  std::vector<std::string>* out) {
  std::map<int64_t, const v1::CommittedStep*> records;
  for (const v1::CommittedStep& step : facts.steps) records[step.step()] = &step;
  std::map<int64_t, const StepLine*> newest;
  std::map<int64_t, std::string> batches;
  for (const StepLine* line : lines) {
    if (line->event != "committed") continue;
    const StepLine*& known = newest[line->step];
    if (known == nullptr || line->epoch >= known->epoch) known = line;
    const auto batch = trained.find({line->epoch, line->step});
    if (batch == trained.end()) {
      out->push_back(absl::StrCat("step ", line->step, " at epoch ", line->epoch, ": ", line->source,
                                  " has its commit, nobody its training"));
      continue;
    }
    const auto [first, fresh] = batches.try_emplace(line->step, batch->second.line->batch);
    if (first->second != batch->second.line->batch)
      out->push_back(
          absl::StrCat("step ", line->step, ": trained again at epoch ", line->epoch, " with other samples"));
  }
  const int64_t recorded = records.empty() ? 0 : records.rbegin()->first;
  for (const auto& [step, line] : newest) {
    if (step > recorded && step <= facts.step_after) continue;  // committed since the rest was read
    const auto record = records.find(step);
    if (record == records.end() || (step > facts.step_after && IsTerminal(facts.job.state()))) {
      out->push_back(absl::StrCat("step ", step, ": ", line->source, " was told that it is committed, but it is not"));
      continue;
    }
    // A newer commit may have died with its ranks before they could note it.
    if (record->second->epoch() > line->epoch) continue;
    if (record->second->epoch() < line->epoch) {
      out->push_back(absl::StrCat("step ", step, ": ", line->source, " was told that epoch ", line->epoch,
                                  " committed it, but the newest commit is of epoch ", record->second->epoch()));
      continue;
    }
    if (record->second->weights_digest() != line->weights || record->second->lineage() != line->lineage) {
      out->push_back(absl::StrCat("step ", step, ": committed with weights ", record->second->weights_digest(),
                                  " of lineage ", record->second->lineage(), ", but ", line->source, " was told ",
                                  line->weights, " of lineage ", line->lineage));
    }
  }
}

}  // namespace

std::vector<std::string> CheckEvidence(const LedgerFacts& facts, const Evidence& evidence, Compared* compared) {
  std::vector<std::string> out;
  std::vector<const StepLine*> lines;
  for (const StepLine& line : evidence.steps) {
    if (line.job == facts.job.id()) lines.push_back(&line);
  }
  const TrainedSteps trained = CheckRanks(lines, &out);
  for (const auto& [key, step] : trained) compared->rank_lines += static_cast<int64_t>(step.ranks.size());
  if (facts.job.spec().deterministic()) CheckRepeats(trained, &out);
  CheckOrder(lines, &out);
  CheckCommits(facts, lines, trained, &out);
  const v1::JobSpec::KindCase kind = facts.job.spec().kind_case();
  if (kind == v1::JobSpec::kPpo) CheckRecords(facts, trained, &out, compared);
  if (kind == v1::JobSpec::kSft || kind == v1::JobSpec::kRewardModel) CheckEnd(facts.job, trained, &out, compared);
  std::set<std::string> known, seen;
  for (const CheckedSample& sample : facts.samples) known.insert(sample.line);
  known.erase("");  // of a sample that is not generated yet, or whose payload was freed
  int64_t freed_through = 0;
  for (const CheckedSample& sample : facts.samples) {
    if (sample.row.freed()) freed_through = std::max(freed_through, sample.row.id().step());
  }
  for (const AcceptedLine& line : evidence.accepted) {
    if (line.job != facts.job.id()) continue;
    int64_t step = 0;
    (void)absl::SimpleAtoi(absl::string_view(line.sample).substr(0, line.sample.find('/')), &step);
    if (known.count(line.sample) == 0 && step > freed_through)
      out.push_back(
          absl::StrCat("sample ", line.sample, ": ", line.source, " was told that it is stored, but it is not"));
    seen.insert(line.sample);
  }
  compared->samples += static_cast<int64_t>(known.size());
  for (const std::string& line : known) compared->samples_seen += static_cast<int64_t>(seen.count(line));
  return out;
}

}  // namespace rlhf::cli
