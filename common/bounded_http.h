// cpp-httplib's servers with bounds that the library lacks: it takes bodies without a length, headers without end and
// packed bodies into memory as they come, and gives a request as long as each byte of it comes in time.
#pragma once

#include <openssl/ssl.h>

#include <cstddef>
#include <functional>
#include <type_traits>
#include <utility>

#include <httplib.h>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"

namespace rlhf {

struct HttpBounds {
  size_t request_bytes = 128 << 10;           // of one request, head and body
  absl::Duration idle = absl::Seconds(1);     // until a request begins: a kept connection holds a thread meanwhile
  absl::Duration silence = absl::Seconds(1);  // within one, and within a handshake
  absl::Duration request = absl::Seconds(5);  // from its first byte to its last; for a handshake, too
  absl::Duration answer = absl::Minutes(2);   // for the peer to take an answer, which it has to go on taking
  int requests = 1;                           // a connection
};

// Serves one connection, and closes it: at once when a bound is passed, for what is left of the request could be taken
// for another. tls: null for plain. A request that is under way when `stopping` says so has a second more, a connection
// without one nothing. `request` is Server::process_request.
void ServeBounded(int fd, SSL_CTX* tls, const HttpBounds& bounds, absl::FunctionRef<bool()> stopping,
                  absl::FunctionRef<bool(httplib::Stream& stream, bool last, bool* closed)> request);

// Server: httplib::Server or httplib::SSLServer. Packed bodies are read as the bytes that they are, and nobody is told
// to go on ("100 Continue"). The library's own timeouts and numbers of requests are only what it tells clients.
template <typename Server>
class BoundedHttpServer final : public Server {
 public:
  template <typename... Arguments>
  explicit BoundedHttpServer(const HttpBounds& bounds, Arguments&&... arguments)
      : Server(std::forward<Arguments>(arguments)...), bounds_(bounds) {
    this->set_keep_alive_timeout(absl::ToInt64Seconds(bounds.idle));
    this->set_keep_alive_max_count(static_cast<size_t>(bounds.requests));
  }

 private:
  bool process_and_close_socket(socket_t fd) override {
    SSL_CTX* tls = nullptr;
    if constexpr (std::is_base_of_v<httplib::SSLServer, Server>) tls = this->ssl_context();
    const std::function<void(httplib::Request&)> as_it_is = [](httplib::Request& request) {
      request.headers.erase("Content-Encoding");
      request.headers.erase("Expect");  // its answer would count as the request's, which has more time than a body
    };
    ServeBounded(
        fd, tls, bounds_, [this] { return this->svr_sock_ == INVALID_SOCKET; },
        [&](httplib::Stream& stream, bool last, bool* closed) {
          return this->process_request(stream, last, *closed, as_it_is);
        });
    return true;
  }

  const HttpBounds bounds_;
};

}  // namespace rlhf
