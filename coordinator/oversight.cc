#include "coordinator/oversight.h"

#include <map>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "common/canonical_bytes.h"
#include "common/process.h"
#include "common/status_util.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr char kStateKey[] = "service_state";
constexpr int kDefaultPage = 100;

// Of the record with its own digest empty; maps in a fixed order.
std::string DigestOf(v1::AuditRecord record) {
  record.clear_sha256();
  return artifact::Sha256Hex(CanonicalBytes(record));
}

std::string AuditKey(uint64_t sequence) {
  return KeyOf("", {sequence});
}

class OversightImpl final : public Oversight {
 public:
  OversightImpl(EventLoop* loop, StateStore* store) : loop_(loop), store_(store) {
    state_.set_build_version(kBuildVersion);
    state_.set_protocol_version(kProtocolVersion);
  }

  absl::Status Recover() override {
    const absl::StatusOr<std::string> head = store_->LastKey(Table::kAudit, "");
    if (head.ok()) {
      v1::AuditRecord record;
      RLHF_ASSIGN_OR_RETURN(const std::string bytes, store_->Get(Table::kAudit, *head));
      record.ParseFromString(bytes);
      sequence_ = record.sequence();
      last_sha256_ = record.sha256();
    } else if (!absl::IsNotFound(head.status())) {
      return head.status();
    }
    RLHF_RETURN_IF_ERROR(store_->Scan(Table::kGates, "", [&](absl::string_view, absl::string_view value) {
      v1::GateRow row;
      row.ParseFromArray(value.data(), static_cast<int>(value.size()));
      gates_[row.id()].row = row;
      return true;
    }));
    const absl::StatusOr<std::string> state = store_->Get(Table::kMeta, kStateKey);
    if (state.ok()) {
      v1::ServiceState stored;
      stored.ParseFromString(*state);
      state_.set_halted(stored.halted());
      state_.set_reason(stored.reason());
      state_.set_by(stored.by());
    } else if (!absl::IsNotFound(state.status())) {
      return state.status();
    }
    return absl::OkStatus();
  }

  void Audit(const std::string& subject, const std::string& action, const std::string& object,
             const std::string& decision, const std::map<std::string, std::string>& details,
             WriteBatch* batch) override {
    v1::AuditRecord record;
    record.set_sequence(++sequence_);
    *record.mutable_at() = ToTimestamp(loop_->clock().WallNow());
    record.set_subject(subject);
    record.set_action(action);
    record.set_object(object);
    record.set_decision(decision);
    record.mutable_details()->insert(details.begin(), details.end());
    record.set_previous_sha256(last_sha256_);
    record.set_sha256(DigestOf(record));
    last_sha256_ = record.sha256();
    batch->Put(Table::kAudit, AuditKey(record.sequence()), record.SerializeAsString());
  }

  v1::GateRow OpenGate(const std::string& pipeline_id, const std::string& stage, const std::string& submitted_by,
                       const v1::GateSpec& spec, const std::map<std::string, v1::Metric>& metrics, WriteBatch* batch,
                       std::function<void(const v1::GateRow&)> decided) override {
    const std::string id = absl::StrCat(pipeline_id, "/", stage);
    Gate& gate = gates_[id];
    gate.submitted_by = submitted_by;
    gate.decided = std::move(decided);
    if (!gate.row.id().empty()) return gate.row;  // opened before a restart
    gate.row.set_id(id);
    gate.row.set_job_id(pipeline_id);
    gate.row.set_stage(stage);
    *gate.row.mutable_spec() = spec;
    *gate.row.mutable_opened_at() = ToTimestamp(loop_->clock().WallNow());
    bool all_hold = true;
    for (const v1::GateCondition& condition : spec.conditions()) {
      v1::ConditionResult& result = *gate.row.add_results();
      *result.mutable_condition() = condition;
      const auto found = metrics.find(condition.metric());
      if (found == metrics.end()) {
        result.set_problem(absl::StrCat("the stage's result has no metric \"", condition.metric(), "\""));
      } else {
        *result.mutable_found() = found->second;
        const double value = found->second.value();
        result.set_holds((!condition.has_min() || value >= condition.min()) &&
                         (!condition.has_max() || value <= condition.max()));
      }
      all_hold = all_hold && result.holds();
    }
    gate.row.set_state(!all_hold                        ? v1::GATE_CONDITIONS_FAILED
                       : spec.required_approvals() == 0 ? v1::GATE_APPROVED
                                                        : v1::GATE_WAITING);
    batch->Put(Table::kGates, id, gate.row.SerializeAsString());
    Audit("coordinator", "gate.open", id, v1::GateState_Name(gate.row.state()),
          {{"conditions", absl::StrCat(spec.conditions_size())}}, batch);
    return gate.row;
  }

  bool halted() const override { return state_.halted(); }
  v1::ServiceState state() const override { return state_; }

  absl::StatusOr<v1::ListGatesResponse> ListGates(const v1::ListGatesRequest& request) override {
    const int size = request.page().page_size() == 0 ? kDefaultPage : request.page().page_size();
    v1::ListGatesResponse response;
    for (auto it = gates_.upper_bound(request.page().page_token()); it != gates_.end(); ++it) {
      if (response.gates_size() == size) {
        response.set_next_page_token(response.gates(size - 1).id());
        break;
      }
      bool wanted = request.states().empty();
      for (const int state : request.states()) wanted = wanted || state == it->second.row.state();
      if (wanted) *response.add_gates() = it->second.row;
    }
    return response;
  }

