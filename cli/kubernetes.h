// Kubernetes manifests that rlhfctl prints, for `kubectl apply -f -`.
#pragma once

#include <map>
#include <string>

namespace rlhf::cli {

// A Secret as YAML, beginning with "---". `data` is not yet encoded.
std::string SecretManifest(const std::string& name, const std::string& name_space,
                           const std::map<std::string, std::string>& data);

struct OwnFleet {
  std::string name_space = "rlhf";
  std::string registry = "registry.example.com/rlhf";  // images are REGISTRY/ROLE:TAG
  std::string tag = "0.1.0-cuda13";                    // of learners and rollout workers
  std::string cli_tag = "0.1.0-cpu";
  int learners = 1;
  int rollout_workers = 4;
};
// A job with a fleet of its own: ConfigMaps and a JobSet (jobset.sigs.k8s.io), made from deploy/components/jobset.
// `name` is the job's, `job_yaml` its file.
std::string OwnFleetManifest(const std::string& name, const std::string& job_yaml, const OwnFleet& fleet);

}  // namespace rlhf::cli
