#include "coordinator/oversight.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/build_version.h"
#include "common/process.h"
#include "common/status_util.h"
#include "coordinator/lineage.h"
#include "coordinator/page_limit.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr char kStateKey[] = "service_state";
constexpr int kDefaultPage = 100;

// Of what the decision rests on; not of the decision itself.
std::string ReportSha256(const v1::GateRow& gate) {
  v1::GateRow report = gate;
  report.clear_approvals();
  report.clear_state();
  report.clear_opened_at();
  report.clear_report_sha256();
  return MessageSha256(report);
}

int64_t OpenedNs(const v1::GateRow& gate) {
  return absl::ToUnixNanos(FromTimestamp(gate.opened_at()));
}
std::pair<int64_t, std::string> PlaceOf(const v1::GateRow& gate) {
  return {-OpenedNs(gate), gate.id()};
}

class OversightImpl final : public Oversight {
 public:
  OversightImpl(EventLoop* loop, StateStore* store) : loop_(loop), store_(store), audit_(&loop->clock(), store) {
    state_.set_build_version(BuildVersion());
    state_.set_protocol_version(kProtocolVersion);
  }

  absl::Status Recover() override {
    RLHF_RETURN_IF_ERROR(audit_.Recover());
    RLHF_RETURN_IF_ERROR(store_->Scan(Table::kGates, "", [&](absl::string_view, absl::string_view value) {
      v1::GateRow row;
      row.ParseFromArray(value.data(), static_cast<int>(value.size()));
      gates_[row.id()].row = row;
      newest_first_.insert(PlaceOf(row));
      return true;
    }));
    const absl::StatusOr<std::string> state = store_->Get(Table::kMeta, kStateKey);
    if (state.ok()) {
      v1::ServiceState stored;
      stored.ParseFromString(*state);
      state_.set_halted(stored.halted());
      state_.set_reason(stored.reason());
      state_.set_by(stored.by());
      *state_.mutable_since() = stored.since();
    } else if (!absl::IsNotFound(state.status())) {
      return state.status();
    }
    return absl::OkStatus();
  }

  void Audit(const std::string& subject, const std::string& action, const std::string& object,
             const std::string& decision, const std::map<std::string, std::string>& details,
             WriteBatch* batch) override {
    audit_.Append(subject, action, object, decision, details, batch);
  }
  void SetSigner(std::shared_ptr<const Signer> signer) override { audit_.SetSigner(std::move(signer)); }
  AuditChain& audit() override { return audit_; }

  v1::GateRow OpenGate(const GateOpening& opening, WriteBatch* batch,
                       std::function<void(const v1::GateRow&)> decided) override {
    const std::string id = GateId(opening.pipeline_id, opening.stage, opening.round, opening.repeat);
    Gate& gate = gates_[id];
    gate.submitted_by = opening.submitted_by;
    gate.decided = std::move(decided);
    if (!gate.row.id().empty()) return gate.row;  // opened before a restart
    gate.row.set_id(id);
    gate.row.set_job_id(opening.pipeline_id);
    gate.row.set_stage(opening.stage);
    gate.row.set_round(opening.round);
    gate.row.set_repeat(opening.repeat);
    gate.row.set_policy(opening.policy);
    *gate.row.mutable_spec() = opening.spec;
    gate.row.mutable_metrics()->insert(opening.metrics.begin(), opening.metrics.end());
    gate.row.mutable_artifacts()->insert(opening.artifacts.begin(), opening.artifacts.end());
    bool all_hold = true;
    for (const v1::GateCondition& condition : opening.spec.conditions()) {
      v1::ConditionResult& result = *gate.row.add_results();
      result = CheckCondition(condition, opening.metrics);
      all_hold = all_hold && result.holds();
    }
    gate.row.set_report_sha256(ReportSha256(gate.row));
    *gate.row.mutable_opened_at() = ToTimestamp(loop_->clock().WallNow());
    gate.row.set_state(!all_hold                                ? v1::GATE_CONDITIONS_FAILED
                       : opening.spec.required_approvals() == 0 ? v1::GATE_APPROVED
                                                                : v1::GATE_WAITING);
    newest_first_.insert(PlaceOf(gate.row));
    batch->Put(Table::kGates, id, gate.row.SerializeAsString());
    Audit("coordinator", "gate.open", id, v1::GateState_Name(gate.row.state()),
          {{"conditions", absl::StrCat(opening.spec.conditions_size())},
           {"policy", gate.row.policy()},
           {"report_sha256", gate.row.report_sha256()}},
          batch);
    return gate.row;
  }