  void DecideGate(const std::string& subject, const v1::DecideGateRequest& request, Done<v1::GateRow> done) override {
    const auto it = gates_.find(request.gate_id());
    if (it == gates_.end())
      return done(absl::NotFoundError(
          absl::StrCat("no gate \"", request.gate_id(), "\"; `rlhfctl gate list` names those that wait")));
    Gate& gate = it->second;
    if (gate.row.state() != v1::GATE_WAITING) {
      return done(absl::FailedPreconditionError(
          absl::StrCat("gate ", gate.row.id(), " is ", v1::GateState_Name(gate.row.state()), " already")));
    }
    if (subject == gate.submitted_by) {
      return done(absl::PermissionDeniedError(
          absl::StrCat(subject, " submitted this job: somebody else has to decide on its gates")));
    }
    for (const v1::Approval& approval : gate.row.approvals()) {
      if (approval.subject() == subject) return done(gate.row);
    }
    v1::Approval& approval = *gate.row.add_approvals();
    approval.set_subject(subject);
    approval.set_approved(request.approve());
    approval.set_comment(request.comment());
    *approval.mutable_at() = ToTimestamp(loop_->clock().WallNow());
    if (!request.approve()) {
      gate.row.set_state(v1::GATE_REJECTED);
    } else if (gate.row.approvals_size() >= gate.row.spec().required_approvals()) {
      gate.row.set_state(v1::GATE_APPROVED);
    }
    WriteBatch batch;
    batch.Put(Table::kGates, gate.row.id(), gate.row.SerializeAsString());
    Audit(subject, request.approve() ? "gate.approve" : "gate.reject", gate.row.id(), "done", {}, &batch);
    store_->Commit(std::move(batch), [this, row = gate.row, done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(status);
      loop_->Post([this, row] {
        if (const auto found = gates_.find(row.id()); row.state() != v1::GATE_WAITING && found->second.decided)
          found->second.decided(row);
      });
      done(row);
    });
  }

  void Halt(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) override {
    SetHalted(true, subject, reason, std::move(done));
  }
  void Resume(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) override {
    SetHalted(false, subject, reason, std::move(done));
  }

  absl::StatusOr<v1::ListAuditResponse> ListAudit(const v1::ListAuditRequest& request) override {
    const int size = request.page().page_size() == 0 ? kDefaultPage : request.page().page_size();
    uint64_t from = request.from_sequence();
    if (!request.page().page_token().empty() && !absl::SimpleAtoi(request.page().page_token(), &from)) {
      return absl::InvalidArgumentError("page_token: expected the one of the previous answer");
    }
    v1::ListAuditResponse response;
    RLHF_RETURN_IF_ERROR(store_->ScanAfter(
        Table::kAudit, "", from == 0 ? "" : AuditKey(from - 1), [&](absl::string_view, absl::string_view value) {
          if (response.records_size() == size) {
            response.set_next_page_token(absl::StrCat(response.records(size - 1).sequence() + 1));
            return false;
          }
          response.add_records()->ParseFromArray(value.data(), static_cast<int>(value.size()));
          return true;
        }));
    return response;
  }

  v1::VerifyAuditResponse VerifyAudit() override {
    v1::VerifyAuditResponse response;
    response.set_intact(true);
    std::string previous;
    uint64_t expected = 0;
    const absl::Status status = store_->Scan(Table::kAudit, "", [&](absl::string_view, absl::string_view value) {
      v1::AuditRecord record;
      const bool parsed = record.ParseFromArray(value.data(), static_cast<int>(value.size()));
      ++expected;
      std::string problem;
      if (!parsed)
        problem = "the record cannot be read";
      else if (record.sequence() != expected)
        problem = absl::StrCat("expected record ", expected, ", found ", record.sequence());
      else if (record.previous_sha256() != previous)
        problem = "it does not follow from the record before";
      else if (record.sha256() != DigestOf(record))
        problem = "its content was changed";
      if (!problem.empty()) {
        response.set_intact(false);
        response.set_first_bad_sequence(expected);
        response.set_problem(problem);
        return false;
      }
      previous = record.sha256();
      response.set_records(expected);
      return true;
    });
    if (!status.ok()) {
      response.set_intact(false);
      response.set_problem(std::string(status.message()));
    }
    return response;
  }

 private:
  struct Gate {
    v1::GateRow row;
    std::string submitted_by;
    std::function<void(const v1::GateRow&)> decided;
  };

  void SetHalted(bool halted, const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) {
    // From this moment, not only from its durability: nothing commits after the acknowledgement.
    state_.set_halted(halted);
    state_.set_reason(reason);
    state_.set_by(subject);
    WriteBatch batch;
    batch.Put(Table::kMeta, kStateKey, state_.SerializeAsString());
    Audit(subject, halted ? "service.halt" : "service.resume", "service", "done", {{"reason", reason}}, &batch);
    store_->Commit(std::move(batch), [state = state_, done = std::move(done)](absl::Status status) mutable {
      if (status.ok()) {
        done(state);
      } else {
        done(status);
      }
    });
  }

  EventLoop* const loop_;
  StateStore* const store_;
  uint64_t sequence_ = 0;
  std::string last_sha256_;
  v1::ServiceState state_;
  std::map<std::string, Gate> gates_;
};

}  // namespace

std::unique_ptr<Oversight> MakeOversight(EventLoop* loop, StateStore* store) {
  return std::make_unique<OversightImpl>(loop, store);
}

}  // namespace rlhf::coordinator
