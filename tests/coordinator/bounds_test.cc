// How much one job may ask for: what is refused, what becomes of a job that was stored before there was a bound, and
// that a prompt of many samples takes as many turns of the loop as many prompts.
#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/jobs/collect_tasks.h"
#include "coordinator/jobs/size_spec.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/store/state_store.h"
#include "tests/coordinator/jobs_process.h"
#include "tests/coordinator/stored_jobs.h"

namespace rlhf::coordinator {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int kAbsurd = std::numeric_limits<int32_t>::max();

v1::JobSpec PpoJob() {
  v1::JobSpec spec;
  spec.set_name("job");
  v1::PpoSpec* ppo = spec.mutable_ppo();
  ppo->set_policy("base");
  ppo->set_prompts("prompts");
  ppo->set_steps(3);
  ppo->set_prompts_per_step(1);
  ppo->set_samples_per_prompt(1000);
  v1::RewardComponent* component = ppo->mutable_scorer()->add_components();
  component->set_name("r");
  component->mutable_regex()->set_pattern("a");
  return spec;
}
v1::JobSpec SampleJob() {
  v1::JobSpec spec;
  spec.set_name("job");
  spec.mutable_sample()->set_model("base");
  spec.mutable_sample()->set_prompts("prompts");
  return spec;
}
v1::JobSpec SftJob() {
  v1::JobSpec spec;
  spec.set_name("job");
  spec.mutable_sft()->set_model("base");
  spec.mutable_sft()->set_data("data");
  spec.mutable_sft()->set_steps(1);
  spec.mutable_sft()->set_batch_size(1);
  return spec;
}

TEST(SizeTest, WhatOneJobMayAskForIsBounded) {
  struct Case {
    const char* field;
    int64_t most;
    v1::JobSpec spec;
    std::function<void(v1::JobSpec*, int)> set;
  };
  v1::JobSpec reward_model, collect;
  for (v1::JobSpec* spec : {&reward_model, &collect}) spec->set_name("job");
  reward_model.mutable_reward_model()->set_model("base");
  reward_model.mutable_reward_model()->set_data("data");
  reward_model.mutable_reward_model()->set_batch_size(1);
  collect.mutable_collect()->set_samples("data");
  collect.mutable_collect()->set_comparisons(1);
  const Case cases[] = {
      {"sample.samples_per_prompt", kMostSamplesPerPrompt, SampleJob(),
       [](v1::JobSpec* s, int n) { s->mutable_sample()->set_samples_per_prompt(n); }},
      {"ppo.prompts_per_step", kMostSamplesAStep, PpoJob(),
       [](v1::JobSpec* s, int n) {
         s->mutable_ppo()->set_prompts_per_step(n);
         s->mutable_ppo()->set_samples_per_prompt(1);
       }},
      {"ppo.prompts_per_step", kMostSamplesAStep, PpoJob(),
       [](v1::JobSpec* s, int n) { s->mutable_ppo()->set_samples_per_prompt(n); }},
      {"ppo.epochs", kMostEpochs, PpoJob(), [](v1::JobSpec* s, int n) { s->mutable_ppo()->set_epochs(n); }},
      {"ppo.max_attempts", kMostAttempts, PpoJob(),
       [](v1::JobSpec* s, int n) { s->mutable_ppo()->set_max_attempts(n); }},
      {"sft.batch_size", kMostLinesAStep, SftJob(), [](v1::JobSpec* s, int n) { s->mutable_sft()->set_batch_size(n); }},
      {"reward_model.batch_size", kMostLinesAStep, reward_model,
       [](v1::JobSpec* s, int n) { s->mutable_reward_model()->set_batch_size(n); }},
      {"reward_model.epochs", kMostEpochs, reward_model,
       [](v1::JobSpec* s, int n) { s->mutable_reward_model()->set_epochs(n); }},
      {"collect.comparisons", kMostComparisons, collect,
       [](v1::JobSpec* s, int n) { s->mutable_collect()->set_comparisons(n); }}};
  for (const Case& one : cases) {
    SCOPED_TRACE(one.field);
    for (const int64_t value : {one.most, one.most + 1, static_cast<int64_t>(kAbsurd)}) {
      v1::JobSpec spec = one.spec;
      one.set(&spec, static_cast<int>(value));
      const std::string problems = JoinProblems(CompleteSpec(&spec));
      if (value == one.most) {
        EXPECT_EQ(problems, "");
        continue;
      }
      EXPECT_THAT(problems, HasSubstr(absl::StrCat(one.field, ": expected at most ", one.most)));
      EXPECT_THAT(problems, HasSubstr(absl::StrCat("found ", value)));
    }
  }
  // What would be checked against each other, in time or in text that grows with the square of it.
  v1::JobSpec long_one;
  long_one.set_name("job");
  for (int i = 0; i < 101; ++i) long_one.mutable_pipeline()->add_stages()->mutable_ppo();
  EXPECT_EQ(JoinProblems(CompleteSpec(&long_one)), "pipeline.stages: expected at most 100, found 101");
  long_one.mutable_pipeline()->mutable_stages()->RemoveLast();
  for (int i = 0; i < 1001; ++i)
    long_one.mutable_pipeline()->mutable_stages(99)->mutable_gate()->add_conditions()->set_metric("unknown");
  EXPECT_EQ(JoinProblems(CompleteSpec(&long_one)),
            "pipeline.stages[99].gate.conditions: expected at most 1000, found 1001");
  long_one.mutable_pipeline()->mutable_stages(99)->mutable_gate()->mutable_conditions()->RemoveLast();
  EXPECT_EQ(CompleteSpec(&long_one).size(), kMostProblems);
  v1::JobSpec crowded = PpoJob();  // four bytes an entry
  for (int i = 0; i < kMostEntries; ++i) crowded.mutable_ppo()->mutable_scorer()->add_components();
  EXPECT_EQ(JoinProblems(TooLarge(crowded)), "expected at most 10000 entries of its lists in all, found more");
  crowded.mutable_ppo()->mutable_scorer()->mutable_components()->RemoveLast();
  EXPECT_EQ(JoinProblems(TooLarge(crowded)), "");
  v1::JobSpec both = PpoJob();
  both.mutable_ppo()->set_prompts_per_step(kAbsurd);
  both.mutable_ppo()->set_samples_per_prompt(kAbsurd);
  EXPECT_THAT(JoinProblems(CompleteSpec(&both)), HasSubstr("found 4611686014132420609"));
  v1::JobSpec ahead = PpoJob();
  ahead.mutable_ppo()->set_samples_per_prompt(kMostSamplesAStep);
  ahead.mutable_ppo()->set_max_policy_lag(3);
  EXPECT_EQ(JoinProblems(CompleteSpec(&ahead)), "");
  ahead.mutable_ppo()->set_max_policy_lag(4);
  EXPECT_THAT(JoinProblems(CompleteSpec(&ahead)), HasSubstr("ppo.max_policy_lag: expected at most 1048576 samples"));
  v1::JobSpec pipeline;
  pipeline.set_name("job");
  v1::StageSpec* stage = pipeline.mutable_pipeline()->add_stages();
  stage->set_name("draw");
  *stage->mutable_sample() = SampleJob().sample();
  stage->mutable_sample()->set_samples_per_prompt(kAbsurd);
  EXPECT_THAT(JoinProblems(CompleteSpec(&pipeline)),
              HasSubstr("pipeline.stages[0].sample.samples_per_prompt: expected at most 65536, found 2147483647"));
}

TEST(SizeTest, PairsAreOrderedOnlyWhereTheyFitInMemory) {
  const auto collect = [](int answers) {
    TaskSources sources;
    for (int i = 0; i < answers; ++i) {
      artifact::SampleRecord& sample = sources.samples.emplace_back();
      sample.prompt = "one";
      sample.response = absl::StrCat("answer ", i / 100);
      sample.components = {{"e/0", i}, {"e/1", -i}};
    }
    v1::CollectSpec spec;
    spec.set_comparisons(1);
    spec.set_pairs(v1::PAIRS_DISAGREEMENT);
    return MakeTasks(sources, spec, 3, "job", "default").status();
  };
  EXPECT_TRUE(collect(200).ok());
  const absl::Status refused = collect(6000);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("at most 16777216 pairs of answers, found 17997000"));
}

