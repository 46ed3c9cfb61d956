// A member of a coordinator's fleet, as the coordinator knows it.
#pragma once

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "artifact/sample_id.h"
#include "common/process.h"
#include "coordinator/fleet.h"
#include "coordinator/sampling.h"
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

// What a rollout worker is leased now, without waiting.
inline std::vector<v1::PromptLease> LeaseNow(Sampling* sampling, ManualLoop* loop, const std::string& session,
                                             int most) {
  v1::LeasePromptsRequest request;
  request.set_session_id(session);
  request.set_max_samples(most);
  std::vector<v1::PromptLease> leases;
  sampling->LeasePrompts(request, [&](absl::StatusOr<v1::LeasePromptsResponse> response) {
    ASSERT_TRUE(response.ok()) << response.status();
    leases.assign(response->leases().begin(), response->leases().end());
  });
  sampling->Tick();  // ends the poll when there is nothing
  loop->Run();
  return leases;
}

// The answer to a lease's sample, without tokens.
inline v1::Sample AnswerOf(const v1::PromptLease& lease, const v1::SampleLease& sample) {
  v1::Sample answer;
  *answer.mutable_id() = artifact::SampleIdOf(lease, sample.index());
  answer.set_attempt(sample.attempt());
  *answer.mutable_version_low() = lease.policy().version();
  return answer;
}

}  // namespace rlhf::coordinator
