// A sample job from its first lease to its artifact, over a store in memory: what it publishes, and how much of it the
// coordinator has in memory meanwhile.
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/process.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/ledger.h"
#include "tests/coordinator/jobs_process.h"
#include "tests/coordinator/stored_jobs.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kAtOnce = 100;  // samples that are issued together

// Counts what a reading call that goes on where another ended looks at.
class PagedStore final : public StoreOverRows {
 public:
  using StoreOverRows::StoreOverRows;
  void Enqueue(WriteBatch batch, Committed done) override { rows_->Commit(std::move(batch), std::move(done)); }
  absl::Status ScanAfter(Table table, absl::string_view prefix, absl::string_view after,
                         absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    int rows = 0;
    const absl::Status status =
        StateStore::ScanAfter(table, prefix, after, [&](absl::string_view key, absl::string_view value) {
          ++rows;
          return fn(key, value);
        });
    if (!after.empty() && table == Table::kSamples) most_rows = std::max(most_rows, rows);
    return status;
  }
  int most_rows = 0;
};

// Scores every sample 0.25, unless it is to wait.
class QuarterRewards final : public RewardClient {
 public:
  void Score(const std::string&, v1::ScoreRequest request, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    if (away) return done(absl::UnavailableError("away"));
    v1::ScoreResponse response;
    for (const v1::Sample& sample : request.samples()) {
      v1::SampleScore* scored = response.add_scores();
      *scored->mutable_id() = sample.id();
      v1::Score* score = scored->mutable_score();
      score->set_total(0.25);
      v1::ComponentScore* component = score->add_components();
      component->set_name("liked");
      component->set_value(0.25);
    }
    done(std::move(response));
  }
  bool away = false;
};

class GeneratingDriverTest : public StoredJobsTest {
 protected:
  void Begin() {
    process_.reset();
    store_ = std::make_unique<PagedStore>(&rows_);
    process_ = std::make_unique<JobsProcess>(store_.get(), &clock_, dir_.path(), &rewards_, nullptr, kAtOnce);
    EXPECT_TRUE(process_->oversight->Recover().ok());
    EXPECT_TRUE(process_->artifacts->Recover().ok());
    worker_ = process_->Register(v1::ROLE_ROLLOUT_WORKER, "rollout-0");
    process_->Register(v1::ROLE_REWARD_SERVER, "reward-0");
  }
  // As after SIGKILL: only what the store holds is left, of payloads too.
  void Restart() {
    ASSERT_TRUE(process_->payloads->Sync().ok());
    Begin();
    Recover();
  }
  void Recover() {
    ASSERT_TRUE(process_->jobs->Recover().ok());
    process_->loop.Run();
  }

  // A sample job's row with its prompts' artifact, as a submission leaves them; two samples a prompt.
  void PutJob(int prompts, bool scored = true) {
    std::string lines;
    for (int i = 0; i < prompts; ++i)
      absl::StrAppend(&lines, "{\"prompt\":\"prompt ", i, "\",\"tags\":{\"t\":\"", i % 2, "\"}}\n");
    const std::string digest = process_->PublishPrompts(lines);
    v1::Job job;
    job.set_id("job");
    job.set_state(v1::PENDING);
    job.set_submitted_by("test");
    job.mutable_spec()->set_name("job");
    v1::SampleSpec* sample = job.mutable_spec()->mutable_sample();
    sample->set_model("base");
    sample->set_prompts("prompts");
    sample->set_samples_per_prompt(2);
    if (scored) {
      v1::RewardComponent* component = sample->mutable_scorer()->add_components();
      component->set_name("liked");
      component->mutable_reward_model()->set_model("rm");
    }
    ASSERT_EQ(JoinProblems(CompleteSpec(job.mutable_spec())), "");
    (*job.mutable_resolved())["prompts"] = digest;
    Store(std::move(job));
  }

