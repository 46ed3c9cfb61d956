// Gates, rounds, halt and the audit log over the API listener of a real coordinator. The stages are collect jobs, which
// need people and no fleet.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/cpp/audit_check.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;
using OversightStub = v1::OversightService::Stub;

class OversightEdgeTest : public CollectFixture {
 protected:
  // A pipeline with one collect stage and a gate after it.
  v1::JobSpec GatedPipeline(const std::string& name, int approvals) {
    UploadSamples();
    v1::JobSpec spec;
    spec.set_name(name);
    v1::StageSpec& stage = *spec.mutable_pipeline()->add_stages();
    stage.set_name("collect");
    stage.mutable_collect()->set_samples("samples");
    stage.mutable_collect()->set_comparisons(10);
    stage.mutable_gate()->set_required_approvals(approvals);
    v1::GateCondition& condition = *stage.mutable_gate()->add_conditions();
    condition.set_metric("comparisons");
    condition.set_min(10);
    return spec;
  }
  std::unique_ptr<OversightStub> AsOverseer(const std::string& subject) {
    return v1::OversightService::NewStub(AsPerson(subject, {v1::OVERSEER}));
  }
  std::vector<v1::GateRow> Gates() {
    const auto gates =
        Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ListGates, v1::ListGatesRequest());
    EXPECT_TRUE(gates.ok()) << gates.status();
    return {gates->gates().begin(), gates->gates().end()};
  }
  v1::GateRow WaitForGate(const std::string& pipeline, int waiting) {
    int seen = 0;
    WatchUntil(pipeline, [&](const v1::JobEvent& event) {
      return event.has_state() && event.state().to() == v1::WAITING && ++seen == waiting;
    });
    for (const v1::GateRow& gate : Gates()) {
      if (gate.job_id() == pipeline && gate.state() == v1::GATE_WAITING) return gate;
    }
    ADD_FAILURE() << "no gate waits: " << Get(pipeline).ShortDebugString();
    return {};
  }
  absl::StatusOr<v1::GateRow> Decide(const std::unique_ptr<OversightStub>& who, const std::string& gate, bool approve,
                                     const std::string& report) {
    v1::DecideGateRequest request;
    request.set_gate_id(gate);
    request.set_approve(approve);
    request.set_report_sha256(report);
    request.set_comment("because");
    return Call(who, &OversightStub::DecideGate, request);
  }
};

TEST_F(OversightEdgeTest, AGateOpensWhenDifferentOverseersApproveWhatTheyHaveSeen) {
  const auto eva = AsPerson("eva", {v1::SUBMITTER, v1::OVERSEER});
  const std::string pipeline = Submit(GatedPipeline("gated", 2), eva);
  EXPECT_EQ(AnswerAll(AsRater("anna"), pipeline), 10);
  const v1::GateRow gate = WaitForGate(pipeline, 1);
  EXPECT_EQ(gate.id(), pipeline + "/collect");
  EXPECT_THAT(Get(pipeline).reason(),
              HasSubstr("0 of 2 approvals; an overseer decides: `rlhfctl gate approve " + gate.id()));
  EXPECT_EQ(gate.metrics().at("comparisons").value(), 10);
  ASSERT_EQ(gate.report_sha256().size(), 64u);

  const auto own = Decide(v1::OversightService::NewStub(eva), gate.id(), true, gate.report_sha256());
  EXPECT_TRUE(absl::IsPermissionDenied(own.status())) << own.status();
  EXPECT_EQ(ReasonOf(own.status()), v1::OWN_SUBMISSION);
  EXPECT_TRUE(absl::IsPermissionDenied(
      Decide(v1::OversightService::NewStub(Api("submitter")), gate.id(), true, gate.report_sha256()).status()));

  const auto olga = AsOverseer("olga"), otto = AsOverseer("otto");
  const auto unseen = Decide(olga, gate.id(), true, "");
  EXPECT_EQ(ReasonOf(unseen.status()), v1::REPORT_NOT_SEEN) << unseen.status();
  ASSERT_TRUE(Decide(olga, gate.id(), true, gate.report_sha256()).ok());
  const auto twice = Decide(olga, gate.id(), true, gate.report_sha256());
  ASSERT_TRUE(twice.ok());
  EXPECT_EQ(twice->state(), v1::GATE_WAITING) << "one person is one approval";
  Restart();
  const auto still_own = Decide(AsOverseer("eva"), gate.id(), true, gate.report_sha256());
  EXPECT_EQ(ReasonOf(still_own.status()), v1::OWN_SUBMISSION) << still_own.status();
  const auto opened = Decide(AsOverseer("otto"), gate.id(), true, gate.report_sha256());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->state(), v1::GATE_APPROVED);
  EXPECT_EQ(opened->approvals(1).report_sha256(), gate.report_sha256());
  EXPECT_EQ(WaitUntilEnded(pipeline).state(), v1::SUCCEEDED);
  EXPECT_TRUE(absl::IsFailedPrecondition(Decide(AsOverseer("late"), gate.id(), false, "").status()));
  v1::ListAuditRequest list;
  list.mutable_page()->set_page_size(1000);
  const auto audit = Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ListAudit, list);
  ASSERT_TRUE(audit.ok()) << audit.status();
  int approvals = 0;
  for (const v1::AuditRecord& record : audit->records()) {
    if (record.action() != "gate.approve" || record.decision() != "done") continue;
    ++approvals;
    EXPECT_EQ(record.details().at("comment"), "because");
  }
  EXPECT_EQ(approvals, 2);
}