v1::JobSpec EvaluateJob() {
  v1::JobSpec spec;
  spec.set_name("job");
  spec.mutable_evaluate()->set_model("base");
  spec.mutable_evaluate()->set_suite("prompts");
  return spec;
}

TEST(TextsOfSpecTest, PatternsAreCompiledBeforeAnybodyMatchesByThem) {
  const auto problems = [](const std::function<void(v1::RewardComponent*)>& change) {
    v1::JobSpec spec = PpoJob();
    change(spec.mutable_ppo()->mutable_scorer()->mutable_components(0));
    return JoinProblems(CompleteSpec(&spec));
  };
  EXPECT_THAT(problems([](v1::RewardComponent* c) { c->mutable_regex()->set_pattern("(["); }),
              HasSubstr("ppo.scorer.components[0].regex.pattern: expected a regular expression (PCRE2), found \"([\""));
  EXPECT_THAT(problems([](v1::RewardComponent* c) { c->mutable_sentence_share()->set_pattern("a{2,1}"); }),
              HasSubstr("sentence_share.pattern: expected a regular expression"));
  EXPECT_EQ(problems([](v1::RewardComponent* c) { c->mutable_regex()->set_pattern("(?<=\\p{L})é+$"); }), "");
  for (const auto& [pattern, problem] : std::map<std::string, std::string>{
           {"confidence: (\\d+)", ""}, {"confidence: \\d+", "with 1 group in parentheses"}, {"(", "at character"}}) {
    v1::JobSpec spec = EvaluateJob();
    spec.mutable_evaluate()->set_confidence_pattern(pattern);
    const std::string found = JoinProblems(CompleteSpec(&spec));
    if (problem.empty()) {
      EXPECT_EQ(found, "");
    } else {
      EXPECT_THAT(found, AllOf(HasSubstr("evaluate.confidence_pattern: "), HasSubstr(problem)));
    }
  }
}

