// The web listener of a real coordinator, over TLS: sign-in, CSRF, roles, what is not served, certificate reload.
#include <httplib.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coordinator/web/sessions.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"
#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class WebTest : public CoordinatorFixture {
 protected:
  // A browser that has the CA, with its cookie and CSRF token once it has signed in.
  struct Browser {
    explicit Browser(int port, const std::string& ca_file) : client("localhost", port) {
      client.set_ca_cert_path(ca_file.c_str());
      client.enable_server_certificate_verification(true);
      client.set_read_timeout(20, 0);
    }
    httplib::Headers Headers() const { return {{"Cookie", cookie}, {"X-CSRF-Token", csrf}}; }
    httplib::Result SignIn(const std::string& token) {
      auto result = client.Post("/session", json{{"token", token}}.dump(), "application/json");
      if (result && result->status == 200) {
        const std::string header = result->get_header_value("Set-Cookie");
        cookie = header.substr(0, header.find(';'));
        csrf = json::parse(result->body)["csrf"];
      }
      return result;
    }
    httplib::Result Call(const std::string& method, const json& request = json::object()) {
      return client.Post(("/api/rlhf.v1." + method).c_str(), Headers(), request.dump(), "application/json");
    }
    httplib::SSLClient client;
    std::string cookie, csrf;
  };
  Browser NewBrowser() { return Browser(server_->ports().at("web"), certificates_.CaOnly().ca_file); }
};

TEST_F(WebTest, PagesAreServedUnderAStrictPolicy) {
  Browser browser = NewBrowser();
  for (const char* path : {"/", "/app.js", "/style.css", "/signin", "/samples"}) {
    const auto page = browser.client.Get(path);
    ASSERT_TRUE(page) << path << ": " << httplib::to_string(page.error());
    EXPECT_EQ(page->status, 200) << path;
    EXPECT_THAT(page->get_header_value("Content-Security-Policy"), HasSubstr("default-src 'none'"));
    EXPECT_THAT(page->get_header_value("Content-Security-Policy"), HasSubstr("frame-ancestors 'none'"));
    EXPECT_EQ(page->get_header_value("X-Content-Type-Options"), "nosniff");
    EXPECT_THAT(page->body, testing::Not(HasSubstr("https://"))) << path << " loads something from elsewhere";
  }
  EXPECT_EQ(browser.client.Get("/../../etc/passwd")->status, 404);
}

TEST_F(WebTest, ASessionBeginsWithATokenAndEndsWithASignOut) {
  Browser browser = NewBrowser();
  EXPECT_EQ(browser.client.Get("/session")->status, 401);
  EXPECT_EQ(browser.Call("JobService/ListJobs")->status, 401);
  EXPECT_EQ(browser.SignIn("rlhf_0123_4567")->status, 401);
  EXPECT_EQ(browser.client.Post("/session", "[1]", "application/json")->status, 401);

  const auto signed_in = browser.SignIn(tokens_.at("submitter"));
  ASSERT_EQ(signed_in->status, 200) << signed_in->body;
  const std::string cookie = signed_in->get_header_value("Set-Cookie");
  for (const char* attribute : {"__Host-", "HttpOnly", "Secure", "SameSite=Strict", "Path=/"})
    EXPECT_THAT(cookie, HasSubstr(attribute));
  EXPECT_THAT(cookie + signed_in->body, testing::Not(HasSubstr(tokens_.at("submitter"))));
  EXPECT_EQ(json::parse(signed_in->body)["subject"], "submitter");

  const auto jobs = browser.Call("JobService/ListJobs", {{"page", {{"page_size", 5}}}});
  EXPECT_EQ(jobs->status, 200) << jobs->body;
  EXPECT_TRUE(json::parse(jobs->body)["jobs"].is_array());

  EXPECT_EQ(browser.client.Delete("/session", browser.Headers())->status, 200);
  EXPECT_EQ(browser.Call("JobService/ListJobs")->status, 401);
}