TEST_F(OversightEdgeTest, ARejectionEndsThePipelineOrRepeatsTheRoundAndComparisonsAccumulate) {
  const std::string ends = Submit(GatedPipeline("ends", 1));
  const auto anna = AsRater("anna");
  AnswerAll(anna, ends);
  ASSERT_TRUE(Decide(AsOverseer("olga"), WaitForGate(ends, 1).id(), false, "").ok());
  const v1::Job ended = WaitUntilEnded(ends);
  EXPECT_EQ(ended.state(), v1::FAILED);
  EXPECT_EQ(ended.reason_code(), "GATE_CLOSED");
  EXPECT_THAT(ended.reason(), HasSubstr("rejected by olga: because"));

  v1::JobSpec spec = GatedPipeline("rounds", 1);
  spec.mutable_pipeline()->set_rounds(2);
  v1::GateSpec* gate = spec.mutable_pipeline()->mutable_stages(0)->mutable_gate();
  gate->set_on_closed(v1::GATE_REPEATS_ROUND);
  const std::string pipeline = Submit(spec);
  const auto otto = AsOverseer("otto");
  EXPECT_EQ(AnswerAll(anna, pipeline), 10);
  const v1::GateRow first = WaitForGate(pipeline, 1);
  ASSERT_TRUE(Decide(otto, first.id(), false, "").ok());
  EXPECT_EQ(AnswerAll(anna, pipeline), 10) << "the round is repeated";
  const v1::GateRow again = WaitForGate(pipeline, 2);
  EXPECT_EQ(again.id(), pipeline + "/collect/1.1");
  EXPECT_EQ(again.metrics().at("comparisons").value(), 20) << "what was judged before counts";
  ASSERT_TRUE(Decide(otto, again.id(), true, again.report_sha256()).ok());
  EXPECT_EQ(AnswerAll(anna, pipeline), 10);
  Restart();
  const v1::GateRow second = WaitForGate(pipeline, 3);
  EXPECT_EQ(second.id(), pipeline + "/collect/2");
  EXPECT_EQ(second.round(), 2);
  ASSERT_TRUE(Decide(AsOverseer("otto2"), second.id(), true, second.report_sha256()).ok());
  const v1::Job done = WaitUntilEnded(pipeline);
  EXPECT_EQ(done.state(), v1::SUCCEEDED) << done.reason();
  EXPECT_EQ(done.result().metrics().at("round1.collect.comparisons").value(), 20);
  EXPECT_EQ(done.result().metrics().at("round2.collect.comparisons").value(), 30);
  EXPECT_EQ(done.children_size(), 3);
}

