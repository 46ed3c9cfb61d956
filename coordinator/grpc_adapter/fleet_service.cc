#include "rlhf/v1/fleet_service.grpc.pb.h"

#include <utility>

#include <prometheus/counter.h>

#include "absl/strings/str_cat.h"
#include "artifact/sample_id.h"
#include "common/fleet_names.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

const char* CertificateRole(v1::Role role) {
  switch (role) {
    case v1::ROLE_ROLLOUT_WORKER:
      return "rollout_worker";
    case v1::ROLE_LEARNER:
      return "learner";
    case v1::ROLE_REWARD_SERVER:
      return "reward_server";
    default:
      return "";
  }
}

class FleetService final : public v1::FleetService::CallbackService {
 public:
  explicit FleetService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest* request,
                                     v1::RegisterResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::RegisterRequest& r, Done<v1::RegisterResponse> done) {
                    if (absl::Status status = CheckIdentity(caller, r); !status.ok()) return done(status);
                    edge_.fleet->Register(r, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* context, const v1::HeartbeatRequest* request,
                                      v1::HeartbeatResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::HeartbeatRequest& r, Done<v1::HeartbeatResponse> done) {
                    if (!Own(caller, r.session_id(), done)) return;
                    edge_.fleet->Heartbeat(r, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* LeasePrompts(grpc::CallbackServerContext* context, const v1::LeasePromptsRequest* request,
                                         v1::LeasePromptsResponse* response) override {
    // Leases that nobody was there to receive go back at once instead of waiting for their expiry.
    auto undelivered = [this, session = request->session_id()](const v1::LeasePromptsResponse& lost) {
      v1::ReturnLeasesRequest back;
      back.set_session_id(session);
      for (const v1::PromptLease& lease : lost.leases()) {
        for (const v1::SampleLease& sample : lease.samples()) {
          v1::ReturnedLease* returned = back.add_leases();
          *returned->mutable_id() = artifact::SampleIdOf(lease, sample.index());
          returned->set_attempt(sample.attempt());
        }
      }
      if (back.leases().empty()) return;
      edge_.loop->Post([this, back = std::move(back)] {
        edge_.sampling->ReturnLeases(back, [](absl::StatusOr<v1::ReturnLeasesResponse>) {});
      });
    };
    return OnLoop(
        edge_, context, request, response,
        [this](const Caller& caller, v1::LeasePromptsRequest& r, Done<v1::LeasePromptsResponse> done,
               std::function<bool()> gone) {
          if (!Own(caller, r.session_id(), done)) return;
          r.set_wait_ms(BoundedWaitMs(r.wait_ms()));
          edge_.sampling->LeasePrompts(r, std::move(done), std::move(gone));
        },
        Waits::kYes, std::function<void(v1::LeasePromptsResponse)>(std::move(undelivered)));
  }
  grpc::ServerUnaryReactor* SubmitSamples(grpc::CallbackServerContext* context, const v1::SubmitSamplesRequest* request,
                                          v1::SubmitSamplesResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::SubmitSamplesRequest& r, Done<v1::SubmitSamplesResponse> done) {
                    if (!Own(caller, r.session_id(), done)) return;
                    edge_.sampling->SubmitSamples(r, [this, session = r.session_id(), done = std::move(done)](
                                                         absl::StatusOr<v1::SubmitSamplesResponse> result) mutable {
                      if (result.ok()) CountRejected(*result);
                      if (result.ok()) AuditForged(session, *result);
                      done(std::move(result));
                    });
                  });
  }
  grpc::ServerUnaryReactor* ReturnLeases(grpc::CallbackServerContext* context, const v1::ReturnLeasesRequest* request,
                                         v1::ReturnLeasesResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::ReturnLeasesRequest& r, Done<v1::ReturnLeasesResponse> done) {
                    if (!Own(caller, r.session_id(), done)) return;
                    edge_.sampling->ReturnLeases(r, std::move(done));
                  });
  }

 private:
  template <typename Response>
  bool Own(const Caller& caller, const std::string& session_id, Done<Response>& done) const {
    absl::Status status = edge_.CheckSession(caller, session_id);
    if (!status.ok()) done(status);
    return status.ok();
  }

  absl::Status CheckIdentity(const Caller& caller, const v1::RegisterRequest& r) const {
    const std::string role = CertificateRole(r.role());
    if (role.empty())
      return absl::InvalidArgumentError("role: expected a rollout worker, a learner or a reward server");
    // They are listed, logged, and keys of the store.
    RLHF_RETURN_IF_ERROR(CheckText("instance_id", r.instance_id(), kLongestInstance));
    for (const auto& [field, text] :
         {std::pair("address", &r.address()), {"build_version", &r.build_version()}, {"device", &r.device()}}) {
      if (!text->empty()) RLHF_RETURN_IF_ERROR(CheckText(field, *text, kLongestInstance));
    }
    if (r.slots() < 0) return absl::InvalidArgumentError(absl::StrCat("slots: expected 0 or more, found ", r.slots()));
    if (caller.role.empty()) return absl::OkStatus();
    if (SpeaksFor(caller.subject, r.instance_id()) && role == caller.role) return absl::OkStatus();
    edge_.denials->Note(caller.subject, caller.method, "identity");
    return WithReason(absl::PermissionDeniedError(absl::StrCat(
                          "the certificate is of ", caller.role, " \"", caller.subject, "\", the registration of ",
                          role, " \"", r.instance_id(), "\"; use the certificate of that instance")),
                      v1::ROLE_NOT_ALLOWED);
  }

  void CountRejected(const v1::SubmitSamplesResponse& response) const {
    if (edge_.metrics == nullptr) return;
    for (const v1::SampleVerdict& verdict : response.verdicts()) {
      if (verdict.accepted()) continue;
      edge_.metrics
          ->Counter("rlhf_results_rejected_total", "Results that were not taken, by reason.",
                    {{"reason", v1::ErrorReason_Name(verdict.reason())}})
          .Increment();
    }
  }

  // Other bytes for a sample that was taken already: harmless, and never an accident of timing.
  void AuditForged(const std::string& session_id, const v1::SubmitSamplesResponse& response) const {
    std::vector<std::string> samples;
    for (const v1::SampleVerdict& verdict : response.verdicts()) {
      if (verdict.reason() == v1::DIGEST_MISMATCH)
        samples.push_back(absl::StrCat(verdict.id().job_id(), "/", verdict.id().step(), "/", verdict.id().ordinal(),
                                       "/", verdict.id().index()));
    }
    if (samples.empty()) return;
    edge_.loop->Post([this, session_id, samples = std::move(samples)] {
      const absl::StatusOr<const Session*> session = edge_.fleet->Find(session_id);
      const std::string who = session.ok() ? (*session)->identity.instance_id() : session_id;
      WriteBatch batch;
      for (const std::string& sample : samples)
        edge_.oversight->Audit(who, "result.rejected", sample, "denied", {{"reason", "other bytes"}}, &batch);
      edge_.store->Commit(std::move(batch), [](absl::Status) {});
    });
  }

  const Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeFleetService(const Edge& edge) {
  return std::make_unique<FleetService>(edge);
}

}  // namespace rlhf::coordinator
