#include "coordinator/web/web_server.h"

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include <httplib.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/bounded_http.h"
#include "common/build_version.h"
#include "common/host_port.h"
#include "common/http_bind.h"
#include "common/process.h"
#include "common/status_util.h"
#include "common/task_queue.h"
#include "coordinator/auth/secrets.h"
#include "coordinator/web/assets.h"
#include "coordinator/web/gateway.h"
#include "coordinator/web/sessions.h"
#include "coordinator/web/tls_files.h"
#include "coordinator/web/token_texts.h"

namespace rlhf::coordinator {
namespace {

constexpr int kThreads = 16;
constexpr size_t kWaitingConnections = 64;
constexpr size_t kLargestBody = 1 << 20, kLargestHead = 64 << 10;
const HttpBounds kBounds{.request_bytes = kLargestHead + kLargestBody,
                         .silence = absl::Seconds(5),
                         .request = absl::Seconds(20),
                         .requests = 100};
constexpr absl::Duration kCallTimeout = absl::Seconds(15);  // a rater's wait for a task is at most 10 s
constexpr char kJson[] = "application/json";
constexpr char kSecureCookie[] = "__Host-rlhf-session";

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

void SetError(const absl::Status& status, httplib::Response* response) {
  response->status = HttpStatusOf(status.code());
  const nlohmann::json body = {{"code", absl::StatusCodeToString(status.code())},
                               {"reason", v1::ErrorReason_Name(ReasonOf(status))},
                               {"message", std::string(status.message())}};
  response->set_content(body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), kJson);
}

std::string CookieOf(const httplib::Request& request, absl::string_view name) {
  for (absl::string_view part : absl::StrSplit(request.get_header_value("Cookie"), ';')) {
    part = absl::StripAsciiWhitespace(part);
    if (absl::ConsumePrefix(&part, name) && absl::ConsumePrefix(&part, "=")) return std::string(part);
  }
  return "";
}

class HttplibWebServer final : public WebServer {
 public:
  explicit HttplibWebServer(WebServerOptions options)
      : options_(std::move(options)),
        sessions_(options_.clock),
        gateway_(options_.api, options_.insecure ? Authorizer() : options_.authorizer),
        token_texts_(options_.artifact_root),
        certificate_(options_.cert_file, options_.key_file, options_.clock) {}
  ~HttplibWebServer() override {
    if (server_ != nullptr) server_->stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen() {
    RLHF_ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(options_.address, "web address"));
    RLHF_RETURN_IF_ERROR(MakeServer());
    Configure();
    Route();
    port_ = BindHttp(address, server_.get());
    if (port_ <= 0) {
      return absl::UnavailableError(absl::StrCat("cannot serve pages on ", options_.address,
                                                 ": the port is taken or the address is not of this host"));
    }
    thread_ = std::thread([this] {
      server_->listen_after_bind();
      ended_ = true;
    });
    // stop() of a server that does not run yet does nothing, and joining would then wait for ever.
    while (!server_->is_running() && !ended_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return absl::OkStatus();
  }
  int port() const override { return port_; }

 private:
  absl::Status MakeServer() {
    if (options_.insecure) {
      RLHF_ASSIGN_OR_RETURN(insecure_csrf_, RandomHex(32));
      server_ = std::make_unique<BoundedHttpServer<httplib::Server>>(kBounds);
      return absl::OkStatus();
    }
    RLHF_RETURN_IF_ERROR(certificate_.Load());
    server_ = std::make_unique<BoundedHttpServer<httplib::SSLServer>>(kBounds, [this](SSL_CTX& context) {
      SSL_CTX_set_min_proto_version(&context, TLS1_2_VERSION);
      certificate_.Attach(&context);
      return true;
    });
    return server_->is_valid() ? absl::OkStatus() : absl::InternalError("OpenSSL refused the web listener's settings");
  }

  void Configure() {
    server_->new_task_queue = [] { return new BoundedTaskQueue(kThreads, kWaitingConnections); };
    server_->set_payload_max_length(kLargestBody);
    server_->set_default_headers({
        {"Content-Security-Policy",
         "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
         "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
        {"Cache-Control", "no-store"},
    });
  }

  void Route() {
    for (const WebAsset& asset : WebAssets()) {
      server_->Get(absl::StrReplaceAll(asset.path, {{".", "\\."}}),
                   [&asset](const httplib::Request&, httplib::Response& response) {
                     response.set_content(asset.content.data(), asset.content.size(), asset.content_type);
                   });
    }
    server_->Get("/session", [this](const httplib::Request& request, httplib::Response& response) {
      if (const auto session = SessionOf(request, &response)) Describe(*session, &response);
    });
    server_->Post("/session",
                  [this](const httplib::Request& request, httplib::Response& response) { SignIn(request, &response); });
    server_->Delete("/session", [this](const httplib::Request& request, httplib::Response& response) {
      const auto session = SessionOf(request, &response);
      if (!session || !CheckCsrf(request, *session, &response)) return;
      sessions_.End(session->id);
      SetCookie("", 0, &response);
      response.set_content("{}", kJson);
    });
    server_->Post("/api/web/TokenTexts", [this](const httplib::Request& request, httplib::Response& response) {
      DescribeTokens(request, &response);
    });
    for (const std::string& method : WebMethods()) {
      server_->Post(absl::StrReplaceAll(absl::StrCat("/api", method), {{".", "\\."}}),
                    [this, &method](const httplib::Request& request, httplib::Response& response) {
                      Call(method, request, &response);
                    });
    }
  }

  void Call(const std::string& method, const httplib::Request& request, httplib::Response* response) {
    const auto session = SessionOf(request, response);
    if (!session || !CheckCsrf(request, *session, response)) return;
    const auto answer = gateway_.Call(method, request.body, session->token, kCallTimeout);
    if (!answer.ok()) return SetError(answer.status(), response);
    response->set_content(*answer, kJson);
  }

  // {"job_id": …, "tokens": [ids]} to {"texts": [one a token]}, for whoever may see the job.
  void DescribeTokens(const httplib::Request& request, httplib::Response* response) {
    const auto session = SessionOf(request, response);
    if (!session || !CheckCsrf(request, *session, response)) return;
    const auto body = nlohmann::json::parse(request.body, nullptr, /*allow_exceptions=*/false);
    std::vector<int32_t> tokens;
    std::string job_id;
    try {
      tokens = body.at("tokens").get<std::vector<int32_t>>();
      job_id = body.at("job_id").get<std::string>();
    } catch (const nlohmann::json::exception& error) {
      return SetError(absl::InvalidArgumentError(absl::StrCat("expected job_id and tokens: ", error.what())), response);
    }
    const auto job = gateway_.Call("/rlhf.v1.JobService/GetJob", nlohmann::json{{"job_id", job_id}}.dump(),
                                   session->token, kCallTimeout);
    if (!job.ok()) return SetError(job.status(), response);
    const auto texts = token_texts_.Of(SampledModelOf(*job), tokens);
    if (!texts.ok()) return SetError(texts.status(), response);
    const nlohmann::json answer = {{"texts", *texts}};
    response->set_content(answer.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), kJson);
  }

  // Nothing, with a 401 in the response, when nobody is signed in.
  std::optional<WebSession> SessionOf(const httplib::Request& request, httplib::Response* response) {
    if (options_.insecure) return WebSession{"", insecure_csrf_, ""};
    std::optional<WebSession> session = sessions_.Find(CookieOf(request, kSecureCookie));
    if (session && !options_.sign_in(session->token).ok()) {
      sessions_.End(session->id);
      session.reset();
    }
    if (!session) {
      SetError(WithReason(absl::UnauthenticatedError("sign in with a token (rlhfctl token create makes one)"),
                          v1::UNAUTHENTICATED_CALLER),
               response);
    }
    return session;
  }

  bool CheckCsrf(const httplib::Request& request, const WebSession& session, httplib::Response* response) {
    if (SecretsEqual(request.get_header_value("X-CSRF-Token"), session.csrf)) return true;
    SetError(absl::PermissionDeniedError("expected the session's token in the header X-CSRF-Token: reload the page"),
             response);
    return false;
  }

  void SignIn(const httplib::Request& request, httplib::Response* response) {
    // A form of another site cannot send this type without asking first, which is never granted.
    if (request.get_header_value("Content-Type").rfind(kJson, 0) != 0) {
      return SetError(absl::InvalidArgumentError("expected Content-Type application/json"), response);
    }
    // Nothing in it is nested: what goes deeper is dropped as it is read, so that nobody unknown can exhaust the stack.
    const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth <= 1; };
    const auto body = nlohmann::json::parse(request.body, shallow, /*allow_exceptions=*/false);
    const auto found = body.is_object() ? body.find("token") : body.end();
    const std::string token = found != body.end() && found->is_string() ? found->get<std::string>() : "";
    if (options_.insecure) return Describe(WebSession{"", insecure_csrf_, ""}, response);
    if (const auto caller = options_.sign_in(token); !caller.ok()) return SetError(caller.status(), response);
    const auto session = sessions_.Begin(token);
    if (!session.ok()) return SetError(session.status(), response);
    SetCookie(session->id, absl::ToInt64Seconds(WebSessions::kLongest), response);
    Describe(*session, response);
  }