TEST_F(OversightEdgeTest, TheGateOfAPipelineThatEndsIsClosedWithItAndDroppedWhenItIsDeleted) {
  const std::string pipeline = Submit(GatedPipeline("cancelled", 1));
  AnswerAll(AsRater("anna"), pipeline);
  const v1::GateRow gate = WaitForGate(pipeline, 1);
  v1::CancelJobRequest cancel;
  cancel.set_job_id(pipeline);
  ASSERT_TRUE(Call(v1::JobService::NewStub(Api("submitter")), &JobStub::CancelJob, cancel).ok());
  const auto expect_closed = [&] {
    const std::vector<v1::GateRow> gates = Gates();
    ASSERT_EQ(gates.size(), 1u);
    EXPECT_EQ(gates[0].state(), v1::GATE_REJECTED);
    EXPECT_TRUE(gates[0].approvals().empty()) << "nobody decided";
  };
  expect_closed();
  const auto late = Decide(AsOverseer("olga"), gate.id(), true, gate.report_sha256());
  EXPECT_TRUE(absl::IsFailedPrecondition(late.status())) << late.status();
  Restart();
  expect_closed();
  v1::ListAuditRequest list;
  list.mutable_page()->set_page_size(1000);
  const auto audit = Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ListAudit, list);
  ASSERT_TRUE(audit.ok()) << audit.status();
  int closed = 0;
  for (const v1::AuditRecord& record : audit->records()) {
    if (record.action() != "gate.closed") continue;
    ++closed;
    EXPECT_EQ(record.object(), gate.id());
    EXPECT_EQ(record.details().at("reason"), "its pipeline is CANCELLED");
  }
  EXPECT_EQ(closed, 1);

  v1::DeleteJobRequest remove;
  remove.set_job_id(pipeline);
  ASSERT_TRUE(Call(v1::JobService::NewStub(Api("submitter")), &JobStub::DeleteJob, remove).ok());
  EXPECT_THAT(Gates(), testing::IsEmpty());
  Restart();
  EXPECT_THAT(Gates(), testing::IsEmpty());
}

TEST_F(OversightEdgeTest, WhatPeopleDecidedOutlivesItsPipeline) {
  const std::string pipeline = Submit(GatedPipeline("approved", 1));
  AnswerAll(AsRater("anna"), pipeline);
  const v1::GateRow gate = WaitForGate(pipeline, 1);
  ASSERT_TRUE(Decide(AsOverseer("olga"), gate.id(), true, gate.report_sha256()).ok());
  ASSERT_EQ(WaitUntilEnded(pipeline).state(), v1::SUCCEEDED);
  v1::DeleteJobRequest remove;
  remove.set_job_id(pipeline);
  ASSERT_TRUE(Call(v1::JobService::NewStub(Api("submitter")), &JobStub::DeleteJob, remove).ok());
  ASSERT_EQ(Gates().size(), 1u);
  EXPECT_EQ(Gates()[0].state(), v1::GATE_APPROVED);
}

