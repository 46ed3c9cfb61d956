#include "common/http_bind.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <vector>

#include <httplib.h>

namespace rlhf {

int BindHttp(const HostPort& address, httplib::Server* server) {
  // In place of the library's, which share a port.
  server->set_socket_options([](socket_t socket) {
    const int yes = 1, no = 0;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    setsockopt(socket, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));  // nothing to a socket of IPv4
  });
  const bool any = address.host == "0.0.0.0" || address.host == "::";
  for (const std::string& host : any ? std::vector<std::string>{"::", "0.0.0.0"} : std::vector{address.host}) {
    const int port = address.port == 0                          ? server->bind_to_any_port(host)
                     : server->bind_to_port(host, address.port) ? address.port
                                                                : -1;
    if (port > 0) return port;
  }
  return -1;
}

}  // namespace rlhf