TEST(TextsOfSpecTest, ExternalAddressesAreAHostAndAPort) {
  const auto problems = [](const std::string& address) {
    v1::JobSpec spec = PpoJob();
    spec.mutable_ppo()->mutable_scorer()->mutable_components(0)->mutable_external()->set_address(address);
    return JoinProblems(CompleteSpec(&spec));
  };
  for (const char* good : {"scorer:7000", "10.0.0.1:80", "[::1]:7000", "dns:///scorer.rewards.svc:7000", "a_b-c.d:1"})
    EXPECT_EQ(problems(good), "") << good;
  for (const char* bad : {"not an address", "scorer", ":7000", "scorer:0", "scorer:70000", "unix:/run/x.sock",
                          "unix:/run/x:1", "http://scorer:80", "::1:80", "dns:///scorer", "a b:1"})
    EXPECT_THAT(problems(bad), HasSubstr("external.address: expected HOST:PORT or dns:///NAME:PORT")) << bad;
}

// Remembers the largest transaction; can end with the process after some of them, and can be slow.
class WatchedStore final : public StoreOverRows {
 public:
  using StoreOverRows::StoreOverRows;
  int64_t largest = 0;
  int left = std::numeric_limits<int>::max();  // transactions with samples that are kept
  bool slow = false;                           // nothing is written until Arrive

  void Enqueue(WriteBatch batch, Committed done) override {
    if (slow) return void(on_their_way_.emplace_back(std::move(batch), std::move(done)));
    int64_t rows = 0;
    for (const WriteBatch::Op& op : batch.ops) rows += op.table == Table::kSamples ? 1 : 0;
    if (rows > 0 && left-- <= 0) crashed_ = true;
    if (crashed_) return;
    largest = std::max(largest, rows);
    rows_->Commit(std::move(batch), std::move(done));
  }
  void Arrive() {
    slow = false;
    for (auto& [batch, done] : std::exchange(on_their_way_, {})) Enqueue(std::move(batch), std::move(done));
  }

 private:
  bool crashed_ = false;
  std::vector<std::pair<WriteBatch, Committed>> on_their_way_;
};

struct WatchedProcess {
  WatchedProcess(EdgeMemoryStore* rows, FakeClock* clock, const std::string& dir)
      : store(rows), jobs(&store, clock, dir) {}
  WatchedStore store;
  JobsProcess jobs;
};