TEST_F(OversightEdgeTest, GatesThatAnEarlierReleaseLeftWaitingAreClosedAtStart) {
  const std::string pipeline = Submit(GatedPipeline("left", 1));
  AnswerAll(AsRater("anna"), pipeline);
  const v1::GateRow gate = WaitForGate(pipeline, 1);
  v1::CancelJobRequest cancel;
  cancel.set_job_id(pipeline);
  ASSERT_TRUE(Call(v1::JobService::NewStub(Api("submitter")), &JobStub::CancelJob, cancel).ok());
  server_.reset();
  {
    auto store = OpenSqliteStore(dir_.File("data/state.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    v1::GateRow orphan = gate;
    orphan.set_id("deleted/collect");
    orphan.set_job_id("deleted");
    WriteBatch batch;
    batch.Put(Table::kGates, gate.id(), gate.SerializeAsString());
    batch.Put(Table::kGates, orphan.id(), orphan.SerializeAsString());
    ASSERT_TRUE((*store)->CommitAndWait(std::move(batch)).ok());
  }
  Start();
  const std::vector<v1::GateRow> gates = Gates();
  ASSERT_EQ(gates.size(), 2u);
  for (const v1::GateRow& closed : gates) EXPECT_EQ(closed.state(), v1::GATE_REJECTED) << closed.id();
}

TEST_F(OversightEdgeTest, PeoplesWinRateOpensOrClosesAGateByItsInterval) {
  for (const char* answer : {"good", "bad"}) {
    std::string lines;
    for (int p = 0; p < 10; ++p) {
      absl::StrAppend(&lines, R"({"id":")", p, R"(","index":0,"prompt":"Q)", p, R"(","response":")", answer, "\"}\n");
    }
    Upload(absl::StrCat("all-", answer), lines);
  }
  for (const bool wins : {true, false}) {
    v1::JobSpec spec = GatedPipeline(wins ? "wins" : "loses", 0);
    v1::StageSpec& stage = *spec.mutable_pipeline()->mutable_stages(0);
    stage.mutable_collect()->set_samples(wins ? "all-good" : "all-bad");
    stage.mutable_collect()->set_against(wins ? "all-bad" : "all-good");
    v1::GateCondition& condition = *stage.mutable_gate()->add_conditions();
    condition.set_metric("win_rate");
    condition.set_min(0.6);
    condition.set_by_interval(true);
    const std::string pipeline = Submit(spec);
    EXPECT_EQ(AnswerAll(AsRater(wins ? "anna" : "ben"), pipeline), 10);
    const v1::Job ended = WaitUntilEnded(pipeline);
    const v1::Metric rate = ended.result().metrics().at("collect.win_rate");
    EXPECT_EQ(rate.value(), wins ? 1 : 0);
    EXPECT_EQ(rate.n(), 10);
    EXPECT_EQ(ended.state(), wins ? v1::SUCCEEDED : v1::FAILED) << ended.reason();
    if (!wins) {
      EXPECT_THAT(ended.reason(), testing::AllOf(HasSubstr("win_rate is 0 ["), HasSubstr("expected at least 0.6")));
    }
  }
}

TEST_F(OversightEdgeTest, RatersWhoDisagreeCloseAGateOnAgreement) {
  const auto anna = AsRater("anna"), ben = AsRater("ben");
  for (const bool agree : {true, false}) {
    v1::JobSpec spec = GatedPipeline(agree ? "agree" : "disagree", 0);
    v1::StageSpec& stage = *spec.mutable_pipeline()->mutable_stages(0);
    stage.mutable_collect()->set_overlap(2);
    v1::GateCondition& condition = *stage.mutable_gate()->add_conditions();
    condition.set_metric("agreement");
    condition.set_min(0.8);
    const std::string pipeline = Submit(spec);
    EXPECT_EQ(AnswerAll(anna, pipeline), 10);
    EXPECT_EQ(AnswerAll(ben, pipeline, agree), 10);
    const v1::Job ended = WaitUntilEnded(pipeline);
    EXPECT_EQ(ended.result().metrics().at("collect.agreement").value(), agree ? 1 : 0);
    EXPECT_EQ(ended.state(), agree ? v1::SUCCEEDED : v1::FAILED) << ended.reason();
    if (!agree) {
      EXPECT_EQ(ended.reason_code(), "GATE_CLOSED");
      EXPECT_THAT(ended.reason(), HasSubstr("agreement is 0; expected at least 0.8"));
    }
  }
}

TEST_F(OversightEdgeTest, AConditionThatDoesNotHoldClosesTheGateWhoeverApproves) {
  v1::JobSpec spec = GatedPipeline("strict", 1);
  v1::GateCondition& condition = *spec.mutable_pipeline()->mutable_stages(0)->mutable_gate()->add_conditions();
  condition.set_metric("ties");
  condition.set_min(1);
  const std::string pipeline = Submit(spec);
  AnswerAll(AsRater("anna"), pipeline);
  const v1::Job ended = WaitUntilEnded(pipeline);
  EXPECT_EQ(ended.reason_code(), "GATE_CLOSED");
  EXPECT_THAT(ended.reason(), HasSubstr("ties is 0; expected at least 1"));
  const auto late = Decide(AsOverseer("olga"), pipeline + "/collect", true, Gates()[0].report_sha256());
  EXPECT_TRUE(absl::IsFailedPrecondition(late.status())) << late.status();
}

TEST_F(OversightEdgeTest, OnlyOverseersHaltAndResume) {
  v1::HaltServiceRequest halt;
  halt.set_reason("look at this first");
  EXPECT_TRUE(absl::IsPermissionDenied(
      Call(v1::OversightService::NewStub(Api("admin")), &OversightStub::HaltService, halt).status()));
  // The halt switch is the whole service's: an overseer of one project does not have it.
  EXPECT_TRUE(absl::IsPermissionDenied(Call(AsOverseer("olga"), &OversightStub::HaltService, halt).status()));
  const auto overseer = v1::OversightService::NewStub(Api("overseer"));
  const auto halted = Call(overseer, &OversightStub::HaltService, halt);
  ASSERT_TRUE(halted.ok()) << halted.status();
  EXPECT_TRUE(halted->halted());
  Restart();
  const auto state =
      Call(v1::OversightService::NewStub(Api("rater")), &OversightStub::GetServiceState, v1::GetServiceStateRequest());
  ASSERT_TRUE(state.ok());
  EXPECT_TRUE(state->halted()) << "also after a restart";
  EXPECT_EQ(state->reason(), "look at this first");
  EXPECT_TRUE(absl::IsPermissionDenied(
      Call(v1::OversightService::NewStub(Api("admin")), &OversightStub::ResumeService, v1::ResumeServiceRequest())
          .status()));
  const auto resumed =
      Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ResumeService, v1::ResumeServiceRequest());
  ASSERT_TRUE(resumed.ok());
  EXPECT_FALSE(resumed->halted());
}

