// The web listener: pages for people, on a port of its own, with the API's certificate.
//
// A person signs in with a token (POST /session); the browser gets an HttpOnly, SameSite=Strict cookie and never sees
// the token again. Every writing request must repeat the session's CSRF token. Pages are files without a build step,
// served under a Content-Security-Policy that allows nothing from elsewhere, and call the service's own methods as JSON
// (gateway.h), whose handlers run on the event loop.
//
// To add a page: put NAME.html and NAME.js into static/ and list them in coordinator/web.cmake; link the page in
// static/app.js (kPages). Fetch data with `await rpc("JobService/ListJobs", {...})` from app.js, which adds the CSRF
// token and sends the person to the sign-in page when the session is over. If the page calls a method that no page
// called before, list it in gateway.cc; its roles are those of auth/method_table.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/rpc_server.h"

namespace rlhf::coordinator {

struct WebServerOptions {
  std::string address;                 // "127.0.0.1:0" binds a free port
  bool insecure = false;               // plain HTTP, everybody is signed in as "insecure"
  std::string cert_file, key_file;     // PEM; read again when they change, without a restart
  std::shared_ptr<grpc::Channel> api;  // the API listener's in-process channel
  Authorizer authorizer;               // the API listener's
  // Who a token belongs to; Unauthenticated when to nobody.
  std::function<absl::StatusOr<Caller>(const std::string& token)> sign_in;
  std::string artifact_root;  // where models' tokenizers are
  const Clock* clock = nullptr;
};

class WebServer {
 public:
  // Unavailable when the port is taken; InvalidArgument for files that are no certificate and key.
  static absl::StatusOr<std::unique_ptr<WebServer>> Start(WebServerOptions options);
  virtual ~WebServer() = default;  // stops and joins
  virtual int port() const = 0;
};

}  // namespace rlhf::coordinator
