#include "common/status_util.h"

#include <string>
#include <utility>

#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/unknown_field_set.h>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/utf8_cut.h"

namespace rlhf {
namespace {

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// google/rpc/{status,error_details}.proto are not packaged with protobuf; their three small messages are written
// field by field, which is what any client with googleapis' stubs reads.
constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kDomain[] = "rlhf";
constexpr int kErrorInfoReason = 1;
constexpr int kErrorInfoDomain = 2;
constexpr int kRetryInfoDelay = 1;
constexpr int kStatusCode = 1;
constexpr int kStatusMessage = 2;
constexpr int kStatusDetails = 3;

std::string Serialize(const UnknownFieldSet& fields) {
  std::string bytes;
  fields.SerializeToString(&bytes);
  return bytes;
}

const std::string* FindBytes(const UnknownFieldSet& fields, int number) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    if (field.number() == number && field.type() == UnknownField::TYPE_LENGTH_DELIMITED) {
      return &field.length_delimited();
    }
  }
  return nullptr;
}

// The message goes over the wire in two headers, percent-encoded and, with details, as base64 in them. Past 8 KiB of
// headers a peer drops the whole status for one that says nothing: a long message (every tensor that is missing) is
// cut.
constexpr size_t kHeaderBudget = 6500;

std::string ForHeaders(absl::string_view message) {
  double encoded = 0;
  size_t end = 0;
  for (; end < message.size(); ++end) {
    const auto byte = static_cast<unsigned char>(message[end]);
    encoded += (byte >= 0x20 && byte < 0x7f && byte != '%' ? 1 : 3) + 4.0 / 3;
    if (encoded > kHeaderBudget) break;
  }
  if (end == message.size()) return std::string(message);
  end = Utf8Cut(message, end);
  return absl::StrCat(message.substr(0, end), "… (", message.size() - end, " bytes more)");
}

}  // namespace

absl::Status WithReason(absl::Status status, v1::ErrorReason reason) {
  UnknownFieldSet info;
  info.AddLengthDelimited(kErrorInfoReason, v1::ErrorReason_Name(reason));
  info.AddLengthDelimited(kErrorInfoDomain, kDomain);
  status.SetPayload(kErrorInfoUrl, absl::Cord(Serialize(info)));
  return status;
}

v1::ErrorReason ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kErrorInfoUrl);
  UnknownFieldSet info;
  if (!payload.has_value() || !info.ParseFromString(std::string(*payload))) return v1::ERROR_REASON_UNSPECIFIED;
  const std::string* reason = FindBytes(info, kErrorInfoReason);
  const std::string* domain = FindBytes(info, kErrorInfoDomain);
  v1::ErrorReason value = v1::ERROR_REASON_UNSPECIFIED;
  if (reason == nullptr || domain == nullptr || *domain != kDomain) return value;
  v1::ErrorReason_Parse(*reason, &value);
  return value;
}

absl::Status WithVolumeReason(absl::Status status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsFailedPrecondition(status)) return status;
  return WithReason(std::move(status), v1::STORE_UNAVAILABLE);
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  google::protobuf::Duration duration;
  duration.set_seconds(absl::ToInt64Seconds(delay));
  duration.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(delay - absl::Seconds(duration.seconds()))));
  UnknownFieldSet info;
  info.AddLengthDelimited(kRetryInfoDelay, duration.SerializeAsString());
  status.SetPayload(kRetryInfoUrl, absl::Cord(Serialize(info)));
  return status;
}

std::optional<absl::Duration> RetryDelayOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryInfoUrl);
  UnknownFieldSet info;
  if (!payload.has_value() || !info.ParseFromString(std::string(*payload))) return std::nullopt;
  const std::string* bytes = FindBytes(info, kRetryInfoDelay);
  google::protobuf::Duration duration;
  if (bytes == nullptr || !duration.ParseFromString(*bytes)) return std::nullopt;
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  UnknownFieldSet details;
  status.ForEachPayload([&details](absl::string_view url, const absl::Cord& bytes) {
    google::protobuf::Any any;
    any.set_type_url(std::string(url));
    any.set_value(std::string(bytes));
    details.AddLengthDelimited(kStatusDetails, any.SerializeAsString());
  });
  const auto code = static_cast<grpc::StatusCode>(status.raw_code());
  const std::string message = ForHeaders(status.message());
  if (details.empty()) return grpc::Status(code, message);
  UnknownFieldSet rpc_status;
  rpc_status.AddVarint(kStatusCode, static_cast<uint64_t>(status.raw_code()));
  rpc_status.AddLengthDelimited(kStatusMessage, message);
  rpc_status.MergeFrom(details);
  return grpc::Status(code, message, Serialize(rpc_status));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  UnknownFieldSet rpc_status;
  if (status.error_details().empty() || !rpc_status.ParseFromString(status.error_details())) return result;
  for (int i = 0; i < rpc_status.field_count(); ++i) {
    const UnknownField& field = rpc_status.field(i);
    google::protobuf::Any any;
    if (field.number() == kStatusDetails && field.type() == UnknownField::TYPE_LENGTH_DELIMITED &&
        any.ParseFromString(field.length_delimited())) {
      result.SetPayload(any.type_url(), absl::Cord(any.value()));
    }
  }
  return result;
}

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload([&result](absl::string_view url, const absl::Cord& bytes) { result.SetPayload(url, bytes); });
  return result;
}

}  // namespace rlhf