TEST_F(WebTest, NothingIsDoneWithoutTheCsrfToken) {
  Browser browser = NewBrowser();
  ASSERT_EQ(browser.SignIn(tokens_.at("overseer"))->status, 200);
  const std::string csrf = browser.csrf;
  for (const std::string& wrong : {std::string(), std::string(64, '0'), csrf.substr(1)}) {
    browser.csrf = wrong;
    EXPECT_EQ(browser.Call("OversightService/HaltService", {{"reason", "forged"}})->status, 403);
    EXPECT_EQ(browser.client.Delete("/session", browser.Headers())->status, 403);
  }
  browser.csrf = csrf;
  const auto state = browser.Call("OversightService/GetServiceState");
  EXPECT_FALSE(json::parse(state->body)["halted"].get<bool>());
  // What a form of another site can send.
  EXPECT_EQ(
      browser.client.Post("/session", "token=" + tokens_.at("overseer"), "application/x-www-form-urlencoded")->status,
      400);
}

TEST_F(WebTest, RolesAreThoseOfTheApiAndSomeMethodsAreNotForBrowsers) {
  Browser submitter = NewBrowser(), admin = NewBrowser();
  ASSERT_EQ(submitter.SignIn(tokens_.at("submitter"))->status, 200);
  ASSERT_EQ(admin.SignIn(tokens_.at("admin"))->status, 200);
  const auto refused = submitter.Call("OversightService/HaltService", {{"reason", "test"}});
  EXPECT_EQ(refused->status, 403);
  EXPECT_EQ(json::parse(refused->body)["reason"], "ROLE_NOT_ALLOWED");
  EXPECT_EQ(submitter.Call("JobService/ListJobs", {{"project", "other"}})->status, 403);
  EXPECT_EQ(admin.Call("AdminService/ListWorkers")->status, 200);
  EXPECT_EQ(admin.Call("AdminService/CreateToken", {{"subject", "x"}, {"roles", {"ADMIN"}}})->status, 404);
}

TEST_F(WebTest, BadRequestsSayWhatIsWrong) {
  Browser browser = NewBrowser();
  ASSERT_EQ(browser.SignIn(tokens_.at("submitter"))->status, 200);
  const auto unknown_field = browser.Call("JobService/ListJobs", {{"nonsense", 1}});
  EXPECT_EQ(unknown_field->status, 400);
  EXPECT_THAT(unknown_field->body, HasSubstr("nonsense"));
  EXPECT_EQ(browser.Call("JobService/GetJob", {{"job_id", "no-such-job"}})->status, 404);
  const auto tokens = browser.client.Post("/api/web/TokenTexts", browser.Headers(), "{}", "application/json");
  EXPECT_EQ(tokens->status, 400);
  const auto large = browser.client.Post("/api/rlhf.v1.JobService/GetJob", browser.Headers(), std::string(2 << 20, ' '),
                                         "application/json");
  EXPECT_TRUE(!large || large->status == 413);
}

// Nobody has to be signed in for it: memory would be full of what never ends, or of what was packed.
TEST_F(WebTest, BodiesWithoutEndAreCutOffAndPackedOnesStayPacked) {
  Browser browser = NewBrowser();
  size_t sent = 0;
  const std::string piece(64 << 10, 'a');
  const auto endless = browser.client.Post(
      "/session",
      [&](size_t /*offset*/, httplib::DataSink& sink) {
        if (sent >= 64u << 20 || !sink.write(piece.data(), piece.size())) return false;
        sent += piece.size();
        return true;
      },
      "application/json");
  EXPECT_LT(sent, 24u << 20) << (endless ? endless->status : 0);

  const std::string packed = [] {
    const std::string zeros(1 << 20, '\0');
    std::string out(1 << 20, '\0');
    z_stream stream{};
    EXPECT_EQ(deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<uInt>(out.size());
    for (int i = 1; i <= 512; ++i) {
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(zeros.data()));
      stream.avail_in = static_cast<uInt>(zeros.size());
      deflate(&stream, i == 512 ? Z_FINISH : Z_NO_FLUSH);
    }
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
  }();
  ASSERT_LT(packed.size(), 1u << 20);
  const auto most_resident = [](const char* field) {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
      if (line.rfind(field, 0) == 0) return std::stoll(line.substr(line.find(':') + 1)) / 1024;
    }
    return 0LL;
  };
  std::ofstream("/proc/self/clear_refs") << "5";  // the most begins again
  const auto before = most_resident("VmRSS");
  Browser another = NewBrowser();
  const auto answer =
      another.client.Post("/session", httplib::Headers{{"Content-Encoding", "gzip"}}, packed, "application/json");
  ASSERT_TRUE(answer) << httplib::to_string(answer.error());
  EXPECT_EQ(answer->status, 401) << "no token in it";
  EXPECT_LT(most_resident("VmHWM") - before, 300);
  EXPECT_EQ(NewBrowser().SignIn(tokens_.at("submitter"))->status, 200);
}

