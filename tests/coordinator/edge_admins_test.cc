// What an admin of one project may do: nothing that another project, or the whole service, would notice.
#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ProjectAdminsTest : public CoordinatorFixture {
 protected:
  using Stub = v1::AdminService::Stub;

  absl::StatusOr<v1::CreateTokenResponse> CreateToken(const std::shared_ptr<grpc::Channel>& by,
                                                      const std::string& subject, const std::string& project,
                                                      v1::TokenRole role, int64_t ttl_seconds = 0) {
    v1::CreateTokenRequest request;
    request.set_subject(subject);
    request.set_project(project);
    request.add_roles(role);
    request.set_ttl_seconds(ttl_seconds);
    return Call(v1::AdminService::NewStub(by), &Stub::CreateToken, request);
  }
  std::shared_ptr<grpc::Channel> AdminOf(const std::string& project) {
    const auto token = CreateToken(Api("admin"), "admin-of-" + project, project, v1::ADMIN);
    EXPECT_TRUE(token.ok()) << token.status();
    return token.ok() ? ApiWithToken(token->secret()) : nullptr;
  }
  static void ExpectNotAllowed(const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
    EXPECT_EQ(ReasonOf(status), v1::PROJECT_NOT_ALLOWED) << status;
  }
  bool Works(const std::string& secret) {
    return Call(v1::JobService::NewStub(ApiWithToken(secret)), &v1::JobService::Stub::ListJobs, v1::ListJobsRequest())
        .ok();
  }
};

TEST_F(ProjectAdminsTest, TheyMakeSeeAndRevokeTokensOfTheirProjectAlone) {
  const auto red = AdminOf("red");
  // Nobody makes more of themselves than they are.
  for (const char* project : {"*", "default", "blue"}) {
    for (const v1::TokenRole role : {v1::ADMIN, v1::VIEWER})
      ExpectNotAllowed(CreateToken(red, "eve", project, role).status());
  }
  const auto own = CreateToken(red, "eve", "", v1::SUBMITTER);
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(own->token().project(), "red");

  v1::RevokeTokenRequest revoke;
  for (const char* project : {"*", "blue"}) {
    const auto other = CreateToken(Api("admin"), "ada", project, v1::VIEWER);
    ASSERT_TRUE(other.ok()) << other.status();
    revoke.set_id(other->token().id());
    ExpectNotAllowed(Call(v1::AdminService::NewStub(red), &Stub::RevokeToken, revoke).status());
    EXPECT_TRUE(Works(other->secret())) << project;
  }
  // Page by page, each of one row: what is left out in between is not shown in another way.
  std::set<std::string> seen;
  v1::ListTokensRequest list;
  list.mutable_page()->set_page_size(1);
  do {
    const auto page = Call(v1::AdminService::NewStub(red), &Stub::ListTokens, list);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const v1::TokenRow& row : page->tokens()) {
      EXPECT_EQ(row.project(), "red") << row.subject();
      EXPECT_TRUE(seen.insert(row.subject()).second) << row.subject() << " twice";
    }
    list.mutable_page()->set_page_token(page->next_page_token());
  } while (!list.page().page_token().empty());
  EXPECT_THAT(seen, ElementsAre("admin-of-red", "eve"));

  revoke.set_id(own->token().id());
  EXPECT_TRUE(Call(v1::AdminService::NewStub(red), &Stub::RevokeToken, revoke).ok());
  EXPECT_FALSE(Works(own->secret()));
}

TEST_F(ProjectAdminsTest, TheySetAndSeeQuotasOfTheirProjectAlone) {
  const auto red = AdminOf("red");
  const auto set = [&](const std::shared_ptr<grpc::Channel>& by, const std::string& project, int jobs) {
    v1::SetQuotaRequest request;
    request.mutable_quota()->set_project(project);
    request.mutable_quota()->set_max_jobs(jobs);
    return Call(v1::AdminService::NewStub(by), &Stub::SetQuota, request).status();
  };
  ASSERT_TRUE(set(Api("admin"), "blue", 5).ok());
  ExpectNotAllowed(set(red, "blue", 0));
  ExpectNotAllowed(set(red, "default", 1));
  EXPECT_TRUE(set(red, "red", 3).ok());
  const auto projects = [&](const std::shared_ptr<grpc::Channel>& by) {
    std::vector<std::string> out;
    const auto list = Call(v1::AdminService::NewStub(by), &Stub::ListQuotas, v1::ListQuotasRequest());
    EXPECT_TRUE(list.ok()) << list.status();
    for (const v1::Quota& quota : list->quotas()) out.push_back(absl::StrCat(quota.project(), " ", quota.max_jobs()));
    return out;
  };
  EXPECT_THAT(projects(Api("admin")), ElementsAre("blue 5", "red 3"));
  EXPECT_THAT(projects(red), ElementsAre("red 3"));
}

TEST_F(ProjectAdminsTest, TheyTakeNoCopyOfEverything) {
  const auto stub = v1::AdminService::NewStub(AdminOf("red"));
  const auto context = client::MakeContext(absl::Seconds(60));
  const auto reader = stub->Backup(context.get(), v1::BackupRequest());
  v1::BackupChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  ExpectNotAllowed(FromGrpc(reader->Finish()));
}

TEST_F(ProjectAdminsTest, NoTokenLivesLongerThan400Days) {
  constexpr int64_t kLongest = int64_t{400} * 24 * 3600;
  EXPECT_TRUE(CreateToken(Api("admin"), "ada", "red", v1::VIEWER, kLongest).ok());
  for (const int64_t seconds : {kLongest + 1, std::numeric_limits<int64_t>::max(), int64_t{-1}}) {
    const absl::Status refused = CreateToken(Api("admin"), "ada", "red", v1::VIEWER, seconds).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << seconds << ": " << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("ttl_seconds: expected 1 to 34560000"));
  }
}

}  // namespace
}  // namespace rlhf::coordinator
