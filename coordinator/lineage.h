// What a model was made from, and which models were made from something. Pure functions over rows.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/jobs.h"
#include "rlhf/v1/oversight_service.pb.h"

namespace rlhf::coordinator {

// Every job, stages too. Loop thread only.
std::vector<v1::Job> AllJobs(Jobs& jobs);

struct DerivedModel {
  std::string digest, job_id;
};
// Models whose training used one of these artifacts, or something made from one, and so on.
std::vector<DerivedModel> ModelsMadeFrom(const std::vector<v1::Job>& jobs, std::set<std::string> digests);

struct LineageRows {
  std::vector<v1::Job> jobs;
  std::vector<v1::ComparisonSet> sets;
  std::vector<v1::GateRow> gates;
  std::vector<v1::Artifact> artifacts;
};
// What a model of the project may rest on and the coordinator holds in memory. Loop thread only.
absl::StatusOr<LineageRows> CollectLineageRows(const std::string& project, Jobs& jobs, Feedback& feedback,
                                               Oversight& oversight, Artifacts& artifacts);
// Breadth first from the model, without the audit log's records. NotFound when nothing is known of it.
absl::StatusOr<v1::Lineage> LineageOf(const std::string& model, const LineageRows& rows);
// Whether a record of the audit log is about one of the steps.
std::function<bool(const v1::AuditRecord&)> AboutSteps(const v1::Lineage& lineage);

// Of a message's deterministic serialisation.
std::string MessageSha256(const google::protobuf::Message& message);

}  // namespace rlhf::coordinator
