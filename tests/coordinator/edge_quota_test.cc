// Quotas through the API: who may, what is refused, what is remembered and audited; protocol versions of the fleet.
#include <gmock/gmock.h>

#include "common/process.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

class QuotaTest : public CoordinatorFixture {
 protected:
  absl::StatusOr<v1::Quota> Set(const std::string& role, const v1::Quota& quota) {
    v1::SetQuotaRequest request;
    *request.mutable_quota() = quota;
    return Call(v1::AdminService::NewStub(Api(role)), &v1::AdminService::Stub::SetQuota, request);
  }
  absl::StatusOr<v1::Quota> Get(const std::string& role, const std::string& project, const std::string& submitter) {
    v1::GetQuotaRequest request;
    request.set_project(project);
    request.set_submitter(submitter);
    return Call(v1::AdminService::NewStub(Api(role)), &v1::AdminService::Stub::GetQuota, request);
  }
  static v1::Quota Quota(int learners) {
    v1::Quota quota;
    quota.set_project("default");
    quota.set_max_learners(learners);
    return quota;
  }
};

TEST_F(QuotaTest, AQuotaIsSetByAnAdminReadByItsProjectAuditedAndKept) {
  EXPECT_EQ(Get("submitter", "", "")->max_learners(), 0) << "no bound unless one is set";
  const auto set = Set("admin", Quota(4));
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->weight(), 1);
  v1::Quota mine = Quota(2);
  mine.set_submitter("alice");
  mine.set_weight(2.5);
  ASSERT_TRUE(Set("admin", mine).ok());
  Restart();
  EXPECT_EQ(Get("submitter", "default", "")->max_learners(), 4);
  EXPECT_EQ(Get("submitter", "default", "alice")->weight(), 2.5);
  const auto list =
      Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::ListQuotas, v1::ListQuotasRequest());
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->quotas_size(), 2);
  const auto audit = Call(v1::OversightService::NewStub(Api("overseer")), &v1::OversightService::Stub::ListAudit,
                          v1::ListAuditRequest());
  ASSERT_TRUE(audit.ok()) << audit.status();
  int records = 0;
  for (const v1::AuditRecord& record : audit->records()) records += record.action() == "quota.set" ? 1 : 0;
  EXPECT_EQ(records, 2);
  // Without bounds it is gone.
  ASSERT_TRUE(Set("admin", Quota(0)).ok());
  EXPECT_EQ(Get("admin", "default", "")->max_learners(), 0);
}

TEST_F(QuotaTest, NobodyElseSetsOneAndImpossibleOnesAreRefused) {
  EXPECT_EQ(Set("submitter", Quota(4)).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Get("submitter", "another", "").status().code(), absl::StatusCode::kPermissionDenied);
  const auto negative = Set("admin", Quota(-1));
  EXPECT_EQ(negative.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(negative.status().message()), HasSubstr("quota.max_learners"));
  v1::Quota weightless = Quota(1);
  weightless.set_weight(0);
  EXPECT_EQ(Set("admin", weightless).status().code(), absl::StatusCode::kInvalidArgument);
  v1::Quota all = Quota(1);
  all.set_project("*");
  EXPECT_EQ(Set("admin", all).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(QuotaTest, WithoutAProjectItIsOfTheCallersAsItIsRead) {
  v1::Quota own = Quota(3);
  own.clear_project();
  const auto set = Set("admin", own);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->project(), "default");
  EXPECT_EQ(Get("admin", "", "")->max_learners(), 3);
}

TEST_F(QuotaTest, TheFleetMaySpeakThisProtocolVersionOrTheOneBefore) {
  const auto stub = v1::FleetService::NewStub(Fleet("rollout_worker", "w1"));
  const auto speak = [&](uint32_t version) {
    v1::RegisterRequest request;
    request.set_role(v1::ROLE_ROLLOUT_WORKER);
    request.set_instance_id("w1");
    request.set_protocol_version(version);
    return Call(stub, &v1::FleetService::Stub::Register, request);
  };
  for (const uint32_t version : {kProtocolVersion, kProtocolVersion - 1}) {
    const auto registered = speak(version);
    ASSERT_TRUE(registered.ok()) << registered.status();
    EXPECT_EQ(registered->protocol_version(), version);
  }
  for (const uint32_t version : {kProtocolVersion + 1, kProtocolVersion - 2}) {
    const auto refused = speak(version);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << version;
    EXPECT_EQ(ReasonOf(refused.status()), v1::VERSION_MISMATCH);
  }
}

}  // namespace
}  // namespace rlhf::coordinator
