// The checker finds nothing in a history that holds, and each of many ways to break it.
#include "cli/check/ledger_check.h"

#include <algorithm>
#include <functional>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/sample_digest.h"
#include "cli/check/audit_log.h"
#include "client/cpp/audit_check.h"
#include "common/durable_file.h"
#include "common/signature.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kSteps = 3, kPrompts = 2;
constexpr int kStale = 5;  // place of the superseded sample

StepLine Trained(uint64_t epoch, int rank, int64_t step) {
  StepLine line;
  line.source = absl::StrCat("learner-", rank);
  line.event = "trained";
  line.job = "job";
  line.epoch = epoch;
  line.rank = rank;
  line.world = 2;
  line.step = step;
  line.weights = absl::StrCat("w", step);
  return line;
}

struct History {
  LedgerFacts facts;
  Evidence evidence;
  std::vector<std::string> Violations() const {
    std::vector<std::string> all = CheckLedger(facts);
    Compared compared;
    for (const std::string& more : CheckEvidence(facts, evidence, &compared)) all.push_back(more);
    return all;
  }
};

v1::PolicyVersion Version(int64_t step) {
  v1::PolicyVersion version;
  version.set_step(step);
  if (step > 0) version.set_digest(absl::StrCat("w", step));
  return version;
}

CheckedSample Sample(int64_t step, int ordinal, int attempt, int64_t by) {
  v1::SampleView view;
  v1::SampleId& id = *view.mutable_row()->mutable_id();
  id.set_job_id("job");
  id.set_step(step);
  id.set_ordinal(ordinal);
  view.mutable_row()->set_state(v1::TRAINED);
  view.mutable_row()->set_attempt(attempt);
  view.mutable_row()->set_assigned_step(step);
  *view.mutable_row()->mutable_version() = Version(by);
  view.mutable_row()->mutable_payload()->set_segment(1);
  *view.mutable_sample()->mutable_id() = id;
  view.mutable_sample()->set_attempt(attempt);
  *view.mutable_sample()->mutable_version_low() = *view.mutable_sample()->mutable_version_high() = Version(by);
  view.mutable_sample()->add_response_tokens(static_cast<int>(100 * step) + ordinal);
  return CheckedSampleOf(view, false);
}

// Three steps of two samples on two ranks; step 3 was rolled back and trained again at epoch 2; a sample of step 3 was
// generated twice, the first time by a version that was too old.
History Whole() {
  History h;
  v1::Job& job = h.facts.job;
  job.set_id("job");
  job.set_state(v1::SUCCEEDED);
  job.mutable_spec()->mutable_ppo()->set_prompts_per_step(kPrompts);
  job.mutable_spec()->mutable_ppo()->set_samples_per_prompt(1);
  job.set_step(kSteps);
  job.set_issued_through_step(kSteps);
  job.mutable_version()->set_step(kSteps);
  job.mutable_version()->set_digest("w3");
  h.facts.step_after = kSteps;
  for (int64_t step = 1; step <= kSteps; ++step) {
    std::vector<std::string> lines;
    for (int ordinal = 0; ordinal < kPrompts; ++ordinal) {
      const CheckedSample sample = Sample(step, ordinal, step == kSteps && ordinal == 0 ? 2 : 1, step - 1);
      lines.push_back(sample.line);
      h.facts.samples.push_back(sample);
      h.evidence.accepted.push_back({"rollout-0", "job", sample.line});
    }
    const uint64_t last_epoch = step == kSteps ? 2 : 1;
    v1::CommittedStep& committed = h.facts.steps.emplace_back();
    committed.set_step(step);
    committed.set_weights_digest(absl::StrCat("w", step));
    committed.set_batch_digest(artifact::BatchDigest(lines));
    committed.set_epoch(last_epoch);
    committed.set_metrics_digest("m");
    committed.set_world_size(2);
    if (step == kSteps) committed.set_state_digest("s");
    for (uint64_t epoch = 1; epoch <= last_epoch; ++epoch) {
      for (int rank = 0; rank < 2; ++rank) {
        StepLine line = Trained(epoch, rank, step);
        line.metrics = "m";
        if (step == kSteps) line.state = "s";
        line.batch = artifact::BatchDigest(lines);
        if (rank == 0) line.samples = lines;
        h.evidence.steps.push_back(line);
        line.event = "committed";
        line.samples.clear();
        line.batch.clear();
        h.evidence.steps.push_back(line);
      }
    }
  }
  CheckedSample old = Sample(kSteps, 0, 1, 1);
  old.archived = true;
  old.row.set_state(v1::STALE);
  h.facts.samples.insert(h.facts.samples.begin() + kStale, old);
  return h;
}

