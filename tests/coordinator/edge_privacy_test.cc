// What stays with whom it belongs to, over a real coordinator: its files, what workers work on, the last admin's token.
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "cli/backup_files.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"
#include "tests/coordinator/waiting_job.h"

namespace rlhf::coordinator {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;

class PrivacyTest : public CoordinatorFixture {
 protected:
  void SetUp() override {
    umask(022);
    CoordinatorFixture::SetUp();
  }
  absl::StatusOr<v1::CreateTokenResponse> CreateToken(const std::string& subject, const std::string& project,
                                                      std::vector<v1::TokenRole> roles) {
    v1::CreateTokenRequest request;
    request.set_subject(subject);
    request.set_project(project);
    for (const v1::TokenRole role : roles) request.add_roles(role);
    return Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
  }
  // What others than its owner may read of a folder's files: there are some, and the folder is there.
  static std::vector<std::string> ReadableByOthers(const std::string& folder) {
    std::vector<std::string> found;
    int files = 0;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      ++files;
      const std::string name = entry.path().filename().string();
      const bool open = (entry.status().permissions() & (fs::perms::group_all | fs::perms::others_all)) != fs::perms();
      if (entry.is_regular_file() && open && name != "LOCK" && name != "backup.json" && name != "RESTORED")
        found.push_back(entry.path().string());
    }
    EXPECT_GT(files, 0) << folder;
    return found;
  }
  static bool OwnersAlone(const std::string& folder) {
    return fs::status(folder).permissions() == fs::perms::owner_all;
  }
};

TEST_F(PrivacyTest, StateBackupsAndRestoredStateAreTheOwnersAlone) {
  const std::string data = dir_.File("data"), backup = dir_.File("backup"), restored = dir_.File("restored");
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
  for (const char* file : {"state.db", "state.db-wal", "state.db-shm"}) EXPECT_TRUE(fs::exists(data + "/" + file));
  EXPECT_THAT(ReadableByOthers(data), IsEmpty());
  EXPECT_TRUE(OwnersAlone(data));

  // As an earlier release left it.
  server_.reset();
  fs::permissions(data + "/state.db", fs::perms(0644));
  Start();
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
  EXPECT_THAT(ReadableByOthers(data), IsEmpty());

  {
    const auto writer = cli::BackupWriter::Begin(backup);
    ASSERT_TRUE(writer.ok()) << writer.status();
    const auto context = client::MakeContext(absl::Seconds(60));
    const auto stub = v1::AdminService::NewStub(Api("admin"));
    const auto reader = stub->Backup(context.get(), v1::BackupRequest());
    v1::BackupChunk chunk;
    while (reader->Read(&chunk)) ASSERT_TRUE((*writer)->Take(chunk).ok());
    ASSERT_TRUE(reader->Finish().ok());
    ASSERT_TRUE((*writer)->Finish().ok());
  }
  EXPECT_THAT(ReadableByOthers(backup), IsEmpty());
  EXPECT_TRUE(OwnersAlone(backup));

  fs::permissions(backup + "/state.db", fs::perms(0644));
  const absl::Status status = cli::RestoreBackup(backup, restored);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(ReadableByOthers(restored), IsEmpty());
  EXPECT_TRUE(OwnersAlone(restored));
}

TEST_F(PrivacyTest, TheLastAdminsTokenIsNotRevoked) {
  const auto admin = v1::AdminService::NewStub(Api("admin"));
  const auto list = Call(admin, &v1::AdminService::Stub::ListTokens, v1::ListTokensRequest());
  ASSERT_TRUE(list.ok()) << list.status();
  v1::RevokeTokenRequest revoke;
  for (const v1::TokenRow& token : list->tokens()) {
    if (token.project() == "*" && token.roles_size() == 1 && token.roles(0) == v1::ADMIN) revoke.set_id(token.id());
  }
  ASSERT_FALSE(revoke.id().empty());
  const auto of_one_project = CreateToken("eve", "default", {v1::ADMIN});
  ASSERT_TRUE(of_one_project.ok()) << of_one_project.status();
  const absl::Status refused = Call(admin, &v1::AdminService::Stub::RevokeToken, revoke).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("is the last that is admin of all projects"));
  const auto other = CreateToken("ada", "*", {v1::ADMIN});
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_TRUE(Call(admin, &v1::AdminService::Stub::RevokeToken, revoke).ok());
  const auto heir = v1::AdminService::NewStub(ApiWithToken(other->secret()));
  EXPECT_TRUE(Call(heir, &v1::AdminService::Stub::RevokeToken, revoke).ok()) << "twice is fine";
  revoke.set_id(other->token().id());
  EXPECT_EQ(Call(heir, &v1::AdminService::Stub::RevokeToken, revoke).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(PrivacyTest, WhatWorkersWorkOnIsItsProjectsToSee) {
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
  const auto job = Call(v1::JobService::NewStub(Api("submitter")), &v1::JobService::Stub::SubmitJob, WaitingJob("job"));
  ASSERT_TRUE(job.ok()) << job.status();
  const auto worker = Fleet("rollout_worker", "w0");
  v1::RegisterRequest identity;
  identity.set_role(v1::ROLE_ROLLOUT_WORKER);
  identity.set_instance_id("w0");
  identity.set_protocol_version(1);
  identity.set_slots(4);
  const auto session = Call(v1::FleetService::NewStub(worker), &v1::FleetService::Stub::Register, identity);
  ASSERT_TRUE(session.ok()) << session.status();
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_session_id(session->session_id());
  heartbeat.add_progress()->mutable_id()->set_job_id(job->job().id());
  heartbeat.mutable_policy()->set_step(3);
  const auto beaten = Call(v1::FleetService::NewStub(worker), &v1::FleetService::Stub::Heartbeat, heartbeat);
  ASSERT_TRUE(beaten.ok()) << beaten.status();
  for (const char* project : {"default", "research", "*"}) {
    SCOPED_TRACE(project);
    const auto token = CreateToken("eve", project, {v1::ADMIN});
    ASSERT_TRUE(token.ok()) << token.status();
    const auto list = Call(v1::AdminService::NewStub(ApiWithToken(token->secret())),
                           &v1::AdminService::Stub::ListWorkers, v1::ListWorkersRequest());
    ASSERT_TRUE(list.ok()) << list.status();
    ASSERT_EQ(list->workers_size(), 1);
    EXPECT_EQ(list->workers(0).instance_id(), "w0");
    const bool sees = std::string(project) != "research";
    EXPECT_EQ(list->workers(0).job_id(), sees ? job->job().id() : "");
    EXPECT_EQ(list->workers(0).policy().step(), sees ? 3 : 0);
  }
}

}  // namespace
}  // namespace rlhf::coordinator