  void CloseGates(const std::string& pipeline_id, const std::string& reason, WriteBatch* batch) override {
    for (Gate* gate : GatesOf(pipeline_id)) {
      gate->decided = nullptr;
      if (gate->row.state() != v1::GATE_WAITING) continue;
      gate->row.set_state(v1::GATE_REJECTED);
      batch->Put(Table::kGates, gate->row.id(), gate->row.SerializeAsString());
      Audit("coordinator", "gate.closed", gate->row.id(), "done",
            {{"reason", reason},
             {"report_sha256", gate->row.report_sha256()},
             {"policy", gate->row.policy()},
             {"state", v1::GateState_Name(gate->row.state())}},
            batch);
    }
  }
  void DropGates(const std::string& pipeline_id, WriteBatch* batch) override {
    std::vector<std::string> dropped;
    for (const Gate* gate : GatesOf(pipeline_id)) {
      if (gate->row.state() != v1::GATE_APPROVED && gate->row.approvals().empty()) dropped.push_back(gate->row.id());
    }
    for (const std::string& id : dropped) {
      batch->Erase(Table::kGates, id);
      newest_first_.erase(PlaceOf(gates_.at(id).row));
      gates_.erase(id);
    }
  }

  bool halted() const override { return state_.halted(); }
  v1::ServiceState state() const override { return state_; }

  absl::StatusOr<v1::ListGatesResponse> ListGates(const v1::ListGatesRequest& request) override {
    PageLimit page(request.page().page_size() == 0 ? kDefaultPage : request.page().page_size());
    v1::ListGatesResponse response;
    auto place = newest_first_.begin();
    if (!request.page().page_token().empty()) {
      const std::vector<std::string> after = absl::StrSplit(request.page().page_token(), absl::MaxSplits('/', 1));
      int64_t opened = 0;
      if (after.size() != 2 || !absl::SimpleAtoi(after[0], &opened))
        return absl::InvalidArgumentError("page_token: expected next_page_token of the answer before; list again");
      place = newest_first_.upper_bound({-opened, after[1]});
    }
    for (; place != newest_first_.end(); ++place) {
      const v1::GateRow& gate = gates_.at(place->second).row;
      bool wanted = request.states().empty();
      for (const int state : request.states()) wanted = wanted || state == gate.state();
      if (!wanted) continue;
      if (!page.Take(gate.ByteSizeLong())) {
        response.set_next_page_token(PageTokenAfter(*response.gates().rbegin()));
        break;
      }
      *response.add_gates() = gate;
    }
    return response;
  }

  const v1::GateRow* FindGate(const std::string& id) const override {
    const auto it = gates_.find(id);
    return it == gates_.end() ? nullptr : &it->second.row;
  }
  GateSummary Summary() const override {
    GateSummary summary;
    for (const auto& [id, gate] : gates_) {
      ++summary.by_state[gate.row.state()];
      if (gate.row.state() != v1::GATE_WAITING) continue;
      const absl::Time opened = FromTimestamp(gate.row.opened_at());
      if (!summary.waiting_since || opened < *summary.waiting_since) summary.waiting_since = opened;
    }
    return summary;
  }

