// What a run of the load generator is told.
#pragma once

#include <cstdint>
#include <string>

namespace rlhf::bench {

struct LoadOptions {
  int workers = 1000;  // simulated rollout workers, each with its own connection and certificate
  int reward_servers = 2;
  double samples_per_second = 2000;  // over all workers: each leases and submits on a schedule
  int samples_per_lease = 1;         // and per SubmitSamples
  int prompt_tokens = 32;
  int response_tokens = 200;
  int samples_per_step = 4000;  // of the PPO job that is simulated; max_policy_lag 1
  int checkpoint_every = 5;     // steps
  double warmup_seconds = 5;
  double seconds = 20;            // measured
  uint32_t protocol_version = 0;  // 0: this build's
  bool insecure = false;          // plaintext instead of mutual TLS
  std::string coordinator;        // binary; default: beside this program
  std::string store;              // a postgresql:// URI: two coordinators, one stands by; default: SQLite, one
  std::string dir;                // scratch folder; default: a temporary one, removed at the end
  std::string job_id;             // of a job that `dir` has already; default: one is submitted
  std::string evidence_dir;       // where the fleet notes what it was told, for `rlhfctl ledger --check --evidence`
  bool leave_running = false;     // do not cancel the job at the end: the folder is what is wanted
  bool limits = false;            // also measure the disk and gRPC alone, and state the shares
};

}  // namespace rlhf::bench