TEST_F(OversightEdgeTest, AnOverseerOfOneProjectSeesAndDecidesNothingOfAnother) {
  const std::string pipeline = Submit(GatedPipeline("theirs", 1));
  AnswerAll(AsRater("anna"), pipeline);
  const v1::GateRow gate = WaitForGate(pipeline, 1);
  v1::CreateTokenRequest request;
  request.set_subject("olga");
  request.set_project("red");
  request.add_roles(v1::OVERSEER);
  const auto token = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
  ASSERT_TRUE(token.ok()) << token.status();
  const auto red = v1::OversightService::NewStub(ApiWithToken(token->secret()));
  const auto gates = Call(red, &OversightStub::ListGates, v1::ListGatesRequest());
  ASSERT_TRUE(gates.ok()) << gates.status();
  EXPECT_EQ(gates->gates_size(), 0);
  for (const bool approve : {true, false}) {
    const auto decided = Decide(red, gate.id(), approve, gate.report_sha256());
    EXPECT_EQ(ReasonOf(decided.status()), v1::PROJECT_NOT_ALLOWED) << decided.status();
  }
  EXPECT_EQ(Gates()[0].state(), v1::GATE_WAITING);
  EXPECT_TRUE(Gates()[0].approvals().empty());
  // The log is the whole service's.
  for (const absl::Status& refused : {Call(red, &OversightStub::ListAudit, v1::ListAuditRequest()).status(),
                                      Call(red, &OversightStub::VerifyAudit, v1::VerifyAuditRequest()).status(),
                                      Call(red, &OversightStub::ListAuditHeads, v1::ListAuditHeadsRequest()).status()})
    EXPECT_EQ(ReasonOf(refused), v1::PROJECT_NOT_ALLOWED) << refused;
}

