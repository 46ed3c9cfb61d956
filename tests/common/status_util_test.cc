#include "common/status_util.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/status/statusor.h"
#include "common/canonical_bytes.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf {
namespace {

TEST(StatusUtilTest, EveryCodeMakesTheRoundTrip) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status over_the_wire = ToGrpc(status);
    EXPECT_EQ(over_the_wire.error_code(), code);
    EXPECT_EQ(FromGrpc(over_the_wire), status);
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

TEST(CanonicalBytesTest, DoNotDependOnTheOrderInWhichAMapWasFilled) {
  v1::JobSpec one, other;
  for (int i = 0; i < 16; ++i) (*one.mutable_labels())[std::to_string(i)] = "x";
  for (int i = 15; i >= 0; --i) (*other.mutable_labels())[std::to_string(i)] = "x";
  EXPECT_EQ(CanonicalBytes(one), CanonicalBytes(other));
  (*other.mutable_labels())["3"] = "y";
  EXPECT_NE(CanonicalBytes(one), CanonicalBytes(other));
}

TEST(StatusUtilTest, ReasonAndRetryDelayTravel) {
  const absl::Status status =
      WithRetryDelay(WithReason(absl::ResourceExhaustedError("full"), v1::QUOTA_EXCEEDED), absl::Milliseconds(1500));
  const absl::Status received = FromGrpc(ToGrpc(status));
  EXPECT_EQ(received, status);
  EXPECT_EQ(ReasonOf(received), v1::QUOTA_EXCEEDED);
  EXPECT_EQ(RetryDelayOf(received), absl::Milliseconds(1500));
}

TEST(StatusUtilTest, WithoutDetailsThereIsNoReason) {
  EXPECT_EQ(ReasonOf(absl::NotFoundError("x")), v1::ERROR_REASON_UNSPECIFIED);
  EXPECT_EQ(ReasonOf(absl::OkStatus()), v1::ERROR_REASON_UNSPECIFIED);
  EXPECT_EQ(RetryDelayOf(absl::NotFoundError("x")), std::nullopt);
}

TEST(StatusUtilTest, DetailsAreGoogleRpcStatusOnTheWire) {
  const grpc::Status sent = ToGrpc(WithReason(absl::NotFoundError("no"), v1::UNKNOWN_JOB));
  // google.rpc.Status{code: 5, message: "no", details: [Any{ErrorInfo{reason: "UNKNOWN_JOB", domain: "rlhf"}}]}
  const std::string info = "\x0a\x0bUNKNOWN_JOB\x12\x04rlhf";
  const std::string url = "type.googleapis.com/google.rpc.ErrorInfo";
  const std::string any = "\x0a" + std::string(1, static_cast<char>(url.size())) + url + "\x12" +
                          std::string(1, static_cast<char>(info.size())) + info;
  EXPECT_EQ(sent.error_details(), "\x08\x05\x12\x02no\x1a" + std::string(1, static_cast<char>(any.size())) + any);
}

TEST(StatusUtilTest, ForeignAndDamagedDetailsAreHarmless) {
  const absl::Status damaged = FromGrpc(grpc::Status(grpc::StatusCode::INTERNAL, "x", "\xff\xff\xff"));
  EXPECT_TRUE(absl::IsInternal(damaged));
  EXPECT_EQ(ReasonOf(damaged), v1::ERROR_REASON_UNSPECIFIED);
  absl::Status foreign = absl::InternalError("x");
  foreign.SetPayload("type.googleapis.com/google.rpc.ErrorInfo", absl::Cord("\x0a\x0bUNKNOWN_JOB\x12\x05other"));
  EXPECT_EQ(ReasonOf(foreign), v1::ERROR_REASON_UNSPECIFIED);
}

TEST(StatusUtilTest, AnnotateKeepsCodeAndReason) {
  const absl::Status status = Annotate(WithReason(absl::AbortedError("late"), v1::STALE_EPOCH), "commit");
  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_EQ(status.message(), "commit: late");
  EXPECT_EQ(ReasonOf(status), v1::STALE_EPOCH);
  EXPECT_TRUE(Annotate(absl::OkStatus(), "commit").ok());
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}
absl::StatusOr<int> Quarter(int value) {
  RLHF_ASSIGN_OR_RETURN(const int half, Half(value));
  RLHF_ASSIGN_OR_RETURN(const int quarter, Half(half));
  RLHF_RETURN_IF_ERROR(absl::OkStatus());
  return quarter;
}

TEST(StatusUtilTest, ALongMessageIsCutBetweenCharacters) {
  for (const std::string begin : {"", "x"}) {
    std::string text = begin;
    for (int i = 0; i < 3000; ++i) text += "é";
    const std::string message = ToGrpc(absl::InternalError(text)).error_message();
    const size_t kept = message.find("… (");
    ASSERT_NE(kept, std::string::npos) << message.size();
    EXPECT_LT(kept, text.size());
    EXPECT_EQ((kept - begin.size()) % 2, 0u);
  }
}

TEST(StatusUtilTest, AVolumesErrorsHaveAReason) {
  EXPECT_EQ(ReasonOf(WithVolumeReason(absl::ResourceExhaustedError("full"))), v1::STORE_UNAVAILABLE);
  EXPECT_EQ(ReasonOf(WithVolumeReason(absl::FailedPreconditionError("read-only"))), v1::STORE_UNAVAILABLE);
  EXPECT_EQ(ReasonOf(WithVolumeReason(absl::NotFoundError("none"))), v1::ERROR_REASON_UNSPECIFIED);
}

TEST(StatusUtilTest, Macros) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_TRUE(absl::IsInvalidArgument(Quarter(6).status()));
}

}  // namespace
}  // namespace rlhf