class SizeOfStoredJobTest : public StoredJobsTest {
 protected:
  void Begin() { process_ = std::make_unique<WatchedProcess>(&rows_, &clock_, dir_.path()); }
  // A job's row as an earlier coordinator left it, with its prompts' artifact.
  void Put(v1::JobSpec spec, const std::function<void(v1::JobSpec*)>& grow = nullptr) {
    v1::Job job;
    (*job.mutable_resolved())["prompts"] = process_->jobs.PublishPrompts(
        "{\"prompt\":\"one\",\"tags\":{\"length\":\"short\"}}\n{\"prompt\":\"two\",\"category\":\"known\"}\n");
    ASSERT_EQ(JoinProblems(CompleteSpec(&spec)), "");
    if (grow) grow(&spec);
    job.set_id("job");
    job.set_state(v1::RUNNING);
    job.mutable_started_at()->set_seconds(1'700'000'000);
    *job.mutable_spec() = std::move(spec);
    Store(std::move(job));
  }
  void Change(const std::function<void(v1::Job*)>& change) {
    v1::Job job = JobRow();
    change(&job);
    Store(std::move(job));
  }
  int64_t Samples() {
    int64_t count = 0;
    EXPECT_TRUE(
        rows_.Scan(Table::kSamples, "job/", [&](absl::string_view, absl::string_view) { return ++count > 0; }).ok());
    return count;
  }

  std::unique_ptr<WatchedProcess> process_;
};

TEST_F(SizeOfStoredJobTest, FailsWithItsReasonWhereItWouldTakeAllMemory) {
  const std::pair<v1::JobSpec, std::function<void(v1::JobSpec*)>> jobs[] = {
      {SampleJob(), [](v1::JobSpec* s) { s->mutable_sample()->set_samples_per_prompt(kAbsurd); }},
      {PpoJob(), [](v1::JobSpec* s) {
         s->mutable_ppo()->set_prompts_per_step(kAbsurd);
         s->mutable_ppo()->set_samples_per_prompt(kAbsurd);
       }}};
  for (const auto& [spec, grow] : jobs) {
    Begin();
    Put(spec, grow);
    process_->jobs.Recover();
    EXPECT_EQ(JobRow().state(), v1::FAILED);
    EXPECT_EQ(JobRow().reason_code(), "INVALID_SPEC");
    EXPECT_THAT(JobRow().reason(), HasSubstr("expected at most"));
    EXPECT_EQ(Samples(), 0);
  }
}

// The coordinator went back a release while the job ran.
TEST_F(SizeOfStoredJobTest, WhatANewerReleaseBeganWaitsForItAndIsNeitherRunNorLost) {
  Begin();
  Put(PpoJob(), [](v1::JobSpec* s) { s->GetReflection()->MutableUnknownFields(s)->AddVarint(900, 7); });
  process_->jobs.Recover();
  EXPECT_EQ(JobRow().state(), v1::WAITING);
  EXPECT_EQ(JobRow().reason_code(), "NEWER_RELEASE");
  EXPECT_THAT(JobRow().reason(), AllOf(HasSubstr("#900"), HasSubstr("update the coordinator")));
  EXPECT_EQ(Samples(), 0);
  v1::JobSpec kept = JobRow().spec();
  ASSERT_EQ(kept.GetReflection()->GetUnknownFields(kept).field_count(), 1) << "it is written back as it was";
  EXPECT_EQ(kept.GetReflection()->GetUnknownFields(kept).field(0).varint(), 7u);
}

// What the newer release made of it in the specification, and without it.
void AddNewer(v1::JobSpec* spec) {
  spec->GetReflection()->MutableUnknownFields(spec)->AddVarint(900, 7);
}
void IsKnown(v1::Job* job) {
  job->mutable_spec()->DiscardUnknownFields();
}

TEST_F(SizeOfStoredJobTest, WhatWasHeldForANewerReleaseGoesOnOnceThatIsBack) {
  Begin();
  Put(PpoJob(), AddNewer);
  process_->jobs.Recover();
  ASSERT_EQ(JobRow().reason_code(), "NEWER_RELEASE");
  const std::string held = JobRow().etag();
  Begin();
  process_->jobs.Recover();
  EXPECT_EQ(JobRow().etag(), held) << "it is held again, and nothing new is to be said";
  Change(IsKnown);
  Begin();
  process_->jobs.Recover();
  EXPECT_EQ(JobRow().state(), v1::PENDING) << "until its learners are there";
  EXPECT_EQ(JobRow().reason(), "");
  EXPECT_EQ(JobRow().reason_code(), "");
  EXPECT_GT(Samples(), 0);
}

TEST_F(SizeOfStoredJobTest, OfAHeldJobThatIsCancelledNoSampleStaysOpen) {
  Begin();
  Put(PpoJob());
  process_->jobs.Recover();
  ASSERT_EQ(Samples(), 1000);
  Change([](v1::Job* job) { AddNewer(job->mutable_spec()); });
  Begin();
  process_->jobs.Recover();
  ASSERT_EQ(JobRow().reason_code(), "NEWER_RELEASE");
  EXPECT_EQ(process_->jobs.sampling->Counts("job").queued(), 1000);
  v1::CancelJobRequest cancel;
  cancel.set_job_id("job");
  process_->jobs.jobs->Cancel("ada", cancel, [](const absl::StatusOr<v1::Job>& job) { EXPECT_TRUE(job.ok()); });
  process_->jobs.loop.Run();
  for (const bool restarted : {false, true}) {
    if (restarted) {
      Begin();
      process_->jobs.Recover();
    }
    EXPECT_EQ(JobRow().state(), v1::CANCELLED);
    EXPECT_EQ(process_->jobs.sampling->Counts("job").queued(), 0);
    EXPECT_EQ(process_->jobs.sampling->Counts("job").cancelled(), 1000);
    EXPECT_THAT(process_->jobs.Check().violations, testing::IsEmpty());
  }
}

TEST_F(SizeOfStoredJobTest, WhatIsHeldSaysSoWhateverItWasBefore) {
  const auto begin = [this](const std::function<void(v1::Job*)>& change) {
    Begin();
    Put(PpoJob(), AddNewer);
    Change(change);
    process_->jobs.Recover();
  };
  begin([](v1::Job* job) {
    job->set_state(v1::PAUSED);
    job->set_reason_code(kDiskFull);
  });
  EXPECT_EQ(JobRow().state(), v1::WAITING) << "here it does not go on once there is room";
  EXPECT_EQ(JobRow().reason_code(), "NEWER_RELEASE");
  // Over its project's bound on jobs it waits still.
  begin([](v1::Job* job) {
    job->set_state(v1::PENDING);
    job->clear_started_at();
  });
  EXPECT_EQ(JobRow().state(), v1::WAITING);
  EXPECT_FALSE(JobRow().has_started_at());
  begin([](v1::Job* job) { job->set_state(v1::PAUSED); });
  EXPECT_EQ(JobRow().state(), v1::PAUSED);
  v1::ResumeJobRequest resume;
  resume.set_job_id("job");
  process_->jobs.jobs->Resume("ada", resume, [](const absl::StatusOr<v1::Job>& job) { EXPECT_TRUE(job.ok()); });
  process_->jobs.loop.Run();
  EXPECT_EQ(JobRow().state(), v1::WAITING) << "it does not run";
  EXPECT_EQ(JobRow().reason_code(), "NEWER_RELEASE");
}

TEST_F(SizeOfStoredJobTest, SlicesThatTheSuiteHasNotEndTheEvaluationBeforeItBegins) {
  v1::JobSpec spec = EvaluateJob();
  spec.mutable_evaluate()->add_slices("length");
  Begin();
  Put(spec);
  process_->jobs.Recover();
  EXPECT_EQ(JobRow().state(), v1::RUNNING) << JobRow().reason();
  spec.mutable_evaluate()->add_slices("nosuch");
  Begin();
  Put(spec);
  process_->jobs.Recover();
  EXPECT_EQ(JobRow().state(), v1::FAILED);
  EXPECT_EQ(JobRow().reason_code(), "BAD_DATA");
  EXPECT_EQ(JobRow().reason(),
            "evaluate.slices: expected tags of the suite's prompts (category, length), found \"nosuch\"");
}

TEST_F(SizeOfStoredJobTest, APromptOfManySamplesIsIssuedInSlices) {
  Begin();
  Put(PpoJob());
  process_->store.left = 2;
  process_->jobs.Recover();
  const int64_t before = Samples();
  EXPECT_GT(before, 0);
  EXPECT_LT(before, 1000);
  EXPECT_LE(process_->store.largest, 256);
  Begin();  // after SIGKILL
  process_->jobs.Recover();
  EXPECT_LE(process_->store.largest, 256);
  EXPECT_EQ(Samples(), 1000);
  EXPECT_EQ(JobRow().issued_through_step(), 1);
  EXPECT_EQ(JobRow().prompt_cursor(), 1);
}

// A service that is not started again for months forgets them all the same, some at a time.
TEST_F(SizeOfStoredJobTest, RequestIdsAreForgottenADayAfterWhileTheCoordinatorRuns) {
  const auto put = [this](const std::string& id) {
    v1::RequestRow row;
    row.set_body_sha256("of a job");
    row.mutable_created_at()->set_seconds(absl::ToUnixSeconds(clock_.WallNow()));
    WriteBatch batch;
    batch.Put(Table::kRequests, "default/ada/SubmitJob/" + id, row.SerializeAsString());
    ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
  };
  const auto left = [this] {
    int rows = 0;
    EXPECT_TRUE(
        rows_.Scan(Table::kRequests, "", [&](absl::string_view, absl::string_view) { return ++rows > 0; }).ok());
    return rows;
  };
  for (int i = 0; i < 1200; ++i) put(absl::StrCat("old-", i));
  Begin();
  process_->jobs.Recover();
  const auto tick = [this] {
    process_->jobs.jobs->Tick();
    process_->jobs.loop.Run();
  };
  clock_.Advance(absl::Hours(23));
  clock_.ShiftWall(absl::Hours(24 * 365));  // a clock that is set makes none of them old, also after a restart
  for (int i = 0; i < 3; ++i) tick();
  Begin();
  process_->jobs.Recover();
  for (int i = 0; i < 3; ++i) tick();
  clock_.ShiftWall(absl::Hours(-24 * 365));
  put("young");
  EXPECT_EQ(left(), 1201);
  clock_.Advance(absl::Hours(2));
  tick();
  EXPECT_EQ(left(), 701) << "so many at a time";
  for (int i = 0; i < 3; ++i) tick();
  EXPECT_EQ(left(), 1);
}

TEST_F(SizeOfStoredJobTest, ARequestIdThatIsUsedAgainADayAfterIsKept) {
  const std::string key = "default/ada/SubmitJob/id";
  Begin();
  v1::SubmitJobRequest request;
  request.set_request_id("id");
  request.mutable_spec()->set_name("job");
  request.mutable_spec()->set_project("default");
  request.mutable_spec()->mutable_collect()->set_samples(process_->jobs.PublishPrompts("{\"prompt\":\"one\"}\n"));
  request.mutable_spec()->mutable_collect()->set_comparisons(1);
  process_->jobs.Recover();
  v1::RequestRow before;
  before.set_body_sha256("of another job");
  before.mutable_created_at()->set_seconds(absl::ToUnixSeconds(clock_.WallNow()));
  WriteBatch batch;
  batch.Put(Table::kRequests, key, before.SerializeAsString());
  ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
  clock_.Advance(absl::Hours(25));
  // Its new row is on its way to the store as the old one is looked at.
  process_->store.slow = true;
  std::string job;
  process_->jobs.jobs->Submit("ada", request, [&job](const absl::StatusOr<v1::SubmitJobResponse>& submitted) {
    ASSERT_TRUE(submitted.ok()) << submitted.status();
    job = submitted->job().id();
  });
  process_->jobs.jobs->Tick();
  process_->store.Arrive();
  process_->jobs.loop.Run();
  ASSERT_NE(job, "");
  v1::RequestRow row;
  ASSERT_TRUE(row.ParseFromString(rows_.Get(Table::kRequests, key).value_or("")));
  EXPECT_EQ(row.response(), job) << "a call that is repeated is to find it";
  // And none is run twice because somebody sets the wall clock.
  clock_.ShiftWall(absl::Hours(24 * 365));
  std::string again;
  process_->jobs.jobs->Submit("ada", request, [&again](const absl::StatusOr<v1::SubmitJobResponse>& submitted) {
    ASSERT_TRUE(submitted.ok()) << submitted.status();
    again = submitted->job().id();
  });
  process_->store.Arrive();
  process_->jobs.loop.Run();
  EXPECT_EQ(again, job);
}

}  // namespace
}  // namespace rlhf::coordinator
