// Tokens, the method table and the authorizers.
#include <sys/stat.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/auth/authorizer.h"
#include "coordinator/auth/first_tokens.h"
#include "coordinator/auth/method_table.h"
#include "coordinator/auth/token_metrics.h"
#include "coordinator/auth/tokens.h"
#include "coordinator/names.h"
#include "coordinator/oversight.h"
#include "rlhf/v1/admin_service.pb.h"
#include "rlhf/v1/artifact_service.pb.h"
#include "rlhf/v1/feedback_service.pb.h"
#include "rlhf/v1/fleet_service.pb.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/learner_service.pb.h"
#include "rlhf/v1/log_service.pb.h"
#include "rlhf/v1/oversight_service.pb.h"
#include "rlhf/v1/reward_service.pb.h"
#include "rlhf/v1/weights_service.pb.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using google::protobuf::FileDescriptor;
using google::protobuf::ServiceDescriptor;
using testing::HasSubstr;

std::vector<const FileDescriptor*> ServiceFiles() {
  return {v1::ListWorkersRequest::descriptor()->file(), v1::StartUploadRequest::descriptor()->file(),
          v1::NextTasksRequest::descriptor()->file(),   v1::RegisterRequest::descriptor()->file(),
          v1::SubmitJobRequest::descriptor()->file(),   v1::JoinGroupRequest::descriptor()->file(),
          v1::AppendLogsRequest::descriptor()->file(),  v1::ListGatesRequest::descriptor()->file(),
          v1::ScoreRequest::descriptor()->file(),       v1::GetManifestRequest::descriptor()->file()};
}

// Which services a listener registers; the rest of the protos is served by other processes.
const std::set<std::string> kFleetServices = {"rlhf.v1.FleetService", "rlhf.v1.LearnerService",
                                              "rlhf.v1.ArtifactService", "rlhf.v1.LogService"};
const std::set<std::string> kApiServices = {"rlhf.v1.JobService",      "rlhf.v1.ArtifactService",
                                            "rlhf.v1.FeedbackService", "rlhf.v1.OversightService",
                                            "rlhf.v1.LogService",      "rlhf.v1.AdminService"};
const std::set<std::string> kCommon = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
                                       "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"};

TEST(MethodTable, KnowsEveryMethodOfEveryProtoAndNoOther) {
  for (const Listener listener : {Listener::kFleet, Listener::kApi}) {
    const std::set<std::string>& served = listener == Listener::kFleet ? kFleetServices : kApiServices;
    std::set<std::string> expected = kCommon;
    for (const FileDescriptor* file : ServiceFiles()) {
      for (int i = 0; i < file->service_count(); ++i) {
        const ServiceDescriptor* service = file->service(i);
        for (int j = 0; j < service->method_count(); ++j) {
          const std::string method = absl::StrCat("/", service->full_name(), "/", service->method(j)->name());
          if (served.count(service->full_name()) > 0) {
            expected.insert(method);
            EXPECT_NE(FindRule(listener, method), nullptr) << method;
          } else {
            EXPECT_EQ(FindRule(listener, method), nullptr) << method;
            EXPECT_FALSE(CheckRole(listener, method, {"admin", "learner"}).ok()) << method;
          }
        }
      }
    }
    std::set<std::string> found;
    for (const MethodRule& rule : Rules(listener))
      EXPECT_TRUE(found.insert(rule.method).second) << rule.method << " is there twice";
    EXPECT_EQ(found, expected);
  }
}

TEST(MethodTable, OnlyTheHealthCheckIsOpen) {
  for (const Listener listener : {Listener::kFleet, Listener::kApi}) {
    for (const MethodRule& rule : Rules(listener)) {
      const bool may_be_open = listener == Listener::kApi && absl::StartsWith(rule.method, "/grpc.health.v1.");
      EXPECT_EQ(rule.open, may_be_open) << rule.method;
      // Nobody without a role gets through, and an unknown role is no role.
      if (!rule.open) {
        EXPECT_FALSE(CheckRole(listener, rule.method, {}).ok()) << rule.method;
        EXPECT_FALSE(CheckRole(listener, rule.method, {"visitor"}).ok()) << rule.method;
      }
    }
  }
}