// An SFT job of five steps on two ranks with a checkpoint after the third, from which it was trained again.
History Supervised() {
  History h;
  v1::Job& job = h.facts.job;
  job.set_id("job");
  job.set_state(v1::SUCCEEDED);
  job.mutable_spec()->set_deterministic(true);
  job.mutable_spec()->mutable_sft()->set_steps(5);
  job.set_step(5);
  job.set_total_steps(5);
  job.set_group_epoch(2);
  (*job.mutable_result()->mutable_artifacts())["model"] = "sha256:model";
  const std::pair<uint64_t, int64_t> noted[] = {{1, 3}, {2, 5}};
  for (const auto& [epoch, step] : noted) {
    for (int rank = 0; rank < 2; ++rank) {
      StepLine line = Trained(epoch, rank, step);
      line.state = absl::StrCat("s", step);
      h.evidence.steps.push_back(line);
    }
  }
  return h;
}

StepLine& Find(History& h, const std::string& event, uint64_t epoch, int rank, int64_t step) {
  for (StepLine& line : h.evidence.steps) {
    if (line.event == event && line.epoch == epoch && line.rank == rank && line.step == step) return line;
  }
  ADD_FAILURE() << "no such line";
  return h.evidence.steps.front();
}

void Erase(History& h, const std::function<bool(const StepLine&)>& which) {
  h.evidence.steps.erase(std::remove_if(h.evidence.steps.begin(), h.evidence.steps.end(), which),
                         h.evidence.steps.end());
}

struct Break {
  const char* what;
  std::function<void(History&)> how;
  const char* says;
};
void ExpectFound(History (*whole)(), const std::vector<Break>& breaks) {
  for (const Break& broken : breaks) {
    History h = whole();
    broken.how(h);
    EXPECT_THAT(absl::StrJoin(h.Violations(), "\n"), HasSubstr(broken.says)) << broken.what;
  }
}

TEST(LedgerCheckTest, AWholeHistoryHasNoViolation) {
  EXPECT_THAT(Whole().Violations(), IsEmpty());
  EXPECT_THAT(Supervised().Violations(), IsEmpty());
}

TEST(LedgerCheckTest, WhatAFleetThatBrokeLeavesIsNoViolation) {
  const auto of_step = [](History& h, int64_t step, const std::function<void(StepLine&)>& change) {
    for (StepLine& line : h.evidence.steps)
      if (line.step == step) change(line);
  };
  const std::vector<std::pair<const char*, std::function<void(History&)>>> fine = {
      {"generated by a version that was replaced since",
       [&](History& h) {
         h.facts.lineage_after = 1;
         h.facts.steps[1].set_weights_digest("new");
         for (const size_t step : {1, 2}) h.facts.steps[step].set_lineage(1);
         of_step(h, 2, [](StepLine& line) { line.weights = "new"; });
         for (const int64_t step : {2, 3}) of_step(h, step, [](StepLine& line) { line.lineage = 1; });
       }},
      {"given up, within the bound, as of a lineage that was replaced",
       [](History& h) {
         h.facts.lineage_after = 1;
         *h.facts.samples[kStale].row.mutable_version() = Version(2);
       }},
      {"failed, and generated anew",
       [](History& h) {
         h.facts.samples[kStale].row.set_state(v1::SAMPLE_FAILED);
         h.facts.samples[kStale].row.set_reason("its worker was lost");
       }},
      {"freed by the job's retention",
       [](History& h) {
         for (CheckedSample& sample : h.facts.samples) {
           if (sample.row.id().step() != 1) continue;
           v1::SampleView view;
           *view.mutable_row() = sample.row;
           view.mutable_row()->set_freed(true);
           view.mutable_row()->clear_payload();
           sample = CheckedSampleOf(view, false);
         }
       }},
      {"trained again, once without its state's digest, of a deterministic job",
       [&](History& h) {
         h.facts.job.mutable_spec()->set_deterministic(true);
         of_step(h, 3, [](StepLine& line) { line.state = line.epoch == 1 ? "" : line.state; });
       }},
      {"committed anew by a group that died before it could note it",
       [&](History& h) {
         of_step(h, 3, [](StepLine& line) { line.weights = line.epoch == 1 ? "before" : line.weights; });
         Erase(h, [](const StepLine& line) { return line.epoch == 2 && line.event == "committed"; });
       }},
  };
  for (const auto& [what, how] : fine) {
    History h = Whole();
    how(h);
    EXPECT_THAT(h.Violations(), IsEmpty()) << what;
  }
}

