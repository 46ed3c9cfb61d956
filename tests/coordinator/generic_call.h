// A call of any method, by its descriptor, with fields of text set.
#pragma once

#include <map>
#include <memory>
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
#include "client/cpp/channel.h"
#include "common/status_util.h"

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

}  // namespace rlhf::coordinator
