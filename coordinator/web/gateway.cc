#include "coordinator/web/gateway.h"

#include <utility>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "common/call_deadline.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

using google::protobuf::Message;

std::unique_ptr<Message> NewMessage(const google::protobuf::Descriptor* type) {
  return std::unique_ptr<Message>(google::protobuf::MessageFactory::generated_factory()->GetPrototype(type)->New());
}

absl::StatusOr<grpc::ByteBuffer> Serialized(const Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

const std::vector<std::string>& WebMethods() {
  static const std::vector<std::string>* const methods = new std::vector<std::string>{
      "/rlhf.v1.JobService/GetJob",
      "/rlhf.v1.JobService/ListJobs",
      "/rlhf.v1.JobService/GetLedger",
      "/rlhf.v1.JobService/ListSamples",
      "/rlhf.v1.JobService/ListMetrics",
      "/rlhf.v1.JobService/ExplainJob",
      "/rlhf.v1.AdminService/ListWorkers",
      "/rlhf.v1.FeedbackService/NextTasks",
      "/rlhf.v1.FeedbackService/SubmitFeedback",
      "/rlhf.v1.FeedbackService/SkipTask",
      "/rlhf.v1.FeedbackService/GetFeedbackStats",
      "/rlhf.v1.OversightService/ListGates",
      "/rlhf.v1.OversightService/DecideGate",
      "/rlhf.v1.OversightService/HaltService",
      "/rlhf.v1.OversightService/ResumeService",
      "/rlhf.v1.OversightService/GetServiceState",
      "/rlhf.v1.OversightService/ListAudit",
  };
  return *methods;
}

absl::StatusOr<std::string> Gateway::Call(const std::string& method, const std::string& json,
                                          const std::string& bearer_token, absl::Duration timeout) {
  const std::string full_name = absl::StrReplaceAll(method.substr(1), {{"/", "."}});
  const auto* descriptor = google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(full_name);
  if (descriptor == nullptr || descriptor->client_streaming() || descriptor->server_streaming()) {
    return absl::UnimplementedError(absl::StrCat(method, " is not a unary method of this service"));
  }
  if (authorizer_) RLHF_RETURN_IF_ERROR(authorizer_(method, bearer_token, "").status());

  const std::unique_ptr<Message> request = NewMessage(descriptor->input_type());
  const auto parsed = google::protobuf::util::JsonStringToMessage(json.empty() ? "{}" : json, request.get());
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected ", descriptor->input_type()->full_name(), " as JSON: ", std::string(parsed.message())));
  }
  RLHF_ASSIGN_OR_RETURN(const grpc::ByteBuffer request_bytes, Serialized(*request));

  grpc::ClientContext context;
  context.set_deadline(CallDeadline(timeout));
  if (!bearer_token.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", bearer_token));
  grpc::ByteBuffer response_bytes;
  absl::Notification finished;
  grpc::Status status;
  stub_.UnaryCall(&context, method, grpc::StubOptions(), &request_bytes, &response_bytes, [&](grpc::Status result) {
    status = std::move(result);
    finished.Notify();
  });
  finished.WaitForNotification();
  RLHF_RETURN_IF_ERROR(FromGrpc(status));

  const std::unique_ptr<Message> response = NewMessage(descriptor->output_type());
  grpc::ProtoBufferReader reader(&response_bytes);
  if (!response->ParseFromZeroCopyStream(&reader)) {
    return absl::InternalError(absl::StrCat("the answer of ", method, " is no ", response->GetTypeName()));
  }
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  if (const auto printed = google::protobuf::util::MessageToJsonString(*response, &text, options); !printed.ok()) {
    return absl::InternalError(
        absl::StrCat("the answer of ", method, " does not print: ", std::string(printed.message())));
  }
  return text;
}

}  // namespace rlhf::coordinator