TEST(LedgerCheckTest, APayloadThatCannotBeReadHasNoLine) {
  v1::SampleView view;
  view.mutable_row()->mutable_payload()->set_segment(1);
  view.set_problem("its segment is damaged");
  EXPECT_EQ(CheckedSampleOf(view, false).line, "");
}

TEST(LedgerCheckTest, SaysHowMuchItCompared) {
  History h = Whole();
  h.evidence.accepted.pop_back();
  h.facts.samples.emplace_back().archived = true;  // with nothing to compare
  Compared compared;
  EXPECT_THAT(CheckEvidence(h.facts, h.evidence, &compared), IsEmpty()) << "its worker may have died before the note";
  EXPECT_EQ(compared.steps, kSteps);
  EXPECT_EQ(compared.rank_lines, 2 * (kSteps + 1));
  EXPECT_EQ(compared.samples, kSteps * kPrompts + 1);
  EXPECT_EQ(compared.samples_seen, kSteps * kPrompts - 1);
}

TEST(LedgerCheckTest, EveryWayToBreakItIsFound) {
  const std::vector<Break> breaks = {
      {"a sample lost", [](History& h) { h.facts.samples.erase(h.facts.samples.begin() + 1); },
       "step 1: expected 2 samples, found 1"},
      {"a sample twice", [](History& h) { h.facts.samples.push_back(h.facts.samples[0]); }, "there are two of it"},
      {"a sample of a committed step not trained", [](History& h) { h.facts.samples[0].row.set_state(v1::SCORED); },
       "sample 1/0/0: SCORED, but its step is committed"},
      {"trained before its step is committed",
       [](History& h) {
         h.facts.job.set_step(2);
         h.facts.step_after = 2;
         h.facts.job.mutable_version()->set_digest("w2");
       },
       "trained, but only step 2 is committed"},
      {"older than the lag bound", [](History& h) { h.facts.samples.back().row.mutable_version()->set_step(1); },
       "generated by version 1, outside the lag bound 2 to 2"},
      {"by a version of the future", [](History& h) { h.facts.samples.back().row.mutable_version()->set_step(3); },
       "outside the lag bound"},
      {"trained in another step", [](History& h) { h.facts.samples.back().row.set_assigned_step(2); },
       "sample 3/1/0: trained in step 2"},
      {"other tokens than were trained", [](History& h) { h.facts.samples.back().line = "3/1/0@1 beef"; },
       "step 3: the samples it has are not those it was trained on"},
      {"a step without a commit", [](History& h) { h.facts.steps.erase(h.facts.steps.begin() + 1); },
       "expected a commit of step 2, found one of step 3"},
      {"the newest commit missing", [](History& h) { h.facts.steps.pop_back(); },
       "the job is at step 3, but step 3 has no commit"},
      {"the job's version is not the commit's", [](History& h) { h.facts.job.mutable_version()->set_digest("other"); },
       "but the job's version has other"},
      {"lineages that go back", [](History& h) { h.facts.steps[0].set_lineage(1); }, "lineage 0 after 1"},
      {"superseded and yet trained", [](History& h) { h.facts.samples[kStale].row.set_state(v1::TRAINED); },
       "superseded at attempt 1, but TRAINED"},
      {"stale and not superseded", [](History& h) { h.facts.samples[kStale - 1].row.set_state(v1::STALE); },
       "sample 3/0/0: STALE, and no other was generated instead"},
      {"given up within the bound", [](History& h) { *h.facts.samples[kStale].row.mutable_version() = Version(2); },
       "given up as stale, but version 2 of lineage 0 is within the lag bound"},
      {"failed without a reason", [](History& h) { h.facts.samples[kStale].row.set_state(v1::SAMPLE_FAILED); },
       "sample 3/0/0: failed, and nothing says why"},
      {"by weights that were not committed",
       [](History& h) {
         CheckedSample& sample = h.facts.samples.back();
         sample.row.mutable_version()->set_digest("stray");
         sample.oldest = sample.newest = sample.row.version();
       },
       "generated by version 2 with weights stray, but step 2 was committed with w2"},
      {"finished by a version of the future", [](History& h) { h.facts.samples.back().newest = Version(3); },
       "sample 3/1/0: generated by version 3, outside the lag bound 2 to 2"},
      {"finished by weights that were not committed",
       [](History& h) { h.facts.samples.back().newest.set_digest("stray"); }, "with weights stray"},
      {"another version than its payload's",
       [](History& h) { h.facts.samples.back().oldest = h.facts.samples.back().newest = Version(1); },
       "its row names version 2 as the oldest in it, its payload 1"},
      {"versions in the wrong order",
       [](History& h) {
         h.facts.job.mutable_spec()->mutable_ppo()->set_max_policy_lag(1);
         h.facts.samples.back().newest = Version(1);
       },
       "its newest version, 1, is older than its oldest, 2"},
      {"ranks with other weights", [](History& h) { Find(h, "trained", 1, 1, 2).weights = "damaged"; },
       "learner-0 ended with weights w2, learner-1 with damaged"},
      {"ranks with other optimizers", [](History& h) { Find(h, "trained", 2, 1, 3).state = "damaged"; },
       "learner-0 ended with an optimizer state s, learner-1 with damaged"},
      {"evidence of another job",
       [](History& h) {
         for (StepLine& line : h.evidence.steps) line.job = "another";
       },
       "step 1 at epoch 1: no step log says that it was trained"},
      {"a rank's log missing", [](History& h) { Erase(h, [](const StepLine& line) { return line.rank == 1; }); },
       "step 1 at epoch 1: no step log says that rank 1 of 2 trained it"},
      {"rank 0's log missing", [](History& h) { Erase(h, [](const StepLine& line) { return line.rank == 0; }); },
       "step 1 at epoch 1: no step log says that rank 0 of 2 trained it"},
      {"a step's lines missing", [](History& h) { Erase(h, [](const StepLine& line) { return line.epoch == 2; }); },
       "step 3 at epoch 2: no step log says that it was trained"},
      {"a step without its list", [](History& h) { Find(h, "trained", 1, 0, 1).samples.clear(); },
       "step 1: learner-0 does not list its samples"},
      {"committed with another optimizer than was trained", [](History& h) { h.facts.steps[2].set_state_digest("t"); },
       "step 3: committed with the state t, but learner-0 trained s"},
      {"committed with other metrics than were trained", [](History& h) { h.facts.steps[1].set_metrics_digest("n"); },
       "step 2: committed with metrics n, but learner-0 trained m"},
      {"a repeat with other weights, of a deterministic job",
       [](History& h) {
         h.facts.job.mutable_spec()->set_deterministic(true);
         for (int rank = 0; rank < 2; ++rank) Find(h, "trained", 1, rank, 3).weights = "other";
       },
       "but the job is deterministic"},
      {"ranks with other metrics", [](History& h) { Find(h, "trained", 1, 1, 2).metrics = "n"; }, "ended with metrics"},
      {"ranks with other batches", [](History& h) { Find(h, "trained", 1, 1, 2).batch = "b"; }, "ended with a batch"},
      {"a step skipped", [](History& h) { Find(h, "committed", 1, 1, 2).step = 4; }, "step 4 after step 1"},
      {"an epoch that goes back", [](History& h) { Find(h, "committed", 1, 1, 1).epoch = 3; }, "epoch 1 after 3"},
      {"a replay with other samples",
       [](History& h) {
         for (int rank = 0; rank < 2; ++rank) {
           StepLine& line = Find(h, "trained", 1, rank, 3);
           line.samples.clear();
           line.batch = "other";
         }
       },
       "step 3: trained again at epoch 2 with other samples"},
      {"an acknowledged commit lost",
       [](History& h) {
         StepLine line = Find(h, "committed", 2, 0, 3);
         StepLine trained = Find(h, "trained", 2, 0, 3);
         line.step = trained.step = 4;
         h.evidence.steps.push_back(trained);
         h.evidence.steps.push_back(line);
       },
       "step 4: learner-0 was told that it is committed, but it is not"},
      {"an acknowledged commit replaced",
       [](History& h) {
         for (int rank = 0; rank < 2; ++rank) Find(h, "committed", 2, rank, 3).weights = "mine";
       },
       "was told mine"},
      {"a commit older than one that was acknowledged", [](History& h) { h.facts.steps[2].set_epoch(1); },
       "was told that epoch 2 committed it"},
      {"an acknowledged commit of another lineage",
       [](History& h) {
         for (int rank = 0; rank < 2; ++rank) Find(h, "committed", 2, rank, 3).lineage = 7;
       },
       "was told w3 of lineage 7"},
      {"a batch that is not its list", [](History& h) { Find(h, "trained", 1, 0, 1).samples.pop_back(); },
       "the batch's digest is not of the 1 samples"},
      {"a sample in two steps",
       [](History& h) {
         StepLine &first = Find(h, "trained", 1, 0, 1), &second = Find(h, "trained", 1, 0, 2);
         second.samples = first.samples;
         second.batch = first.batch;
         Find(h, "trained", 1, 1, 2).batch = first.batch;
       },
       "sample 1/0/0: trained in steps 1 and 2"},
      {"an accepted sample missing", [](History& h) { h.evidence.accepted[0].sample = "1/0/0@7 beef"; },
       "rollout-0 was told that it is stored, but it is not"},
  };
  ExpectFound(Whole, breaks);
}