  // The worker answers all that it is leased, each with its place and `tail`; what it sent.
  v1::SubmitSamplesRequest Work(const std::string& tail = "", int most = 10'000) {
    v1::SubmitSamplesRequest results;
    results.set_session_id(worker_);
    for (const v1::PromptLease& lease : process_->Lease(worker_, most)) {
      for (const v1::SampleLease& sample : lease.samples()) {
        v1::Sample* out = results.add_samples();
        *out = AnswerOf(lease, sample);
        out->set_response_text(absl::StrCat("answer ", lease.ordinal(), "/", sample.index(), tail));
        for (int i = 0; i <= sample.index(); ++i) out->add_response_tokens(7);
        for (int i = 0; i <= sample.index(); ++i) out->add_behaviour_log_probs(-1);
        out->set_finish_reason(cut_ && sample.index() == 1 ? v1::MAX_TOKENS : v1::END_OF_TEXT);
      }
    }
    Submit(results);
    Look();
    process_->sampling->Tick();
    process_->loop.Run();
    Look();
    return results;
  }
  std::vector<v1::SampleVerdict> Submit(const v1::SubmitSamplesRequest& results) {
    std::vector<v1::SampleVerdict> verdicts;
    process_->sampling->SubmitSamples(results, [&](absl::StatusOr<v1::SubmitSamplesResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      verdicts.assign(response->verdicts().begin(), response->verdicts().end());
    });
    process_->loop.Run();
    return verdicts;
  }
  void Look() {
    const Sampling::Held held = process_->sampling->HeldOf("job");
    most_.rows = std::max(most_.rows, held.rows);
    most_.samples = std::max(most_.samples, held.samples);
    most_.sample_bytes = std::max(most_.sample_bytes, held.sample_bytes);
  }
  void WorkToTheEnd() {
    while (Work().samples_size() > 0) {
    }
    process_->jobs->Tick();
    process_->loop.Run();
  }
  void Cancel() {
    v1::CancelJobRequest cancel;
    cancel.set_job_id("job");
    process_->jobs->Cancel("test", cancel, [](absl::StatusOr<v1::Job> job) { EXPECT_TRUE(job.ok()) << job.status(); });
    process_->loop.Run();
  }

  std::string Published() {
    const auto path = process_->artifacts->Locate(JobRow().result().artifacts().at("samples"))();
    EXPECT_TRUE(path.ok()) << path.status();
    const auto lines = ReadFile(*path + "/samples.jsonl");
    EXPECT_TRUE(lines.ok()) << lines.status();
    return lines.value_or("");
  }
  static std::string ExpectedLines(int prompts, bool scored = true) {
    std::string lines;
    for (int p = 0; p < prompts; ++p) {
      for (int i = 0; i < 2; ++i) {
        absl::StrAppend(&lines, "{\"id\":\"", p + 1, "\",\"index\":", i, ",\"prompt\":\"prompt ", p,
                        "\",\"response\":\"answer ", p, "/", i,
                        "\",\"finish_reason\":\"END_OF_TEXT\",\"tags\":{\"t\":\"", p % 2, "\"}",
                        scored ? ",\"score\":0.25,\"components\":{\"liked\":0.25}" : "", "}\n");
      }
    }
    return lines;
  }
  // How many samples lists have in each state.
  std::map<v1::SampleState, int> ListedStates() {
    std::map<v1::SampleState, int> states;
    std::string after;
    do {
      std::string next;
      const auto page = process_->sampling->List("job", -1, after, PageLimit(1000), &next);
      EXPECT_TRUE(page.ok()) << page.status();
      for (const v1::SampleView& view : page.value_or(std::vector<v1::SampleView>())) ++states[view.row().state()];
      after = next;
    } while (!after.empty());
    return states;
  }
  void ExpectAllAccountedFor() { EXPECT_THAT(process_->Check().violations, IsEmpty()); }

  QuarterRewards rewards_;
  std::unique_ptr<PagedStore> store_;
  std::unique_ptr<JobsProcess> process_;
  std::string worker_;
  bool cut_ = false;  // the worker's second answer to a prompt ends before max_new_tokens without an end
  Sampling::Held most_;
};

