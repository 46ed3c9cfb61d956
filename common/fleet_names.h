// How members of the fleet know each other, beside the SPIFFE ids of tls.h.
#pragma once

#include <string>

namespace rlhf {

// The DNS name by which members of the fleet verify each other ("learner.fleet.rlhf.internal"; without a role
// "fleet.rlhf.internal", any member): what counts is who the peer is, since its address (a pod's) may be a new one
// every day. Every certificate of the fleet carries both.
std::string FleetServerName(const std::string& role);
// A certificate speaks for its own instance, and for the members of the set it names: that of "learner" for
// "learner-0".
bool SpeaksFor(const std::string& certificate_instance, const std::string& instance);

}  // namespace rlhf