TEST_F(WebTest, ARevokedTokenEndsItsSessions) {
  v1::CreateTokenRequest create;
  create.set_subject("ada");
  create.add_roles(v1::VIEWER);
  const auto stub = v1::AdminService::NewStub(Api("admin"));
  const auto token = Call(stub, &v1::AdminService::Stub::CreateToken, create);
  ASSERT_TRUE(token.ok()) << token.status();
  Browser browser = NewBrowser();
  ASSERT_EQ(browser.SignIn(token->secret())->status, 200);
  EXPECT_EQ(browser.Call("JobService/ListJobs")->status, 200);
  v1::RevokeTokenRequest revoke;
  revoke.set_id(token->token().id());
  ASSERT_TRUE(Call(stub, &v1::AdminService::Stub::RevokeToken, revoke).ok());
  EXPECT_EQ(browser.Call("JobService/ListJobs")->status, 401);
}

TEST_F(WebTest, TheFirstTokenComesFromAFile) {
  const std::string token = "rlhf_0123456789ab_" + std::string(64, 'c');
  CoordinatorConfig config = Config();
  config.data_dir = dir_.File("second");
  config.artifact_root = dir_.File("second-artifacts");
  config.bootstrap_tokens.clear();
  config.bootstrap_token_file = dir_.File("token");
  const absl::Status missing = CoordinatorServer::Start(config, Clock::Real()).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr("rlhfctl token create --bootstrap"));
  ASSERT_TRUE(WriteFileDurably(config.bootstrap_token_file, "nonsense").ok());
  EXPECT_EQ(CoordinatorServer::Start(config, Clock::Real()).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(WriteFileDurably(config.bootstrap_token_file, token + "\n").ok());
  auto second = CoordinatorServer::Start(config, Clock::Real());
  ASSERT_TRUE(second.ok()) << second.status();
  Browser browser((*second)->ports().at("web"), certificates_.CaOnly().ca_file);
  const auto signed_in = browser.SignIn(token);
  ASSERT_EQ(signed_in->status, 200) << signed_in->body;
  EXPECT_EQ(json::parse(signed_in->body)["roles"], json({"admin"}));
  // Another file changes nothing: there is a token.
  second->reset();
  ASSERT_TRUE(WriteFileDurably(config.bootstrap_token_file, "rlhf_ba9876543210_" + std::string(64, 'd')).ok());
  second = CoordinatorServer::Start(config, Clock::Real());
  ASSERT_TRUE(second.ok()) << second.status();
  Browser other((*second)->ports().at("web"), certificates_.CaOnly().ca_file);
  EXPECT_EQ(other.SignIn("rlhf_ba9876543210_" + std::string(64, 'd'))->status, 401);
  EXPECT_EQ(other.SignIn(token)->status, 200);
  // Nor does none.
  second->reset();
  std::filesystem::remove(config.bootstrap_token_file);
  second = CoordinatorServer::Start(config, Clock::Real());
  ASSERT_TRUE(second.ok()) << second.status();
  Browser third((*second)->ports().at("web"), certificates_.CaOnly().ca_file);
  EXPECT_EQ(third.SignIn(token)->status, 200);
}

TEST(WebSessionsTest, EndByAgeByIdlenessAndByNumber) {
  FakeClock clock;
  WebSessions sessions(&clock);
  const auto first = sessions.Begin("token");
  ASSERT_TRUE(first.ok());
  clock.Advance(WebSessions::kIdle);
  EXPECT_TRUE(sessions.Find(first->id).has_value());
  clock.Advance(WebSessions::kIdle + absl::Seconds(1));
  EXPECT_FALSE(sessions.Find(first->id).has_value());

  const auto second = sessions.Begin("token");
  for (absl::Duration past; past <= WebSessions::kLongest; past += absl::Minutes(30)) {
    EXPECT_TRUE(sessions.Find(second->id).has_value());
    clock.Advance(absl::Minutes(30));
  }
  EXPECT_FALSE(sessions.Find(second->id).has_value());

  const auto oldest = sessions.Begin("token");
  clock.Advance(absl::Seconds(1));
  for (size_t i = 0; i < WebSessions::kMost; ++i) ASSERT_TRUE(sessions.Begin("token").ok());
  EXPECT_FALSE(sessions.Find(oldest->id).has_value());
}

}  // namespace
}  // namespace rlhf::coordinator