TEST(LedgerCheckTest, EveryWayToBreakASupervisedJobIsFound) {
  const std::vector<Break> breaks = {
      {"not all its steps", [](History& h) { h.facts.job.set_step(4); }, "the job succeeded at step 4 of 5"},
      {"no model", [](History& h) { h.facts.job.mutable_result()->clear_artifacts(); }, "succeeded without a model"},
      {"no evidence of it", [](History& h) { h.evidence.steps.clear(); },
       "step 5 at epoch 2: no step log says that it was trained"},
      {"a rank without its end", [](History& h) { h.evidence.steps.pop_back(); },
       "step 5 at epoch 2: no step log says that rank 1 of 2 trained it"},
      {"an end without digests",
       [](History& h) {
         for (int rank = 0; rank < 2; ++rank) Find(h, "trained", 2, rank, 5).state.clear();
       },
       "noted no digests of what it ended with"},
      {"ranks with other weights", [](History& h) { Find(h, "trained", 1, 1, 3).weights = "damaged"; },
       "ended with weights"},
      {"ranks with other optimizers", [](History& h) { Find(h, "trained", 2, 1, 5).state = "damaged"; },
       "learner-0 ended with an optimizer state s5, learner-1 with damaged"},
      {"other bytes when trained again",
       [](History& h) {
         for (int rank = 0; rank < 2; ++rank) {
           StepLine again = Find(h, "trained", 1, rank, 3);
           again.epoch = 2;
           again.state = "other";
           h.evidence.steps.push_back(again);
         }
       },
       "but the job is deterministic"},
  };
  ExpectFound(Supervised, breaks);
}