  void DecideGate(const std::string& subject, const v1::DecideGateRequest& request, Done<v1::GateRow> done) override {
    const auto it = gates_.find(request.gate_id());
    if (it == gates_.end())
      return done(absl::NotFoundError(
          absl::StrCat("no gate \"", request.gate_id(), "\"; `rlhfctl gate list` names those that wait")));
    Gate& gate = it->second;
    if (subject == gate.submitted_by) {
      WriteBatch batch;
      Audit(subject, request.approve() ? "gate.approve" : "gate.reject", gate.row.id(), "denied",
            {{"why", "own submission"}}, &batch);
      store_->Commit(std::move(batch), [](absl::Status) {});
      return done(WithReason(absl::PermissionDeniedError(absl::StrCat(
                                 subject, " submitted this job: somebody else has to decide on its gates")),
                             v1::OWN_SUBMISSION));
    }
    for (const v1::Approval& approval : gate.row.approvals()) {
      if (approval.subject() == subject && approval.approved() == request.approve()) return done(gate.row);
    }
    if (gate.row.state() != v1::GATE_WAITING) {
      return done(absl::FailedPreconditionError(
          absl::StrCat("gate ", gate.row.id(), " is ", v1::GateState_Name(gate.row.state()), " already")));
    }
    if (request.approve() && request.report_sha256() != gate.row.report_sha256()) {
      return done(WithReason(
          absl::FailedPreconditionError(absl::StrCat(
              "report_sha256: expected the digest of the report this approval rests on, found \"",
              request.report_sha256(), "\"; `rlhfctl gate show ", gate.row.id(), "` shows the report and its digest")),
          v1::REPORT_NOT_SEEN));
    }
    v1::Approval& approval = *gate.row.add_approvals();
    approval.set_subject(subject);
    approval.set_approved(request.approve());
    approval.set_comment(request.comment());
    approval.set_report_sha256(request.report_sha256());
    *approval.mutable_at() = ToTimestamp(loop_->clock().WallNow());
    if (!request.approve()) {
      gate.row.set_state(v1::GATE_REJECTED);
    } else if (gate.row.approvals_size() >= gate.row.spec().required_approvals()) {
      gate.row.set_state(v1::GATE_APPROVED);
    }
    WriteBatch batch;
    batch.Put(Table::kGates, gate.row.id(), gate.row.SerializeAsString());
    Audit(subject, request.approve() ? "gate.approve" : "gate.reject", gate.row.id(), "done",
          {{"comment", request.comment()},
           {"report_sha256", gate.row.report_sha256()},
           {"policy", gate.row.policy()},
           {"state", v1::GateState_Name(gate.row.state())}},
          &batch);
    store_->Commit(std::move(batch), [this, row = gate.row, done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(status);
      loop_->Post([this, row] {
        const auto found = gates_.find(row.id());
        if (row.state() == v1::GATE_WAITING || found == gates_.end() || !found->second.decided) return;
        // It may open the next gate, or close this one.
        const std::function<void(const v1::GateRow&)> decided = found->second.decided;
        decided(row);
      });
      done(row);
    });
  }

  void Halt(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) override {
    // From this moment, not only from its durability: what was accepted before is durable before the acknowledgement,
    // and nothing is accepted after it.
    ++halts_;
    state_ = NextState(true, subject, reason);
    Commit(state_, std::move(done));
  }
  void Resume(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) override {
    // Only once it is durable, with its audit record: nothing trains on a resumption that a failed store has lost.
    v1::ServiceState next = NextState(false, subject, reason);
    Commit(next,
           [this, next, halts = halts_, done = std::move(done)](absl::StatusOr<v1::ServiceState> committed) mutable {
             if (!committed.ok()) return done(committed.status());
             loop_->Post([this, next = std::move(next), halts, done = std::move(done)]() mutable {
               if (halts == halts_) state_ = std::move(next);  // else it was halted again, which is in the store by now
               done(state_);
             });
           });
  }

 private:
  struct Gate {
    v1::GateRow row;
    std::string submitted_by;
    std::function<void(const v1::GateRow&)> decided;
  };

