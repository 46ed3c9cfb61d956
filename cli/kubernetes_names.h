// Checks of what goes into manifests, so that nothing but a name can be in a name's place.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/kubernetes.h"

namespace rlhf::cli {

// InvalidArgument naming the flag: a namespace is a DNS label (RFC 1123), the name of a Secret a DNS subdomain.
absl::Status CheckNamespace(const std::string& name_space);
absl::Status CheckSecretName(const std::string& name);
// The namespace, and registry and tags as references to images have them.
absl::Status CheckOwnFleet(const OwnFleet& fleet);

}  // namespace rlhf::cli
