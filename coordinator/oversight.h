// Gates, the halt switch, and the audit chain. Loop thread only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "coordinator/event_loop.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/oversight_service.pb.h"

namespace rlhf::coordinator {

class Oversight {
 public:
  virtual ~Oversight() = default;
  virtual absl::Status Recover() = 0;
  // Adds a record to the hash chain; it becomes durable with the batch.
  virtual void Audit(const std::string& subject, const std::string& action, const std::string& object,
                     const std::string& decision, const std::map<std::string, std::string>& details,
                     WriteBatch* batch) = 0;
  // Opens (or finds) the gate of a stage with the metrics it is judged by. `decided` runs on the loop when the state
  // leaves GATE_WAITING.
  virtual v1::GateRow OpenGate(const std::string& pipeline_id, const std::string& stage,
                               const std::string& submitted_by, const v1::GateSpec& spec,
                               const std::map<std::string, v1::Metric>& metrics, WriteBatch* batch,
                               std::function<void(const v1::GateRow&)> decided) = 0;
  virtual bool halted() const = 0;
  virtual absl::StatusOr<v1::ListGatesResponse> ListGates(const v1::ListGatesRequest& request) = 0;
  virtual void DecideGate(const std::string& subject, const v1::DecideGateRequest& request, Done<v1::GateRow> done) = 0;
  virtual void Halt(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) = 0;
  virtual void Resume(const std::string& subject, const std::string& reason, Done<v1::ServiceState> done) = 0;
  virtual v1::ServiceState state() const = 0;
  virtual absl::StatusOr<v1::ListAuditResponse> ListAudit(const v1::ListAuditRequest& request) = 0;
  virtual v1::VerifyAuditResponse VerifyAudit() = 0;
};
std::unique_ptr<Oversight> MakeOversight(EventLoop* loop, StateStore* store);

}  // namespace rlhf::coordinator