  std::vector<Gate*> GatesOf(const std::string& pipeline_id) {
    std::vector<Gate*> found;
    const std::string prefix = pipeline_id + "/";
    for (auto it = gates_.lower_bound(prefix); it != gates_.end() && absl::StartsWith(it->first, prefix); ++it)
      found.push_back(&it->second);
    return found;
  }

  v1::ServiceState NextState(bool halted, const std::string& subject, const std::string& reason) const {
    v1::ServiceState next = state_;
    next.set_halted(halted);
    next.set_reason(reason);
    next.set_by(subject);
    *next.mutable_since() = ToTimestamp(loop_->clock().WallNow());
    return next;
  }

  void Commit(const v1::ServiceState& next, Done<v1::ServiceState> done) {
    WriteBatch batch;
    batch.Put(Table::kMeta, kStateKey, next.SerializeAsString());
    Audit(next.by(), next.halted() ? "service.halt" : "service.resume", "service", "done", {{"reason", next.reason()}},
          &batch);
    store_->Commit(std::move(batch), [state = next, done = std::move(done)](absl::Status status) mutable {
      if (status.ok()) {
        done(state);
      } else {
        done(status);
      }
    });
  }

  EventLoop* const loop_;
  StateStore* const store_;
  AuditChain audit_;
  v1::ServiceState state_;
  int64_t halts_ = 0;  // tells a resumption that becomes durable whether somebody halted meanwhile
  std::map<std::string, Gate> gates_;
  std::set<std::pair<int64_t, std::string>> newest_first_;  // PlaceOf each
};

}  // namespace

std::string GateId(const std::string& pipeline_id, const std::string& stage, int round, int repeat) {
  std::string id = absl::StrCat(pipeline_id, "/", stage);
  if (round > 1 || repeat > 0) absl::StrAppend(&id, "/", round);
  if (repeat > 0) absl::StrAppend(&id, ".", repeat);
  return id;
}

