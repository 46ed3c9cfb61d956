// A call of any method, by its descriptor, with fields of text set.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/dynamic_message.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/status_util.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"

namespace rlhf::coordinator {

// "/PACKAGE.SERVICE/METHOD", as in method tables; null where nothing of the protos is so called.
inline const google::protobuf::MethodDescriptor* FindMethod(const std::string& path) {
  return google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(
      absl::StrReplaceAll(path.substr(1), {{"/", "."}}));
}

// With those of the fields that the request has. For calls that are refused: that needs no message from the server, so
// a call with a stream of answers, or of requests, is made alike.
inline absl::Status CallWith(const std::shared_ptr<grpc::Channel>& channel,
                             const google::protobuf::MethodDescriptor& method,
                             const std::map<std::string, std::string>& fields) {
  google::protobuf::DynamicMessageFactory factory;
  const std::unique_ptr<google::protobuf::Message> request(factory.GetPrototype(method.input_type())->New());
  for (const auto& [name, value] : fields) {
    const auto* field = method.input_type()->FindFieldByName(name);
    if (field == nullptr || field->is_repeated()) continue;
    google::protobuf::Message* into = request.get();
    if (field->message_type() != nullptr) {  // the project that a quota or a specification names
      into = request->GetReflection()->MutableMessage(request.get(), field);
      field = field->message_type()->FindFieldByName("project");
    }
    if (field != nullptr) into->GetReflection()->SetString(into, field, value);
  }
  const std::string serialized = request->SerializeAsString();
  grpc::Slice slice(serialized);
  const grpc::ByteBuffer bytes(&slice, 1);
  grpc::ByteBuffer answer;
  const auto context = client::MakeContext(absl::Seconds(30));
  grpc::GenericStub stub(channel);
  grpc::Status status;
  absl::Notification finished;
  stub.UnaryCall(context.get(), absl::StrCat("/", method.service()->full_name(), "/", method.name()),
                 grpc::StubOptions(), &bytes, &answer, [&](grpc::Status result) {
                   status = std::move(result);
                   finished.Notify();
                 });
  finished.WaitForNotification();
  return FromGrpc(status);
}

// The methods that the audit log names of calls refused for this reason, once they are so many: a refusal does not wait
// for its record.
inline std::set<std::string> RefusedMethods(const std::shared_ptr<grpc::Channel>& overseer, const std::string& reason,
                                            size_t at_least) {
  const auto stub = v1::OversightService::NewStub(overseer);
  v1::ListAuditRequest request;
  request.mutable_page()->set_page_size(1000);
  std::set<std::string> methods;
  for (const absl::Time deadline = absl::Now() + absl::Seconds(20);
       methods.size() < at_least && absl::Now() < deadline;) {
    v1::ListAuditResponse audit;
    if (!stub->ListAudit(client::MakeContext(absl::Seconds(30)).get(), request, &audit).ok()) continue;
    for (const v1::AuditRecord& record : audit.records()) {
      if (record.action() == "call.denied" && record.details().at("reason") == reason) methods.insert(record.object());
    }
  }
  return methods;
}

}  // namespace rlhf::coordinator