TEST_F(OversightEdgeTest, AGateIsItsPipelinesProjectsAlsoOnceThePipelineIsGone) {
  const std::string pipeline = Submit(GatedPipeline("theirs", 1));
  AnswerAll(AsRater("anna"), pipeline);
  const v1::GateRow gate = WaitForGate(pipeline, 1);
  ASSERT_TRUE(Decide(AsOverseer("otto"), gate.id(), true, gate.report_sha256()).ok());
  ASSERT_EQ(WaitUntilEnded(pipeline).state(), v1::SUCCEEDED);
  v1::CreateTokenRequest request;
  request.set_subject("olga");
  request.set_project("red");
  for (const v1::TokenRole role : {v1::OVERSEER, v1::SUBMITTER}) request.add_roles(role);
  const auto token = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
  ASSERT_TRUE(token.ok()) << token.status();
  const auto channel = ApiWithToken(token->secret());
  const auto red = v1::OversightService::NewStub(channel);
  // Pages of one gate, so that there is one behind it: the token would name what the page does not show.
  const std::string second = Submit(GatedPipeline("theirs-too", 1));
  AnswerAll(AsRater("anna"), second);
  WaitForGate(second, 1);
  v1::ListGatesRequest page;
  page.mutable_page()->set_page_size(1);
  const auto seen = Call(red, &OversightStub::ListGates, page);
  ASSERT_TRUE(seen.ok()) << seen.status();
  EXPECT_EQ(seen->gates_size(), 0);
  EXPECT_EQ(seen->next_page_token(), "");
  const auto all = Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ListGates, page);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->gates_size(), 1);
  EXPECT_EQ(all->gates(0).job_id(), second) << "the one that was opened last";
  page.mutable_page()->set_page_token(all->next_page_token());
  const auto rest = Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ListGates, page);
  ASSERT_EQ(rest->gates_size(), 1);
  EXPECT_NE(rest->gates(0).job_id(), second);
  EXPECT_EQ(rest->next_page_token(), "");
  page.mutable_page()->set_page_token("nonsense");
  EXPECT_TRUE(absl::IsInvalidArgument(
      Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ListGates, page).status()));

  v1::DeleteJobRequest remove;
  remove.set_job_id(pipeline);
  ASSERT_TRUE(Call(v1::JobService::NewStub(Api("submitter")), &JobStub::DeleteJob, remove).ok());
  ASSERT_TRUE(client::UploadArtifact(channel, dir_.File("samples.jsonl"), "data", "red", "samples").ok());
  v1::JobSpec taken;
  taken.set_name(pipeline);
  taken.mutable_collect()->set_samples("samples");
  taken.mutable_collect()->set_comparisons(10);
  ASSERT_NE(Submit(taken, channel), "");
  const auto gates = Call(red, &OversightStub::ListGates, v1::ListGatesRequest());
  ASSERT_TRUE(gates.ok()) << gates.status();
  EXPECT_EQ(gates->gates_size(), 0) << "a job's name is not another's id";
  EXPECT_TRUE(absl::IsNotFound(Decide(red, gate.id(), true, gate.report_sha256()).status()));
}

TEST_F(OversightEdgeTest, TheNamesOfApprovedPoliciesAreReserved) {
  UploadSamples();
  v1::SetAliasRequest alias;
  alias.set_project("default");
  alias.set_digest("samples");
  alias.set_alias("approved/mine");
  const auto set = Call(v1::ArtifactService::NewStub(Api("submitter")), &v1::ArtifactService::Stub::SetAlias, alias);
  EXPECT_TRUE(absl::IsPermissionDenied(set.status())) << set.status();
  EXPECT_EQ(ReasonOf(set.status()), v1::RESERVED_ALIAS);
}

TEST_F(OversightEdgeTest, NothingIsPublishedByACoordinatorThatCannotSignItsCard) {
  v1::SubmitJobRequest request;
  request.set_request_id("publish");
  request.mutable_spec()->set_name("publish");
  v1::StageSpec& stage = *request.mutable_spec()->mutable_pipeline()->add_stages();
  stage.set_name("sft");
  stage.mutable_sft()->set_model("no-such-model");
  stage.mutable_sft()->set_data("no-such-data");
  stage.mutable_sft()->set_steps(1);
  stage.mutable_sft()->set_batch_size(1);
  stage.mutable_gate()->set_required_approvals(1);
  stage.mutable_gate()->set_approves("sft");
  stage.mutable_gate()->set_publish_as("assistant");
  const auto problem = [&] {
    const auto job = Call(v1::JobService::NewStub(Api("submitter")), &JobStub::SubmitJob, request);
    EXPECT_FALSE(job.ok());
    return std::string(job.status().message());
  };
  EXPECT_THAT(problem(), testing::AllOf(HasSubstr("no-such-model"), testing::Not(HasSubstr("--audit-key-file"))));
  has_audit_key_ = false;
  Restart();
  EXPECT_THAT(problem(), testing::AllOf(HasSubstr("gate.publish_as"), HasSubstr("--audit-key-file")));
  stage.mutable_gate()->clear_publish_as();
  EXPECT_THAT(problem(), testing::Not(HasSubstr("--audit-key-file"))) << "a gate that publishes nothing needs no key";
}