namespace {

// What a condition's lower and upper bound look at.
std::pair<double, double> Bounded(const v1::GateCondition& condition, const v1::Metric& metric) {
  return condition.by_interval() ? std::pair(metric.low(), metric.high()) : std::pair(metric.value(), metric.value());
}

bool Within(const v1::GateCondition& condition, const std::string& name, const v1::Metric& metric,
            v1::ConditionResult* result) {
  *result->mutable_found() = metric;
  if (condition.by_interval() && !(metric.has_low() && metric.has_high())) {
    result->set_problem(absl::StrCat(
        "\"", name, "\" has no interval (it is a count, or of one value, or nothing varies): leave out by_interval"));
    return false;
  }
  const auto [low, high] = Bounded(condition, metric);
  return (!condition.has_min() || low >= condition.min()) && (!condition.has_max() || high <= condition.max());
}

// The slices "NAME{TAG=value}" of a metric, of the wanted tags or of all.
std::map<std::string, v1::Metric> SlicesOf(const std::string& name, const std::vector<std::string>& tags,
                                           const std::map<std::string, v1::Metric>& metrics) {
  std::map<std::string, v1::Metric> slices;
  const std::string prefix = absl::StrCat(name, "{");
  for (auto it = metrics.lower_bound(prefix); it != metrics.end() && absl::StartsWith(it->first, prefix); ++it) {
    const std::string tag = it->first.substr(prefix.size(), it->first.find('=') - prefix.size());
    if (tags.empty() || std::find(tags.begin(), tags.end(), tag) != tags.end()) slices.insert(*it);
  }
  return slices;
}

// Every slice has to hold; the first one that does not, or else the one nearest to a bound, is what was found.
void CheckWorst(const WorstOf& worst, const v1::GateCondition& condition,
                const std::map<std::string, v1::Metric>& metrics, v1::ConditionResult* result) {
  const std::string name =
      condition.stage().empty() ? worst.metric : absl::StrCat(condition.stage(), ".", worst.metric);
  const std::map<std::string, v1::Metric> slices = SlicesOf(name, worst.tags, metrics);
  if (slices.empty()) {
    result->set_problem(absl::StrCat("the stage's result has no slices of \"", name, "\"",
                                     worst.tags.empty() ? "" : absl::StrCat(" by ", absl::StrJoin(worst.tags, ", ")),
                                     ": slices are the tags of its prompts"));
    return;
  }
  const auto margin = [&](const v1::Metric& metric) {
    const auto [low, high] = Bounded(condition, metric);
    double least = std::numeric_limits<double>::infinity();
    if (condition.has_min()) least = std::min(least, low - condition.min());
    if (condition.has_max()) least = std::min(least, condition.max() - high);
    return least;
  };
  const auto by_margin = [&](const auto& a, const auto& b) { return margin(a.second) < margin(b.second); };
  auto found = std::min_element(slices.begin(), slices.end(), by_margin);
  // A slice that cannot be told is the worst.
  const auto untold = std::find_if(slices.begin(), slices.end(), [&](const auto& slice) {
    const v1::Metric& metric = slice.second;
    return std::isnan(metric.value()) || (condition.by_interval() && !(metric.has_low() && metric.has_high()));
  });
  if (untold != slices.end()) found = untold;
  result->set_holds(Within(condition, found->first, found->second, result));
  if (result->holds() || !result->problem().empty()) return;
  result->set_problem(absl::StrFormat(
      "the worst slice, %s, is %.4g%s; expected %s%s%s", found->first, found->second.value(),
      condition.by_interval() ? absl::StrFormat(" [%.4g, %.4g]", found->second.low(), found->second.high()) : "",
      condition.has_min() ? absl::StrFormat("at least %.4g", condition.min()) : "",
      condition.has_min() && condition.has_max() ? " and " : "",
      condition.has_max() ? absl::StrFormat("at most %.4g", condition.max()) : ""));
}

}  // namespace

std::optional<WorstOf> ParseWorst(const std::string& metric) {
  constexpr absl::string_view kWorst = "worst.";
  if (!absl::StartsWith(metric, kWorst)) return std::nullopt;
  WorstOf worst;
  worst.metric = metric.substr(kWorst.size());
  const size_t brace = worst.metric.find('{');
  if (brace == std::string::npos) return worst;
  if (worst.metric.back() != '}') {
    worst.metric.clear();
    return worst;
  }
  worst.tags = absl::StrSplit(worst.metric.substr(brace + 1, worst.metric.size() - brace - 2), ',');
  worst.metric.resize(brace);
  return worst;
}

v1::ConditionResult CheckCondition(const v1::GateCondition& condition,
                                   const std::map<std::string, v1::Metric>& metrics) {
  v1::ConditionResult result;
  *result.mutable_condition() = condition;
  if (const std::optional<WorstOf> worst = ParseWorst(condition.metric())) {
    CheckWorst(*worst, condition, metrics, &result);
    return result;
  }
  const std::string name =
      condition.stage().empty() ? condition.metric() : absl::StrCat(condition.stage(), ".", condition.metric());
  const auto found = metrics.find(name);
  if (found == metrics.end()) {
    result.set_problem(absl::StrCat("the stage's result has no metric \"", name, "\""));
    return result;
  }
  result.set_holds(Within(condition, name, found->second, &result));
  return result;
}

std::string PageTokenAfter(const v1::GateRow& gate) {
  return absl::StrCat(OpenedNs(gate), "/", gate.id());
}

absl::Status HaltedError() {
  return WithReason(
      absl::UnavailableError("an overseer halted all training; it goes on when an overseer resumes the service"),
      v1::SERVICE_HALTED);
}

std::unique_ptr<Oversight> MakeOversight(EventLoop* loop, StateStore* store) {
  return std::make_unique<OversightImpl>(loop, store);
}

}  // namespace rlhf::coordinator