TEST(MethodTable, RolesDoWhatTheyAreFor) {
  const auto allowed = [](const char* method, const char* role) {
    return CheckRole(Listener::kApi, method, {role}).ok();
  };
  EXPECT_TRUE(allowed("/rlhf.v1.JobService/GetJob", "viewer"));
  EXPECT_FALSE(allowed("/rlhf.v1.JobService/SubmitJob", "viewer"));
  EXPECT_TRUE(allowed("/rlhf.v1.JobService/SubmitJob", "submitter"));
  EXPECT_TRUE(allowed("/rlhf.v1.FeedbackService/NextTasks", "rater"));
  EXPECT_FALSE(allowed("/rlhf.v1.FeedbackService/NextTasks", "submitter"));
  EXPECT_FALSE(allowed("/rlhf.v1.JobService/GetJob", "rater"));
  // Who runs the service does not decide whether it may go on, and the other way round.
  for (const char* method : {"/rlhf.v1.OversightService/DecideGate", "/rlhf.v1.OversightService/HaltService",
                             "/rlhf.v1.OversightService/ResumeService"}) {
    EXPECT_TRUE(allowed(method, "overseer")) << method;
    EXPECT_FALSE(allowed(method, "admin")) << method;
  }
  for (const char* method : {"/rlhf.v1.AdminService/CreateToken", "/rlhf.v1.AdminService/DrainWorker"}) {
    EXPECT_TRUE(allowed(method, "admin")) << method;
    EXPECT_FALSE(allowed(method, "overseer")) << method;
  }
  EXPECT_TRUE(CheckRole(Listener::kFleet, "/rlhf.v1.LearnerService/CommitStep", {"learner"}).ok());
  EXPECT_FALSE(CheckRole(Listener::kFleet, "/rlhf.v1.LearnerService/CommitStep", {"rollout_worker"}).ok());
  EXPECT_FALSE(CheckRole(Listener::kFleet, "/rlhf.v1.FleetService/LeasePrompts", {"learner"}).ok());
  const absl::Status refused = CheckRole(Listener::kApi, "/rlhf.v1.JobService/SubmitJob", {"viewer"});
  EXPECT_EQ(ReasonOf(refused), v1::ROLE_NOT_ALLOWED);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("submitter"));
}

class TokensTest : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  void Reopen() {
    auto tokens = Tokens::Open(&store_, &clock_);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    tokens_ = *std::move(tokens);
  }
  absl::StatusOr<Tokens::Minted> Mint(const std::string& subject, std::vector<v1::TokenRole> roles,
                                      absl::Duration ttl = absl::Hours(1)) {
    Tokens::Request request;
    request.subject = subject;
    request.roles = std::move(roles);
    request.ttl = ttl;
    WriteBatch batch;
    RLHF_ASSIGN_OR_RETURN(Tokens::Minted minted, tokens_->PrepareMint(request, &batch));
    RLHF_RETURN_IF_ERROR(store_.CommitAndWait(std::move(batch)));
    tokens_->ApplyMint(minted.row.id());
    return minted;
  }

  EdgeMemoryStore store_;
  FakeClock clock_;
  std::unique_ptr<Tokens> tokens_;
};

TEST_F(TokensTest, AMintedTokenWorksAlsoAfterARestart) {
  const auto minted = Mint("ada", {v1::SUBMITTER, v1::SUBMITTER});
  ASSERT_TRUE(minted.ok()) << minted.status();
  EXPECT_THAT(minted->secret, testing::MatchesRegex("rlhf_[0-9a-f]{12}_[0-9a-f]{64}"));
  EXPECT_TRUE(minted->row.sha256().empty());
  EXPECT_EQ(minted->row.roles_size(), 1);
  for (int i = 0; i < 2; ++i) {
    const auto row = tokens_->Verify(minted->secret);
    ASSERT_TRUE(row.ok()) << row.status();
    EXPECT_EQ(row->subject(), "ada");
    Reopen();
  }
}

TEST_F(TokensTest, TheSecretIsNowhereInTheStore) {
  const auto minted = Mint("ada", {v1::VIEWER});
  ASSERT_TRUE(minted.ok());
  const std::string secret = minted->secret.substr(minted->secret.rfind('_') + 1);
  ASSERT_TRUE(store_
                  .Scan(Table::kTokens, "",
                        [&](absl::string_view, absl::string_view value) {
                          EXPECT_FALSE(absl::StrContains(value, secret));
                          return true;
                        })
                  .ok());
}