  static void SetCookie(const std::string& value, int64_t seconds, httplib::Response* response) {
    response->set_header("Set-Cookie", absl::StrCat(kSecureCookie, "=", value, "; Path=/; Secure; HttpOnly; ",
                                                    "SameSite=Strict; Max-Age=", seconds));
  }

  void Describe(const WebSession& session, httplib::Response* response) {
    nlohmann::json body = {{"csrf", session.csrf}, {"insecure", options_.insecure}, {"version", BuildVersion()}};
    if (options_.insecure) {
      body["subject"] = "insecure";
      body["project"] = "*";
      body["roles"] = {"viewer", "submitter", "rater", "overseer", "admin"};
    } else {
      const auto caller = options_.sign_in(session.token);
      if (!caller.ok()) return SetError(caller.status(), response);
      body["subject"] = caller->subject;
      body["project"] = caller->project;
      body["roles"] = caller->roles;
    }
    response->set_content(body.dump(), kJson);
  }

  const WebServerOptions options_;
  WebSessions sessions_;
  Gateway gateway_;
  TokenTexts token_texts_;
  ReloadingCertificate certificate_;
  std::string insecure_csrf_;
  std::unique_ptr<httplib::Server> server_;
  std::thread thread_;
  std::atomic<bool> ended_{false};
  int port_ = -1;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WebServer>> WebServer::Start(WebServerOptions options) {
  auto server = std::make_unique<HttplibWebServer>(std::move(options));
  RLHF_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace rlhf::coordinator
