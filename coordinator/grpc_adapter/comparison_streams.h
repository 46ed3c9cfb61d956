// Comparisons in and out as streams.
#pragma once

#include <map>
#include <string>

#include <grpcpp/grpcpp.h>

#include "coordinator/comparison_sets.h"
#include "coordinator/grpc_adapter/edge.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"

namespace rlhf::coordinator {

void CountComparisons(const Edge& edge, const char* source, double n);

// Takes one piece after the other: the next is read when the one before is in its files, so memory stays bounded. When
// the client ends the stream, or goes away, what came before counts; nothing of it does when its token is revoked or
// expires meanwhile.
grpc::ServerReadReactor<v1::ImportComparisonsRequest>* ImportStreamOf(const Edge& edge, ComparisonSets* sets,
                                                                      const grpc::CallbackServerContext& context,
                                                                      v1::ImportComparisonsResponse* response);

// The comparisons of a collect job, or of an imported set ("set:NAME").
grpc::ServerWriteReactor<v1::Comparison>* ExportStreamOf(const Edge& edge, ComparisonSets* sets,
                                                         const grpc::CallbackServerContext& context,
                                                         const v1::ExportComparisonsRequest& request);

// The pseudonym of who is named by it or by a token's subject.
std::string PseudonymOf(const Edge& edge, const std::string& rater);

// InvalidArgument for raters who are to be left out of what has no judgement of theirs: what the caller wrote, by
// pseudonym. OK when there are none.
absl::Status NothingToLeaveOut(const std::map<std::string, std::string>& raters);

// "rater-" and twelve hexadecimal digits: how raters are named here.
bool IsPseudonym(const std::string& rater);

}  // namespace rlhf::coordinator
