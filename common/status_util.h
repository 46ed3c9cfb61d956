// The one place where absl::Status meets gRPC's: codes map one to one, ErrorInfo and RetryInfo travel as details.
#pragma once

#include <optional>

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "rlhf/v1/common.pb.h"

namespace rlhf {

// Attaches a reason (google.rpc.ErrorInfo, domain "rlhf") to a status; kept through ToGrpc / FromGrpc.
absl::Status WithReason(absl::Status status, v1::ErrorReason reason);
v1::ErrorReason ReasonOf(const absl::Status& status);  // ERROR_REASON_UNSPECIFIED when none
// Gives the reason STORE_UNAVAILABLE to what a full (ResourceExhausted) or read-only (FailedPrecondition) volume says
// (see durable_file.h): the same may succeed later, once an operator has seen to it. Others are left as they are.
absl::Status WithVolumeReason(absl::Status status);
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);  // google.rpc.RetryInfo
std::optional<absl::Duration> RetryDelayOf(const absl::Status& status);

grpc::Status ToGrpc(const absl::Status& status);  // a message too long for a header is cut, and says so
absl::Status FromGrpc(const grpc::Status& status);

// Adds context in front of the message, keeping code and reason.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

}  // namespace rlhf
// NOLINTBEGIN(bugprone-macro-parentheses): `lhs` may be a declaration.
#define RLHF_RETURN_IF_ERROR(expr)               \
  do {                                           \
    absl::Status rlhf_status_ = (expr);          \
    if (!rlhf_status_.ok()) return rlhf_status_; \
  } while (false)
#define RLHF_CONCAT_IMPL(a, b) a##b
#define RLHF_CONCAT(a, b) RLHF_CONCAT_IMPL(a, b)
#define RLHF_ASSIGN_OR_RETURN(lhs, expr) RLHF_ASSIGN_OR_RETURN_IMPL(RLHF_CONCAT(rlhf_statusor_, __LINE__), lhs, expr)
#define RLHF_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return tmp.status();              \
  lhs = std::move(tmp).value()
// NOLINTEND(bugprone-macro-parentheses)