TEST_F(GeneratingDriverTest, MemoryIsThatOfWhatIsIssuedAtOnceHoweverLongTheJob) {
  constexpr int kPrompts = 1100;  // 22 times what is issued at once, and more than two pages
  Begin();
  PutJob(kPrompts);
  Recover();
  store_->most_rows = 0;
  WorkToTheEnd();
  ASSERT_EQ(JobRow().state(), v1::SUCCEEDED) << JobRow().reason();
  EXPECT_EQ(most_.rows, static_cast<size_t>(kAtOnce));
  EXPECT_LE(most_.samples, static_cast<size_t>(kAtOnce));
  EXPECT_GT(store_->most_rows, 0) << "it was published from pages";
  EXPECT_LE(store_->most_rows, 1001);
  EXPECT_TRUE(Published() == ExpectedLines(kPrompts));
  const v1::Metric length = JobRow().result().metrics().at("response_length");
  EXPECT_EQ(length.n(), 2 * kPrompts);
  EXPECT_DOUBLE_EQ(length.value(), 1.5);
  EXPECT_FALSE(length.has_low()) << "each prompt has an answer of one token and one of two: prompts do not differ";
  EXPECT_DOUBLE_EQ(JobRow().result().metrics().at("score").value(), 0.25);
  EXPECT_DOUBLE_EQ(JobRow().result().metrics().at("cut_by_context").value(), 0);
  EXPECT_EQ(process_->sampling->Counts("job").delivered(), 2 * kPrompts);
  EXPECT_EQ(ListedStates(), (std::map<v1::SampleState, int>{{v1::DELIVERED, 2 * kPrompts}}));
  ExpectAllAccountedFor();
  Restart();
  EXPECT_EQ(process_->sampling->Counts("job").delivered(), 2 * kPrompts);
  EXPECT_EQ(ListedStates(), (std::map<v1::SampleState, int>{{v1::DELIVERED, 2 * kPrompts}}));
  ExpectAllAccountedFor();
}

TEST_F(GeneratingDriverTest, WhatTheContextCutIsCountedAndTold) {
  cut_ = true;
  Begin();
  PutJob(20);
  Recover();
  WorkToTheEnd();
  ASSERT_EQ(JobRow().state(), v1::SUCCEEDED) << JobRow().reason();
  const v1::Metric cut = JobRow().result().metrics().at("cut_by_context");
  EXPECT_DOUBLE_EQ(cut.value(), 0.5);
  EXPECT_EQ(cut.n(), 40);
  std::vector<std::string> told;
  ASSERT_TRUE(rows_
                  .Scan(Table::kEvents, "",
                        [&](absl::string_view, absl::string_view value) {
                          v1::JobEvent event;
                          EXPECT_TRUE(event.ParseFromArray(value.data(), static_cast<int>(value.size())));
                          if (!event.message().empty()) told.push_back(event.message());
                          return true;
                        })
                  .ok());
  EXPECT_THAT(told, testing::Contains(testing::HasSubstr("50 % of the answers ended before max_new_tokens (64)")));
}

TEST_F(GeneratingDriverTest, WithoutAScorerNoSampleStaysInMemory) {
  Begin();
  PutJob(120, /*scored=*/false);
  Recover();
  WorkToTheEnd();
  ASSERT_EQ(JobRow().state(), v1::SUCCEEDED) << JobRow().reason();
  EXPECT_EQ(most_.samples, 0u);
  EXPECT_EQ(most_.rows, static_cast<size_t>(kAtOnce));
  EXPECT_TRUE(Published() == ExpectedLines(120, /*scored=*/false));
}

TEST_F(GeneratingDriverTest, WhatWaitsForItsScoreIsInMemoryUpToABound) {
  Begin();
  PutJob(kAtOnce / 2);
  Recover();
  rewards_.away = true;
  const std::string tail(2 << 20, 'x');
  for (int i = 0; i < 10; ++i) Work(tail, kAtOnce / 10);
  const Sampling::Held held = process_->sampling->HeldOf("job");
  EXPECT_EQ(process_->sampling->Counts("job").generated(), kAtOnce);
  EXPECT_GT(held.sample_bytes, kDeliveringCacheBytes / 2);
  EXPECT_LE(most_.sample_bytes, kDeliveringCacheBytes);
  EXPECT_LT(held.samples, static_cast<size_t>(kAtOnce));
  rewards_.away = false;
  for (int i = 0; i < 30 && JobRow().state() == v1::RUNNING; ++i) {
    clock_.Advance(absl::Seconds(31));
    process_->sampling->Tick();
    process_->loop.Run();
  }
  ASSERT_EQ(JobRow().state(), v1::SUCCEEDED) << JobRow().reason();
  EXPECT_THAT(Published(), HasSubstr(absl::StrCat("answer 49/1", tail, "\"")));
  ExpectAllAccountedFor();
}

