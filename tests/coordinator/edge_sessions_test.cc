// The fleet's callers are who their certificates say, in every call.
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include "coordinator/auth/method_table.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/learner_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"
#include "tests/coordinator/generic_call.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

const std::map<std::string, v1::Role>& Roles() {
  static const auto* const roles = new std::map<std::string, v1::Role>{{"rollout_worker", v1::ROLE_ROLLOUT_WORKER},
                                                                       {"learner", v1::ROLE_LEARNER},
                                                                       {"reward_server", v1::ROLE_REWARD_SERVER}};
  return *roles;
}

class SessionsTest : public CoordinatorFixture {
 protected:
  absl::StatusOr<std::string> Register(const std::shared_ptr<grpc::Channel>& channel, v1::Role role,
                                       const std::string& instance) {
    v1::RegisterRequest request;
    request.set_role(role);
    request.set_instance_id(instance);
    request.set_protocol_version(1);
    RLHF_ASSIGN_OR_RETURN(const v1::RegisterResponse response,
                          Call(v1::FleetService::NewStub(channel), &v1::FleetService::Stub::Register, request));
    return response.session_id();
  }
};

TEST_F(SessionsTest, NoCallIsMadeWithAnothersSession) {
  std::vector<std::string> walked;
  for (const auto& [role, number] : Roles()) {
    const auto session = Register(Fleet(role, "owner"), number, "owner");
    ASSERT_TRUE(session.ok()) << session.status();
    const auto thief = Fleet(role, "thief");
    for (const MethodRule& rule : Rules(Listener::kFleet)) {
      const auto* method = FindMethod(rule.method);
      if (method == nullptr || method->client_streaming()) continue;
      if (std::find(rule.roles.begin(), rule.roles.end(), role) == rule.roles.end()) continue;
      if (method->input_type()->FindFieldByName("session_id") == nullptr) continue;
      const absl::Status status = CallWith(thief, *method, {{"session_id", *session}});
      EXPECT_TRUE(absl::IsPermissionDenied(status)) << role << " " << rule.method << ": " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("the session is of another instance"))
          << role << " " << rule.method;
      walked.push_back(rule.method);
    }
  }
  EXPECT_GE(walked.size(), 15u) << testing::PrintToString(walked);
  EXPECT_THAT(RefusedMethods(Api("overseer"), "session", 10), testing::IsSubsetOf(walked));
}

// One CA may sign for several installations.
TEST_F(SessionsTest, ACertificateOfAnotherTrustDomainIsNoIdentity) {
  const TlsFiles other = certificates_.IssueOf("elsewhere", "learner", "l0");
  const absl::Status refused = Register(Channel("fleet", other, ""), v1::ROLE_LEARNER, "l0").status();
  EXPECT_TRUE(absl::IsUnauthenticated(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("trust domain test, found elsewhere"));
  EXPECT_TRUE(Register(Fleet("learner", "l0"), v1::ROLE_LEARNER, "l0").ok());
}

}  // namespace
}  // namespace rlhf::coordinator