class AuditTest : public OversightEdgeTest {
 protected:
  // Changes rows behind the coordinator's back.
  void Tamper(const std::function<void(StateStore*, WriteBatch*)>& change) {
    server_.reset();
    auto store = OpenSqliteStore(dir_.File("data/state.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    WriteBatch batch;
    change(store->get(), &batch);
    ASSERT_TRUE((*store)->CommitAndWait(std::move(batch)).ok());
    store->reset();
    Start();
  }
  v1::VerifyAuditResponse Verify() {
    const auto verified =
        Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::VerifyAudit, v1::VerifyAuditRequest());
    EXPECT_TRUE(verified.ok()) << verified.status();
    return verified.ok() ? *verified : v1::VerifyAuditResponse();
  }
  void MakeRecords() {
    for (const char* subject : {"a", "b", "c", "d", "e"}) AsPerson(subject, {v1::VIEWER});
  }
};

TEST_F(AuditTest, ATamperedRecordIsFoundExactly) {
  MakeRecords();
  const v1::VerifyAuditResponse before = Verify();
  ASSERT_TRUE(before.intact()) << before.problem();
  ASSERT_GE(before.records(), 5u);
  std::string original;
  Tamper([&](StateStore* store, WriteBatch* batch) {
    original = *store->Get(Table::kAudit, KeyOf("", {3}));
    v1::AuditRecord record;
    record.ParseFromString(original);
    record.set_subject("somebody else");
    batch->Put(Table::kAudit, KeyOf("", {3}), record.SerializeAsString());
  });
  EXPECT_EQ(Verify().first_bad_sequence(), 3u);
  EXPECT_THAT(Verify().problem(), HasSubstr("content was changed"));
  // With its own digest made right, the next one no longer follows.
  Tamper([&](StateStore*, WriteBatch* batch) {
    v1::AuditRecord record;
    record.ParseFromString(original);
    record.set_subject("somebody else");
    record.set_sha256(client::AuditDigest(record));
    batch->Put(Table::kAudit, KeyOf("", {3}), record.SerializeAsString());
  });
  EXPECT_EQ(Verify().first_bad_sequence(), 4u);
  Tamper([&](StateStore*, WriteBatch* batch) { batch->Put(Table::kAudit, KeyOf("", {3}), original); });
  EXPECT_TRUE(Verify().intact()) << Verify().problem();
}

TEST_F(AuditTest, ACutTailAndARewrittenChainDoNotAgreeWithTheSignedHeads) {
  MakeRecords();
  Restart();  // a head is signed when the coordinator ends
  v1::VerifyAuditResponse before = Verify();
  ASSERT_TRUE(before.intact()) << before.problem();
  ASSERT_GE(before.head().sequence(), 5u);
  const auto heads =
      Call(v1::OversightService::NewStub(Api("overseer")), &OversightStub::ListAuditHeads, v1::ListAuditHeadsRequest());
  ASSERT_TRUE(heads.ok()) << heads.status();
  EXPECT_THAT(heads->public_key_pem(), HasSubstr("PUBLIC KEY"));
  EXPECT_EQ(*ReadFile(dir_.File("audit.key.pub")), heads->public_key_pem());

  std::string last;
  const uint64_t count = before.head().sequence();
  Tamper([&](StateStore* store, WriteBatch* batch) {
    last = *store->Get(Table::kAudit, KeyOf("", {count}));
    batch->Erase(Table::kAudit, KeyOf("", {count}));
  });
  EXPECT_THAT(Verify().problem(), HasSubstr("the tail was cut"));
  // Another record in its place, with everything recomputed: only the signature tells.
  Tamper([&](StateStore*, WriteBatch* batch) {
    v1::AuditRecord record;
    record.ParseFromString(last);
    record.set_decision("nothing happened");
    record.set_sha256(client::AuditDigest(record));
    batch->Put(Table::kAudit, KeyOf("", {count}), record.SerializeAsString());
  });
  EXPECT_THAT(Verify().problem(), HasSubstr("the chain was rewritten"));
  EXPECT_EQ(Verify().first_bad_sequence(), count);
}

}  // namespace
}  // namespace rlhf::coordinator