TEST(LedgerCheckTest, AStepThatIsRolledBackIsNoViolationWhileTheJobRuns) {
  History h = Whole();
  h.facts.job.set_state(v1::RUNNING);
  h.facts.job.set_step(2);
  h.facts.step_after = 2;
  h.facts.job.mutable_version()->set_digest("w2");
  for (CheckedSample& sample : h.facts.samples) {
    if (sample.row.id().step() == 3 && !sample.archived) sample.row.set_state(v1::ASSIGNED);
  }
  EXPECT_THAT(h.Violations(), IsEmpty());
  h.facts.job.set_state(v1::SUCCEEDED);
  EXPECT_THAT(absl::StrJoin(h.Violations(), "\n"), HasSubstr("was told that it is committed, but it is not"));
}

TEST(LedgerCheckTest, AStepThatIsCommittedWhileItIsReadIsNoViolation) {
  History h = Whole();
  h.facts.job.set_state(v1::RUNNING);
  StepLine committed = Find(h, "committed", 2, 0, 3), trained = Find(h, "trained", 2, 0, 3);
  committed.step = trained.step = 4;
  h.evidence.steps.push_back(trained);
  h.evidence.steps.push_back(committed);
  EXPECT_THAT(absl::StrJoin(h.Violations(), "\n"), HasSubstr("was told that it is committed, but it is not"));
  h.facts.step_after = 4;
  EXPECT_THAT(h.Violations(), IsEmpty());
}