TEST_F(TokensTest, RefusesEveryOtherString) {
  const auto minted = Mint("ada", {v1::VIEWER});
  ASSERT_TRUE(minted.ok());
  std::string other = minted->secret;
  other.back() = other.back() == '0' ? '1' : '0';
  std::string why;
  for (const std::string& token :
       {std::string(), std::string("x"), std::string("rlhf__"), std::string("rlhf_a_b_c"), other, minted->secret + "0",
        minted->secret + std::string(10'000, '0'), absl::StrCat("rlhf_", minted->row.id(), "_")}) {
    const auto row = tokens_->Verify(token, &why);
    EXPECT_EQ(row.status().code(), absl::StatusCode::kUnauthenticated) << token.substr(0, 100);
    EXPECT_EQ(ReasonOf(row.status()), v1::UNAUTHENTICATED_CALLER);
    EXPECT_FALSE(why.empty());
  }
}

TEST_F(TokensTest, ATokenEndsWithItsTimeOrWhenRevoked) {
  const auto minted = Mint("ada", {v1::VIEWER}, absl::Minutes(10));
  ASSERT_TRUE(minted.ok());
  clock_.Advance(absl::Minutes(9));
  EXPECT_TRUE(tokens_->Verify(minted->secret).ok());
  clock_.Advance(absl::Minutes(1));
  std::string why;
  EXPECT_FALSE(tokens_->Verify(minted->secret, &why).ok());
  EXPECT_EQ(why, "expired_token");

  const auto second = Mint("ada", {v1::VIEWER});
  ASSERT_TRUE(second.ok());
  WriteBatch batch;
  ASSERT_TRUE(tokens_->PrepareRevoke(second->row.id(), &batch).ok());
  EXPECT_TRUE(tokens_->Verify(second->secret).ok()) << "not yet durable";
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  tokens_->ApplyRevoke(second->row.id());
  EXPECT_FALSE(tokens_->Verify(second->secret, &why).ok());
  EXPECT_EQ(why, "revoked_token");
  EXPECT_TRUE(absl::IsNotFound(tokens_->PrepareRevoke("nobody", &batch)));
}

TEST_F(TokensTest, NobodyIsAdminAndOverseer) {
  EXPECT_EQ(Mint("eve", {v1::ADMIN, v1::OVERSEER}).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Mint("bob", {v1::ADMIN}).ok());
  EXPECT_EQ(Mint("bob", {v1::OVERSEER}).status().code(), absl::StatusCode::kFailedPrecondition)
      << "also with two tokens";
  EXPECT_TRUE(Mint("carol", {v1::OVERSEER}).ok());
  // The admin's token has ended: the person may change sides.
  clock_.Advance(absl::Hours(2));
  EXPECT_TRUE(Mint("bob", {v1::OVERSEER}).ok());
}

TEST_F(TokensTest, BadRequestsAreRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Mint("", {v1::VIEWER}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Mint("a\nb", {v1::VIEWER}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Mint("ada", {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Mint("ada", {v1::TOKEN_ROLE_UNSPECIFIED}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Mint("ada", {v1::VIEWER}, absl::Seconds(-1)).status()));
}

TEST_F(TokensTest, AMintThatWasNotStoredNeverWorks) {
  Tokens::Request request;
  request.subject = "ada";
  request.roles = {v1::VIEWER};
  WriteBatch batch;
  const auto minted = tokens_->PrepareMint(request, &batch);
  ASSERT_TRUE(minted.ok());
  EXPECT_FALSE(tokens_->Verify(minted->secret).ok());
  tokens_->AbandonMint(minted->row.id());
  EXPECT_FALSE(tokens_->Verify(minted->secret).ok());
  EXPECT_TRUE(tokens_->List().empty());
}

TEST_F(TokensTest, PseudonymsAreStableAndDoNotShowTheName) {
  const std::string pseudonym = tokens_->Pseudonym("ada");
  EXPECT_FALSE(absl::StrContains(pseudonym, "ada"));
  EXPECT_NE(pseudonym, tokens_->Pseudonym("bob"));
  Reopen();
  EXPECT_EQ(pseudonym, tokens_->Pseudonym("ada"));
}

// Who runs the coordinator makes an admin where there is none, and nobody else: by a token of the bootstrap file.
class BootstrapTest : public TokensTest {
 protected:
  void SetUp() override {
    TokensTest::SetUp();
    oversight_ = MakeOversight(&loop_, &store_);
    ASSERT_TRUE(oversight_->Recover().ok());
    ExportAdminExpiry(tokens_.get(), &metrics_);
  }
  static std::string Token(char id, char secret) {
    return absl::StrCat("rlhf_", std::string(12, id), "_", std::string(64, secret));
  }
  // As at a start of the coordinator with the token in its file.
  absl::Status Start(const std::string& token) {
    EXPECT_TRUE(WriteFileDurably(dir_.File("token"), token + "\n").ok());
    return TakeUpBootstrapToken(tokens_.get(), oversight_.get(), &store_, dir_.File("token"), clock_.WallNow());
  }
  void TearDown() override {
    EXPECT_TRUE(oversight_->audit().Verify().intact()) << "what was given up left no gap";
    TokensTest::TearDown();
  }
  bool Works(const std::string& token) const { return tokens_->Verify(token).ok(); }
  size_t Audited() const { return oversight_->audit().All()->size(); }
  void Revoke(const std::string& id) {
    WriteBatch batch;
    ASSERT_TRUE(tokens_->PrepareRevoke(id, &batch).ok());
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    tokens_->ApplyRevoke(id);
  }
  std::string Gauge() const {
    const std::string text = metrics_.Text(), name = "\nrlhf_admin_token_expiry_timestamp_seconds ";
    const size_t at = text.find(name);
    if (at == std::string::npos) return "none";
    return text.substr(at + name.size(), text.find('\n', at + 1) - at - name.size());
  }

  ScratchDir dir_;
  ManualLoop loop_{&clock_};
  std::unique_ptr<Oversight> oversight_;
  MetricsRegistry metrics_{"coordinator"};
};

TEST_F(BootstrapTest, ATokenIsAcceptedWhereNobodyIsAdminAndNeverTwice) {
  const std::string first = Token('a', '1'), second = Token('b', '2');
  EXPECT_EQ(Gauge(), "0");
  ASSERT_TRUE(Start(first).ok());
  EXPECT_TRUE(Works(first));
  EXPECT_EQ(Audited(), 1u);
  EXPECT_EQ(tokens_->AdminUntil(), absl::FromUnixSeconds(absl::ToUnixSeconds(clock_.WallNow())) + absl::Hours(24 * 30));
  EXPECT_NE(Gauge(), "0");
  ASSERT_TRUE(Start(second).ok());
  EXPECT_FALSE(Works(second)) << "there is an admin";

  clock_.Advance(absl::Hours(24 * 31));
  EXPECT_EQ(Gauge(), "0");
  ASSERT_TRUE(Start(first).ok()) << "jobs go on without an admin";
  EXPECT_FALSE(Works(first)) << "it expired";
  ASSERT_TRUE(Start(second).ok());
  EXPECT_TRUE(Works(second));
  EXPECT_EQ(Audited(), 2u);
  Reopen();
  EXPECT_TRUE(Works(second)) << "durably";
}

TEST_F(BootstrapTest, ARevokedTokenDoesNotComeBackUnderAnotherId) {
  ASSERT_TRUE(Start(Token('a', '1')).ok());
  Revoke(std::string(12, 'a'));
  for (const std::string& token : {Token('a', '1'), Token('b', '1'), Token('a', '2')}) {
    ASSERT_TRUE(Start(token).ok());
    EXPECT_FALSE(Works(token)) << token;
  }
  EXPECT_EQ(tokens_->List().size(), 1u) << "no row was replaced";
  ASSERT_TRUE(Start("nonsense").ok());
  ASSERT_TRUE(Start(Token('b', '2')).ok());
  EXPECT_TRUE(Works(Token('b', '2')));
}

TEST_F(BootstrapTest, AnAdminOfOneProjectIsNone) {
  ASSERT_TRUE(Mint("ada", {v1::ADMIN}).ok());
  EXPECT_EQ(tokens_->AdminUntil(), absl::InfinitePast());
  ASSERT_TRUE(Start(Token('a', '1')).ok());
  EXPECT_TRUE(Works(Token('a', '1')));
}

TEST_F(BootstrapTest, OnlyTheFirstStartFailsForWantOfAToken) {
  EXPECT_TRUE(absl::IsInvalidArgument(Start("nonsense")));
  EXPECT_TRUE(absl::IsNotFound(
      TakeUpBootstrapToken(tokens_.get(), oversight_.get(), &store_, dir_.File("none"), clock_.WallNow())));
  ASSERT_TRUE(Mint("ada", {v1::VIEWER}).ok());
  EXPECT_TRUE(TakeUpBootstrapToken(tokens_.get(), oversight_.get(), &store_, dir_.File("none"), clock_.WallNow()).ok());
}

TEST_F(BootstrapTest, NobodyBecomesAdminAndOverseerByIt) {
  ASSERT_TRUE(Mint("bootstrap-admin", {v1::OVERSEER}).ok());
  ASSERT_TRUE(Start(Token('a', '1')).ok());
  EXPECT_FALSE(Works(Token('a', '1')));
}

TEST_F(BootstrapTest, TokensOfEveryRoleAreMadeAnewOnceTheyHaveExpired) {
  const std::string file = dir_.File("tokens.json");
  const auto start = [&] {
    EXPECT_TRUE(MintFirstTokens(tokens_.get(), oversight_.get(), &store_, file).ok());
    return *ReadFile(file);
  };
  const std::string first = start();
  EXPECT_EQ(start(), first);
  clock_.Advance(absl::Hours(24 * 366));
  const std::string second = start();
  EXPECT_NE(second, first);
  EXPECT_EQ(tokens_->List().size(), 8u);
  EXPECT_NE(tokens_->AdminUntil(), absl::InfinitePast());
  // Somebody is what the coordinator would make an admin of: it starts without one.
  clock_.Advance(absl::Hours(24 * 366));
  ASSERT_TRUE(Mint("admin", {v1::OVERSEER}).ok());
  EXPECT_EQ(start(), second);
  EXPECT_EQ(tokens_->List().size(), 9u);
  clock_.Advance(absl::Hours(2));  // nor is there room for the file
  EXPECT_TRUE(MintFirstTokens(tokens_.get(), oversight_.get(), &store_, dir_.File("no-folder/tokens.json")).ok());
  EXPECT_EQ(tokens_->List().size(), 9u);
  EXPECT_NE(start(), second) << "mended";
}

TEST(SecretFile, OnlyItsOwnerReadsIt) {
  ScratchDir dir;
  const std::string path = dir.File("tokens.json");
  ASSERT_TRUE(WriteSecretFile(path, "one").ok());
  ASSERT_TRUE(WriteSecretFile(path, "two").ok());
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600);
  EXPECT_EQ(*ReadFile(path), "two");
}

TEST(Projects, TheFleetAndStarSeeEverything) {
  Caller caller;
  caller.project = "blue";
  EXPECT_TRUE(CheckProject(caller, "blue").ok());
  const absl::Status refused = CheckProject(caller, "red");
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(refused), v1::PROJECT_NOT_ALLOWED);
  EXPECT_FALSE(CheckProject(caller, "*").ok());
  EXPECT_FALSE(CheckProject(Caller{}, "blue").ok()) << "no token, no project";
  caller.project = "*";
  EXPECT_TRUE(CheckProject(caller, "red").ok());
  Caller learner;
  learner.role = "learner";
  EXPECT_TRUE(CheckProject(learner, "red").ok());
}

TEST(Names, PathsStayInside) {
  for (const char* good : {"a", "a/b.json", "model-00001-of-00002.safetensors", "sub/.hidden"}) {
    EXPECT_TRUE(CheckRelativePath("path", good).ok()) << good;
  }
  for (const char* bad : {"", "/a", "../a", "a/../b", "a//b", "a/", ".a", "./a", "a/./b", "a\nb"}) {
    EXPECT_FALSE(CheckRelativePath("path", bad).ok()) << bad;
  }
  EXPECT_FALSE(CheckAlias("alias", "sha256:00").ok());
  EXPECT_FALSE(CheckAlias("alias", "stage:x").ok());
  EXPECT_TRUE(CheckAlias("alias", "team/model_v1.2").ok());
  EXPECT_FALSE(CheckName("project", "*").ok());
}

}  // namespace
}  // namespace rlhf::coordinator
