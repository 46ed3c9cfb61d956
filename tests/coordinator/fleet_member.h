// A member of a coordinator's fleet, as the coordinator knows it.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include "common/process.h"
#include "coordinator/fleet.h"
#include "tests/coordinator/manual_loop.h"

namespace rlhf::coordinator {

// Its session.
inline std::string RegisterMember(Fleet* fleet, ManualLoop* loop, v1::Role role, const std::string& instance) {
  v1::RegisterRequest request;
  request.set_role(role);
  request.set_instance_id(instance);
  request.set_address("nowhere:1");
  request.set_protocol_version(kProtocolVersion);
  request.set_slots(64);
  std::string session;
  fleet->Register(request, [&](absl::StatusOr<v1::RegisterResponse> response) {
    ASSERT_TRUE(response.ok()) << response.status();
    session = response->session_id();
  });
  loop->Run();
  return session;
}

}  // namespace rlhf::coordinator
