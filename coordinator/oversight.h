// Gates, the halt switch, and the audit chain. Loop thread only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/event_loop.h"
#include "coordinator/oversight/audit_chain.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/oversight_service.pb.h"

namespace rlhf::coordinator {

// A gate that a pipeline has come to, with everything its decision rests on.
struct GateOpening {
  std::string pipeline_id, stage, submitted_by;
  int round = 0, repeat = 0;
  v1::GateSpec spec;
  std::map<std::string, v1::Metric> metrics;     // of the stage; those of others under "STAGE.METRIC"
  std::map<std::string, std::string> artifacts;  // names to digests
  std::string policy;                            // what it would approve, if anything
};
// "PIPELINE/STAGE", and the round where there is more than one attempt.
std::string GateId(const std::string& pipeline_id, const std::string& stage, int round, int repeat);
// The metric "worst.METRIC" of a condition: the bound has to hold for every slice METRIC{TAG=value}; with
// "worst.METRIC{TAG,…}" for the slices of these tags. An empty `metric`: cannot be read.
struct WorstOf {
  std::string metric;
  std::vector<std::string> tags;
};
std::optional<WorstOf> ParseWorst(const std::string& metric);
// Whether a bound holds for a metric, or for all its slices; `problem` says why when it cannot be told, and which slice
// is the worst.
v1::ConditionResult CheckCondition(const v1::GateCondition& condition,
                                   const std::map<std::string, v1::Metric>& metrics);

// Of all gates.
struct GateSummary {
  std::map<v1::GateState, int64_t> by_state;
  std::optional<absl::Time> waiting_since;  // of the gate that waits for people for longest
};

class Oversight {
 public:
  virtual ~Oversight() = default;
  virtual absl::Status Recover() = 0;
  // Adds a record to the hash chain; it becomes durable with the batch.
  virtual void Audit(const std::string& subject, const std::string& action, const std::string& object,
                     const std::string& decision, const std::map<std::string, std::string>& details,
                     WriteBatch* batch) = 0;
  // Signs the chain's head and model cards from now on.
  virtual void SetSigner(std::shared_ptr<const Signer> signer) = 0;
  virtual AuditChain& audit() = 0;
  // Opens (or finds) a gate. `decided` runs on the loop when the state leaves GATE_WAITING.
  virtual v1::GateRow OpenGate(const GateOpening& opening, WriteBatch* batch,
                               std::function<void(const v1::GateRow&)> decided) = 0;
  // Closes the gates of a pipeline that has ended: nobody decides on them any more. GATE_REJECTED without a record of a
  // person; the audit log says gate.closed, and why.
  virtual void CloseGates(const std::string& pipeline_id, const std::string& reason, WriteBatch* batch) = 0;
  // Of a pipeline that is deleted: removes gates that approved nothing and that nobody decided on. Others stay, for the
  // lineage of what was made.
  virtual void DropGates(const std::string& pipeline_id, WriteBatch* batch) = 0;
  virtual bool halted() const = 0;
  // Those that were opened last first.
  virtual absl::StatusOr<v1::ListGatesResponse> ListGates(const v1::ListGatesRequest& request) = 0;
  // By id; null when there is none. Until the next turn of the loop.
  virtual const v1::GateRow* FindGate(const std::string& id) const = 0;
  virtual GateSummary Summary() const = 0;
  virtual void DecideGate(const std::string& subject, const v1::DecideGateRequest& request, Done<v1::GateRow> done) = 0;
  virtual void Halt(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) = 0;
  virtual void Resume(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) = 0;
  virtual v1::ServiceState state() const = 0;
};
// Of a page of gates that ends with this one.
std::string PageTokenAfter(const v1::GateRow& gate);
// What a call gets that would commit something while the service is halted.
absl::Status HaltedError();
std::unique_ptr<Oversight> MakeOversight(EventLoop* loop, StateStore* store);

}  // namespace rlhf::coordinator
