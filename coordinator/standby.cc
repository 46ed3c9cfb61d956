#include "coordinator/standby.h"

#include <utility>

#include <grpcpp/generic/async_generic_service.h>

#include "absl/strings/str_cat.h"
#include "common/rpc_server.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

class Refusals final : public grpc::CallbackGenericService {
 public:
  explicit Refusals(std::function<std::string()> why) : why_(std::move(why)) {}
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    class Refusal final : public grpc::ServerGenericBidiReactor {
     public:
      explicit Refusal(const grpc::Status& status) { Finish(status); }
      void OnDone() override { delete this; }
    };
    return new Refusal(
        ToGrpc(WithReason(absl::UnavailableError(absl::StrCat(why_(), "; try again")), v1::NOT_LEADING)));
  }

 private:
  const std::function<std::string()> why_;
};

class StandbyImpl final : public Standby {
 public:
  explicit StandbyImpl(const std::function<std::string()>& why) : fleet_refusals_(why), api_refusals_(why) {}
  ~StandbyImpl() override {
    for (RpcServer* server : {fleet_.get(), api_.get()}) {
      if (server != nullptr) server->Shutdown(absl::ZeroDuration());
    }
  }

  absl::Status Open(const CoordinatorConfig& config, MetricsRegistry* metrics) {
    RpcServerOptions options;
    options.metrics = metrics;
    options.serving = false;
    options.tls.insecure = config.insecure;
    options.tls.ca_file = config.tls_ca;
    // Nobody gets more than a refusal, so nobody is asked who they are beyond the certificate.
    options.authorizer = [](const std::string&, const std::string&, const std::string&) { return Caller{}; };
    RpcServerOptions fleet = options;
    fleet.address = config.fleet_address;
    fleet.otherwise = &fleet_refusals_;
    fleet.tls.cert_file = config.tls_cert;
    fleet.tls.key_file = config.tls_key;
    fleet.require_client_certificate = !config.insecure;
    RLHF_ASSIGN_OR_RETURN(fleet_, RpcServer::Start(fleet));
    fleet_address_ = WithPort(config.fleet_address, fleet_->port());
    RpcServerOptions api = options;
    api.address = config.api_address;
    api.otherwise = &api_refusals_;
    api.tls.cert_file = config.api_cert;
    api.tls.key_file = config.api_key;
    RLHF_ASSIGN_OR_RETURN(api_, RpcServer::Start(api));
    api_address_ = WithPort(config.api_address, api_->port());
    return absl::OkStatus();
  }
  std::string fleet_address() const override { return fleet_address_; }
  std::string api_address() const override { return api_address_; }

 private:
  static std::string WithPort(const std::string& address, int port) {
    return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
  }

  Refusals fleet_refusals_, api_refusals_;  // gRPC wants one for each server
  std::string fleet_address_, api_address_;
  std::unique_ptr<RpcServer> fleet_, api_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Standby>> Standby::Start(const CoordinatorConfig& config, MetricsRegistry* metrics,
                                                        const std::function<std::string()>& why) {
  auto standby = std::make_unique<StandbyImpl>(why);
  RLHF_RETURN_IF_ERROR(standby->Open(config, metrics));
  return standby;
}

}  // namespace rlhf::coordinator
