#include "rlhf/v1/oversight_service.grpc.pb.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "coordinator/lineage.h"
#include "coordinator/names.h"
#include "coordinator/page_limit.h"

namespace rlhf::coordinator {
namespace {

class OversightService final : public v1::OversightService::CallbackService {
 public:
  explicit OversightService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* ListGates(grpc::CallbackServerContext* context, const v1::ListGatesRequest* request,
                                      v1::ListGatesResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::ListGatesRequest& r) { return Gates(caller, r); }));
  }
  grpc::ServerUnaryReactor* DecideGate(grpc::CallbackServerContext* context, const v1::DecideGateRequest* request,
                                       v1::GateRow* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::DecideGateRequest& r, Done<v1::GateRow> done) {
                    if (absl::Status status = CheckRemark("comment", r.comment()); !status.ok()) return done(status);
                    const v1::GateRow* const gate = edge_.oversight->FindGate(r.gate_id());
                    if (gate == nullptr) return done(NoGate(r.gate_id()));
                    const absl::StatusOr<v1::Job> job = edge_.FindJob(caller, gate->job_id(), "");
                    if (!job.ok()) return done(job.status());
                    if (job->id() != gate->job_id()) return done(NoGate(r.gate_id()));
                    edge_.oversight->DecideGate(caller.subject, r, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* HaltService(grpc::CallbackServerContext* context, const v1::HaltServiceRequest* request,
                                        v1::ServiceState* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::HaltServiceRequest& r, Done<v1::ServiceState> done) {
                    const absl::Status status = ForAll(caller);
                    if (!status.ok()) return done(status);
                    // Whoever halts is in a hurry: a long reason is no reason not to.
                    edge_.oversight->Halt(caller.subject, CutRemark(r.reason()), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* ResumeService(grpc::CallbackServerContext* context, const v1::ResumeServiceRequest* request,
                                          v1::ServiceState* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::ResumeServiceRequest& r, Done<v1::ServiceState> done) {
                    absl::Status status = ForAll(caller);
                    if (status.ok()) status = CheckRemark("reason", r.reason());
                    if (!status.ok()) return done(status);
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
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::ListAuditRequest& r, Done<v1::ListAuditResponse> done) {
                    absl::Status status = PageSize(r.page()).status();
                    if (status.ok()) status = ForAll(caller);
                    if (!status.ok()) return done(status);
                    OffLoop<v1::ListAuditResponse>(
                        edge_.loop, edge_.pages,
                        [oversight = edge_.oversight, r] { return oversight->audit().List(r); }, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* VerifyAudit(grpc::CallbackServerContext* context, const v1::VerifyAuditRequest* request,
                                        v1::VerifyAuditResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        [this](const Caller& caller, v1::VerifyAuditRequest&, Done<v1::VerifyAuditResponse> done,
               std::function<bool()> gone) {
          if (absl::Status status = ForAll(caller); !status.ok()) return done(status);
          OffLoop<v1::VerifyAuditResponse>(
              edge_.loop, edge_.checks,
              [oversight = edge_.oversight, gone = std::move(gone)] { return oversight->audit().Verify(gone); },
              std::move(done));
        });
  }
  grpc::ServerUnaryReactor* ListAuditHeads(grpc::CallbackServerContext* context,
                                           const v1::ListAuditHeadsRequest* request,
                                           v1::ListAuditHeadsResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::ListAuditHeadsRequest& r, Done<v1::ListAuditHeadsResponse> done) {
                    absl::Status status = PageSize(r.page()).status();
                    if (status.ok()) status = ForAll(caller);
                    if (!status.ok()) return done(status);
                    OffLoop<v1::ListAuditHeadsResponse>(
                        edge_.loop, edge_.pages,
                        [oversight = edge_.oversight, r] { return oversight->audit().ListHeads(r); }, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* GetLineage(grpc::CallbackServerContext* context, const v1::GetLineageRequest* request,
                                       v1::Lineage* response) override {
    return OnLoop(
        edge_, context, request, response,
        [this](const Caller& caller, v1::GetLineageRequest& r, Done<v1::Lineage> done, std::function<bool()> gone) {
          const std::string project = Edge::ProjectFor(caller, r.project());
          const absl::Status admitted = edge_.Admit(caller, project);
          if (!admitted.ok()) return done(admitted);
          const absl::StatusOr<v1::Artifact> model = edge_.artifacts->Resolve(r.model(), project);
          if (!model.ok()) return done(model.status());
          absl::StatusOr<LineageRows> rows =
              CollectLineageRows(project, *edge_.jobs, *edge_.feedback, *edge_.oversight, *edge_.artifacts);
          if (!rows.ok()) return done(rows.status());
          OffLoop<v1::Lineage>(
              edge_.loop, edge_.checks,
              [oversight = edge_.oversight, digest = model->digest(), rows = *std::move(rows),
               gone = std::move(gone)]() -> absl::StatusOr<v1::Lineage> {
                RLHF_ASSIGN_OR_RETURN(v1::Lineage lineage, LineageOf(digest, rows));
                RLHF_ASSIGN_OR_RETURN(std::vector<v1::AuditRecord> records,
                                      oversight->audit().All(AboutSteps(lineage), gone));
                for (v1::AuditRecord& record : records) *lineage.add_records() = std::move(record);
                return lineage;
              },
              std::move(done));
        });
  }

 private:
  // The halt switch and the audit chain are the whole service's.
  absl::Status ForAll(const Caller& caller) const { return edge_.Admit(caller, "*"); }

  bool Sees(const Caller& caller, const v1::GateRow& gate) const {
    if (caller.project == "*") return true;
    const v1::Job* const job = edge_.jobs->Find(gate.job_id());
    return job != nullptr && job->spec().project() == caller.project;
  }

  // The page's token is the last gate that the caller was shown: those of others are not told by it.
  absl::StatusOr<v1::ListGatesResponse> Gates(const Caller& caller, v1::ListGatesRequest& r) const {
    RLHF_ASSIGN_OR_RETURN(const int page_size, PageSize(r.page()));
    v1::ListGatesResponse visible;
    PageLimit page(page_size);
    do {
      RLHF_ASSIGN_OR_RETURN(v1::ListGatesResponse all, edge_.oversight->ListGates(r));
      for (v1::GateRow& gate : *all.mutable_gates()) {
        if (!Sees(caller, gate)) continue;
        if (!page.Take(gate.ByteSizeLong())) {
          visible.set_next_page_token(PageTokenAfter(*visible.gates().rbegin()));
          return visible;
        }
        *visible.add_gates() = std::move(gate);
      }
      r.mutable_page()->set_page_token(all.next_page_token());
    } while (!r.page().page_token().empty());
    return visible;
  }

  static absl::Status NoGate(const std::string& id) {
    return absl::NotFoundError(absl::StrCat("no gate has the id \"", id, "\"; rlhfctl gate list shows them"));
  }

  const Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeOversightService(const Edge& edge) {
  return std::make_unique<OversightService>(edge);
}

}  // namespace rlhf::coordinator
