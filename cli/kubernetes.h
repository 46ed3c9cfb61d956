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
// What a job's objects, and the instances of its fleet, are named by: the job's name, cut where it is long, and eight
// digits of a digest of what the job says and of `request_id`. So the same job is the same object, whoever prints it
// how often, another one never is, and `request_id` tells apart runs of one file. A DNS label, of at most 43
// characters: what Kubernetes makes of it for pods stays within 63.
std::string FleetName(const std::string& job, const std::string& job_yaml, const std::string& request_id);

// A job with a fleet of its own: ConfigMaps and a JobSet (jobset.sigs.k8s.io), made from deploy/components/jobset.
// `name` is FleetName's, `job_yaml` the job's file.
std::string OwnFleetManifest(const std::string& name, const std::string& job_yaml, const OwnFleet& fleet);

}  // namespace rlhf::cli
