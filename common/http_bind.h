// Where an HTTP listener of this process is bound.
#pragma once

#include "common/host_port.h"

namespace httplib {
class Server;
}

namespace rlhf {

// As gRPC's listeners: 0.0.0.0 and :: are every address of this host, those of IPv6 too where it has any. A port that
// another process holds is an error, never shared. Returns the port, or -1. Before the server listens.
int BindHttp(const HostPort& address, httplib::Server* server);

}  // namespace rlhf