TEST(EvidenceTest, ReadsWhatIsThereAndNamesWhatIsDamaged) {
  ScratchDir dir;
  ASSERT_TRUE(WriteFileDurably(dir.File("steps-learner-0.jsonl"),
                               "{\"event\":\"trained\",\"job\":\"j\",\"epoch\":1,\"rank\":0,\"world\":2,\"step\":5,"
                               "\"weights\":\"w\",\"state\":\"s\",\"samples\":[\"5/0/0@1 t\"]}\n{\"event\":\"comm")
                  .ok());
  ASSERT_TRUE(WriteFileDurably(dir.File("accepted-rollout-1.jsonl"),
                               "{\"event\":\"accepted\",\"job\":\"j\",\"sample\":\"5/0/0@1 t\"}\n")
                  .ok());
  const auto evidence = ReadEvidence(dir.path());
  ASSERT_TRUE(evidence.ok()) << evidence.status();
  ASSERT_EQ(evidence->steps.size(), 1u);  // the second line was cut by its writer's death
  EXPECT_EQ(evidence->steps[0].source, "learner-0");
  EXPECT_EQ(evidence->steps[0].state, "s");
  EXPECT_EQ(evidence->steps[0].samples, std::vector<std::string>({"5/0/0@1 t"}));
  ASSERT_EQ(evidence->accepted.size(), 1u);
  EXPECT_EQ(evidence->accepted[0].source, "rollout-1");
  ASSERT_TRUE(WriteFileDurably(dir.File("steps-learner-1.jsonl"), "nonsense\n").ok());
  EXPECT_THAT(std::string(ReadEvidence(dir.path()).status().message()), HasSubstr("steps-learner-1.jsonl:1: expected"));
  ASSERT_TRUE(WriteFileDurably(dir.File("steps-learner-1.jsonl"), "{\"event\":\"trained\",\"job\":\"j\"}\n").ok());
  EXPECT_THAT(std::string(ReadEvidence(dir.path()).status().message()), HasSubstr("steps-learner-1.jsonl:1: expected"));
  EXPECT_TRUE(absl::IsNotFound(ReadEvidence(dir.File("nowhere")).status()));
  ASSERT_TRUE(MakeDirs(dir.File("empty")).ok());
  const absl::Status empty = ReadEvidence(dir.File("empty")).status();
  EXPECT_TRUE(absl::IsNotFound(empty)) << empty;
  EXPECT_THAT(std::string(empty.message()), HasSubstr("--evidence-dir"));
}

TEST(AuditLogTest, WhatWasChangedCutOrRewrittenIsFound) {
  ScratchDir dir;
  const auto signer = Signer::Open(dir.File("audit.key"));
  ASSERT_TRUE(signer.ok()) << signer.status();
  std::vector<v1::AuditRecord> records;
  const auto chain = [&](const std::string& action) {
    v1::AuditRecord record;
    record.set_sequence(records.size() + 1);
    record.set_action(action);
    record.set_previous_sha256(records.empty() ? "" : records.back().sha256());
    record.set_sha256(client::AuditDigest(record));
    records.push_back(record);
  };
  for (const char* action : {"job.submit", "token.create", "gate.approve"}) chain(action);
  v1::AuditHead head;
  head.set_sequence(records.size());
  head.set_sha256(records.back().sha256());
  head.set_key_sha256((*signer)->key_sha256());
  head.set_signature((*signer)->Sign(client::AuditHeadText(head)));
  const std::vector<std::string> pem = {(*signer)->public_key_pem()};

  const AuditVerdict whole = VerifyAuditLog(records, {head}, pem);
  EXPECT_EQ(whole.problem, "");
  EXPECT_EQ(whole.records, 3u);
  EXPECT_EQ(whole.heads, 1u);

  std::vector<v1::AuditRecord> changed = records;
  changed[1].set_action("token.revoke");
  EXPECT_THAT(VerifyAuditLog(changed, {head}, pem).problem, HasSubstr("tampered with at record 2"));
  EXPECT_EQ(VerifyAuditLog(changed, {head}, pem).records, 1u);
  std::vector<v1::AuditRecord> cut = records;
  cut.pop_back();
  EXPECT_THAT(VerifyAuditLog(cut, {head}, pem).problem, HasSubstr("the tail was cut"));
  records.clear();
  for (const char* action : {"job.submit", "token.create", "gate.reject"}) chain(action);
  EXPECT_THAT(VerifyAuditLog(records, {head}, pem).problem, HasSubstr("the chain was rewritten"));
  head.set_signature((*signer)->Sign("something else"));
  EXPECT_THAT(VerifyAuditLog(records, {head}, pem).problem, HasSubstr("the signed head of record 3"));
}

}  // namespace
}  // namespace rlhf::cli
