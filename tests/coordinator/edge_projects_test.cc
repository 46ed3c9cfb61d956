// Every call of the API that names a job, by somebody of another project.
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/dynamic_message.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "coordinator/auth/method_table.h"
#include "grpcpp/generic/generic_stub.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"

namespace rlhf::coordinator {
namespace {

class ProjectsTest : public CollectFixture {
 protected:
  std::string TokenOfRed(const std::string& subject, const std::vector<v1::TokenRole>& roles) {
    v1::CreateTokenRequest request;
    request.set_subject(subject);
    request.set_project("red");
    for (const v1::TokenRole role : roles) request.add_roles(role);
    const auto made = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? made->secret() : "";
  }
  // A refusal needs no message from the server, so a call with a stream of answers is made alike.
  absl::Status CallWithJob(const google::protobuf::MethodDescriptor& method, const std::string& job,
                           const std::string& token) {
    google::protobuf::DynamicMessageFactory factory;
    const std::unique_ptr<google::protobuf::Message> request(factory.GetPrototype(method.input_type())->New());
    request->GetReflection()->SetString(request.get(), method.input_type()->FindFieldByName("job_id"), job);
    const std::string text = request->SerializeAsString();
    grpc::Slice slice(text);
    const grpc::ByteBuffer bytes(&slice, 1);
    grpc::ByteBuffer answer;
    const auto context = client::MakeContext(absl::Seconds(30));
    grpc::GenericStub stub(ApiWithToken(token));
    grpc::Status status;
    absl::Notification finished;
    stub.UnaryCall(context.get(), MethodName(method), grpc::StubOptions(), &bytes, &answer, [&](grpc::Status result) {
      status = std::move(result);
      finished.Notify();
    });
    finished.WaitForNotification();
    return FromGrpc(status);
  }
  static std::string MethodName(const google::protobuf::MethodDescriptor& method) {
    return absl::StrCat("/", method.service()->full_name(), "/", method.name());
  }
};

TEST_F(ProjectsTest, NoCallThatNamesAJobServesAnotherProject) {
  UploadSamples();
  v1::JobSpec spec;
  spec.set_name("collect");
  spec.mutable_collect()->set_samples("samples");
  spec.mutable_collect()->set_comparisons(10);
  const std::string job = Submit(spec);
  ASSERT_EQ(Next(AsRater("anna"), job, 1).tasks_size(), 1);
  const std::string person = TokenOfRed("ada", {v1::VIEWER, v1::SUBMITTER, v1::RATER, v1::OVERSEER}),
                    admin = TokenOfRed("root", {v1::ADMIN});
  std::vector<std::string> walked;
  for (const MethodRule& rule : Rules(Listener::kApi)) {
    const auto* method = google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(
        absl::StrReplaceAll(rule.method.substr(1), {{"/", "."}}));
    if (method == nullptr || method->client_streaming() || rule.roles.empty()) continue;
    const auto* field = method->input_type()->FindFieldByName("job_id");
    if (field == nullptr || field->is_repeated()) continue;
    walked.push_back(rule.method);
    bool let_in = false;
    for (const std::string& token : {person, admin}) {
      const absl::Status status = CallWithJob(*method, job, token);
      const auto reason = ReasonOf(status);
      if (reason == v1::ROLE_NOT_ALLOWED) continue;
      let_in = true;
      EXPECT_EQ(reason, v1::PROJECT_NOT_ALLOWED) << rule.method << ": " << status;
    }
    EXPECT_TRUE(let_in) << rule.method << ": no role came as far as the project";
  }
  EXPECT_GE(walked.size(), 15u) << testing::PrintToString(walked);
  EXPECT_EQ(Get(job).state(), v1::WAITING) << "nobody touched it";
}

}  // namespace
}  // namespace rlhf::coordinator