TEST_F(GeneratingDriverTest, ARestartHasWhatIsOpenInMemoryAndPublishesTheSame) {
  Begin();
  PutJob(200);
  Recover();
  Work();
  Work();
  Work("", 30);  // of the third hundred
  Restart();
  EXPECT_EQ(process_->sampling->Counts("job").scored(), 230);
  EXPECT_EQ(process_->sampling->HeldOf("job").rows, 70u);
  ExpectAllAccountedFor();
  WorkToTheEnd();
  ASSERT_EQ(JobRow().state(), v1::SUCCEEDED) << JobRow().reason();
  EXPECT_TRUE(Published() == ExpectedLines(200));
  ExpectAllAccountedFor();
}

TEST_F(GeneratingDriverTest, ARestartAfterTheLastScorePublishes) {
  Begin();
  PutJob(100);
  Recover();
  Work();
  // Everything is scored before anybody publishes: the store dies with what was acknowledged.
  const v1::SubmitSamplesRequest last = Work();
  ASSERT_EQ(last.samples_size(), kAtOnce);
  ASSERT_EQ(JobRow().state(), v1::SUCCEEDED) << JobRow().reason();
  const std::string published = Published();
  // The same rows, with the job's as it was before its end.
  v1::Job job = JobRow();
  job.set_state(v1::RUNNING);
  job.clear_result();
  job.clear_finished_at();
  WriteBatch batch;
  batch.Put(Table::kJobs, "job", job.SerializeAsString());
  batch.Erase(Table::kMeta, Ledger::BaseKey("job"));
  ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
  Restart();
  ASSERT_EQ(JobRow().state(), v1::SUCCEEDED) << JobRow().reason();
  EXPECT_TRUE(Published() == published);
  ExpectAllAccountedFor();
}

TEST_F(GeneratingDriverTest, OfACancelledJobAllSamplesAreCancelled) {
  Begin();
  PutJob(200);
  Recover();
  Work();
  Work("", 30);
  Cancel();
  EXPECT_EQ(JobRow().state(), v1::CANCELLED);
  for (int starts = 0; starts < 2; ++starts) {
    const v1::LedgerCounts counts = process_->sampling->Counts("job");
    EXPECT_EQ(counts.cancelled(), 2 * kAtOnce);
    EXPECT_EQ(counts.issued(), 2 * kAtOnce);
    EXPECT_EQ(ListedStates(), (std::map<v1::SampleState, int>{{v1::SAMPLE_CANCELLED, 2 * kAtOnce}}));
    ExpectAllAccountedFor();
    Restart();
  }
}

TEST_F(GeneratingDriverTest, AResultThatComesTwiceIsAnsweredAlikeLongAfterItsSampleWasLetGo) {
  Begin();
  PutJob(200);
  Recover();
  v1::SubmitSamplesRequest first = Work();
  Work();
  ASSERT_EQ(process_->sampling->HeldOf("job").rows, static_cast<size_t>(kAtOnce)) << "the first hundred is let go";
  for (const v1::SampleVerdict& verdict : Submit(first)) EXPECT_TRUE(verdict.accepted());
  first.mutable_samples(0)->set_response_text("another answer");
  first.mutable_samples(1)->set_attempt(7);
  first.mutable_samples(1)->set_response_text("another answer");
  const std::vector<v1::SampleVerdict> verdicts = Submit(first);
  EXPECT_EQ(verdicts[0].reason(), v1::DIGEST_MISMATCH);
  EXPECT_EQ(verdicts[1].reason(), v1::STALE_ATTEMPT);
  WorkToTheEnd();
  EXPECT_TRUE(Published() == ExpectedLines(200));
}

}  // namespace
}  // namespace rlhf::coordinator
