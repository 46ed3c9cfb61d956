// The PPO job of a load run: its inputs (a few bytes each) and its specification.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "bench/load_generator/options.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::bench {

// SCRATCH/model and SCRATCH/prompts.jsonl: always the same bytes.
absl::Status WriteSimulatedInputs(const std::string& scratch);
// Uploads what the job names and submits it; returns its id.
absl::StatusOr<std::string> SubmitSimulatedJob(const std::shared_ptr<grpc::Channel>& api, const LoadOptions& options,
                                               const std::string& scratch, const std::string& name, int64_t steps,
                                               int priority = 0);
absl::StatusOr<v1::Job> GetJob(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id);
absl::StatusOr<v1::ExplainJobResponse> Explain(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id);
absl::StatusOr<v1::GetLedgerResponse> CheckLedger(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id,
                                                  bool check);
absl::Status CancelJob(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id);

}  // namespace rlhf::bench
