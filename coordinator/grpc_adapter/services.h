// One adapter a service. Each is thin: it checks project and session, posts to the loop, and answers through ToGrpc.
#pragma once

#include <memory>

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include "coordinator/grpc_adapter/edge.h"

namespace rlhf::coordinator {

// `edge` outlives the service; the service outlives its server.
std::unique_ptr<grpc::Service> MakeJobService(const Edge& edge);
std::unique_ptr<grpc::Service> MakeFleetService(const Edge& edge);
std::unique_ptr<grpc::Service> MakeLearnerService(const Edge& edge);
std::unique_ptr<grpc::Service> MakeArtifactService(const Edge& edge);
std::unique_ptr<grpc::Service> MakeFeedbackService(const Edge& edge);
std::unique_ptr<grpc::Service> MakeOversightService(const Edge& edge);
std::unique_ptr<grpc::Service> MakeLogService(const Edge& edge);
std::unique_ptr<grpc::Service> MakeAdminService(const Edge& edge);

}  // namespace rlhf::coordinator
