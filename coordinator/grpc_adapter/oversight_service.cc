#include "rlhf/v1/oversight_service.grpc.pb.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "coordinator/lineage.h"

namespace rlhf::coordinator {
namespace {

class OversightService final : public v1::OversightService::CallbackService {
 public:
  explicit OversightService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* ListGates(grpc::CallbackServerContext* context, const v1::ListGatesRequest* request,
                                      v1::ListGatesResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::ListGatesRequest& r) -> absl::StatusOr<v1::ListGatesResponse> {
          RLHF_RETURN_IF_ERROR(PageSize(r.page()).status());
          RLHF_ASSIGN_OR_RETURN(v1::ListGatesResponse all, edge_.oversight->ListGates(r));
          if (caller.project == "*") return all;
          v1::ListGatesResponse visible;
          visible.set_next_page_token(all.next_page_token());
          for (v1::GateRow& gate : *all.mutable_gates()) {
            const absl::StatusOr<v1::Job> job = edge_.jobs->Get(gate.job_id(), caller.project);
            if (job.ok() && job->spec().project() == caller.project) *visible.add_gates() = std::move(gate);
          }
          return visible;
        }));
  }
  grpc::ServerUnaryReactor* DecideGate(grpc::CallbackServerContext* context, const v1::DecideGateRequest* request,
                                       v1::GateRow* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::DecideGateRequest& r, Done<v1::GateRow> done) {
                    const absl::StatusOr<v1::GateRow> gate = FindGate(r.gate_id());
                    if (!gate.ok()) return done(gate.status());
                    const absl::StatusOr<v1::Job> job =
                        edge_.FindJob(caller, gate->job_id(), "", "/rlhf.v1.OversightService/DecideGate");
                    if (!job.ok()) return done(job.status());
                    edge_.oversight->DecideGate(caller.subject, r, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* HaltService(grpc::CallbackServerContext* context, const v1::HaltServiceRequest* request,
                                        v1::ServiceState* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::HaltServiceRequest& r, Done<v1::ServiceState> done) {
                    if (absl::Status status = ForAll(caller, "HaltService"); !status.ok()) return done(status);
                    edge_.oversight->Halt(caller.subject, r.reason(), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* ResumeService(grpc::CallbackServerContext* context, const v1::ResumeServiceRequest* request,
                                          v1::ServiceState* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::ResumeServiceRequest& r, Done<v1::ServiceState> done) {
                    if (absl::Status status = ForAll(caller, "ResumeService"); !status.ok()) return done(status);
                    edge_.oversight->Resume(caller.subject, r.reason(), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* GetServiceState(grpc::CallbackServerContext* context,
                                            const v1::GetServiceStateRequest* request,
                                            v1::ServiceState* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller&, v1::GetServiceStateRequest&) -> absl::StatusOr<v1::ServiceState> {
                    return edge_.oversight->state();
                  }));
  }
  grpc::ServerUnaryReactor* ListAudit(grpc::CallbackServerContext* context, const v1::ListAuditRequest* request,
                                      v1::ListAuditResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::ListAuditRequest& r) -> absl::StatusOr<v1::ListAuditResponse> {
          RLHF_RETURN_IF_ERROR(PageSize(r.page()).status());
          RLHF_RETURN_IF_ERROR(ForAll(caller, "ListAudit"));
          return edge_.oversight->audit().List(r);
        }));
  }
  grpc::ServerUnaryReactor* VerifyAudit(grpc::CallbackServerContext* context, const v1::VerifyAuditRequest* request,
                                        v1::VerifyAuditResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::VerifyAuditRequest&, Done<v1::VerifyAuditResponse> done,
                         std::function<bool()> gone) {
                    if (absl::Status status = ForAll(caller, "VerifyAudit"); !status.ok()) return done(status);
                    edge_.background->Run([loop = edge_.loop, oversight = edge_.oversight, done = std::move(done),
                                           gone = std::move(gone)]() mutable {
                      v1::VerifyAuditResponse verified = oversight->audit().Verify(gone);
                      loop->Post([done = std::move(done), verified = std::move(verified)]() mutable {
                        done(std::move(verified));
                      });
                    });
                  });
  }
  grpc::ServerUnaryReactor* ListAuditHeads(grpc::CallbackServerContext* context,
                                           const v1::ListAuditHeadsRequest* request,
                                           v1::ListAuditHeadsResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller,
                                  v1::ListAuditHeadsRequest& r) -> absl::StatusOr<v1::ListAuditHeadsResponse> {
                    RLHF_RETURN_IF_ERROR(PageSize(r.page()).status());
                    RLHF_RETURN_IF_ERROR(ForAll(caller, "ListAuditHeads"));
                    return edge_.oversight->audit().ListHeads(r);
                  }));
  }
  grpc::ServerUnaryReactor* GetLineage(grpc::CallbackServerContext* context, const v1::GetLineageRequest* request,
                                       v1::Lineage* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::GetLineageRequest& r) -> absl::StatusOr<v1::Lineage> {
                    const std::string project = Edge::ProjectFor(caller, r.project());
                    RLHF_RETURN_IF_ERROR(edge_.Admit(caller, project, "/rlhf.v1.OversightService/GetLineage"));
                    RLHF_ASSIGN_OR_RETURN(const v1::Artifact model, edge_.artifacts->Resolve(r.model(), project));
                    RLHF_ASSIGN_OR_RETURN(
                        const LineageRows rows,
                        CollectLineageRows(project, *edge_.jobs, *edge_.feedback, *edge_.oversight, *edge_.artifacts));
                    return LineageOf(model.digest(), rows);
                  }));
  }

 private:
  // The halt switch and the audit chain are the whole service's.
  absl::Status ForAll(const Caller& caller, const char* method) const { return edge_.Admit(caller, "*", method); }

  absl::StatusOr<v1::GateRow> FindGate(const std::string& id) const {
    v1::ListGatesRequest request;
    request.mutable_page()->set_page_size(1000);
    do {
      RLHF_ASSIGN_OR_RETURN(v1::ListGatesResponse page, edge_.oversight->ListGates(request));
      for (v1::GateRow& gate : *page.mutable_gates()) {
        if (gate.id() == id) return std::move(gate);
      }
      request.mutable_page()->set_page_token(page.next_page_token());
    } while (!request.page().page_token().empty());
    return absl::NotFoundError(absl::StrCat("no gate has the id \"", id, "\"; rlhfctl gate list shows them"));
  }

  const Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeOversightService(const Edge& edge) {
  return std::make_unique<OversightService>(edge);
}

}  // namespace rlhf::coordinator
