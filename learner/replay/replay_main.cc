// rlhf-replay: one process a rank, as in the job, on loopback.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "common/process.h"
#include "common/status_util.h"
#include "learner/replay/replay.h"
#include "model/libtorch.h"
#include "model/tensor_memory.h"

namespace {

constexpr absl::Duration kTimeout = absl::Minutes(10);

absl::StatusOr<std::unique_ptr<rlhf::learner::Collective>> Join(int rank, int world, const int ports[2],
                                                                std::unique_ptr<rlhf::learner::Rendezvous>* hosted) {
  if (world == 1) return rlhf::learner::MakeSingleRank();
  int port = 0;
  if (rank == 0) {
    RLHF_ASSIGN_OR_RETURN(*hosted, rlhf::learner::Rendezvous::Host("127.0.0.1", kTimeout));
    port = (*hosted)->port();
    for (int other = 1; other < world; ++other) {
      if (write(ports[1], &port, sizeof(port)) != sizeof(port)) return absl::InternalError("the ranks' pipe broke");
    }
  } else if (read(ports[0], &port, sizeof(port)) != sizeof(port)) {
    return absl::InternalError("rank 0 ended before it had a port");
  }
  rlhf::learner::GroupOptions options;
  options.rank = rank;
  options.world_size = world;
  options.prefix = "replay/";
  options.store_host = "127.0.0.1";
  options.store_port = port;
  options.timeout = kTimeout;
  return rlhf::learner::ConnectGroup(options);
}

int RunRank(const rlhf::learner::Recording& recording, int rank, int threads, const int ports[2]) {
  torch::set_num_threads(threads);
  rlhf::model::KeepTensorMemory();
  std::unique_ptr<rlhf::learner::Rendezvous> hosted;
  auto group = Join(rank, recording.world_size, ports, &hosted);
  const absl::StatusOr<int64_t> compared =
      group.ok() ? rlhf::learner::ReplayRank(recording, group->get()) : group.status();
  if (!compared.ok()) {
    std::fprintf(stderr, "rlhf-replay: rank %d: %s\n", rank, std::string(compared.status().message()).c_str());
    return 1;
  }
  if (rank == 0) {
    std::printf(
        "%s: %lld steps on %d ranks trained again: batches, weights, optimizer state and metrics are the same "
        "bytes\n",
        recording.job.id().c_str(), static_cast<long long>(*compared), recording.world_size);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string dir;
  int threads = 1;
  CLI::App app{
      "Trains a job's recorded batches once more and compares every step's digests; written by `rlhfctl replay`."};
  app.set_version_flag("--version", rlhf::VersionLine("rlhf-replay"));
  app.add_option("dir", dir, "The recording")->required();
  app.add_option("--threads", threads, "Compute threads a rank")->check(CLI::Range(1, 1024))->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto recording = rlhf::learner::ReadRecording(dir);
  int ports[2];
  if (!recording.ok() || pipe(ports) != 0) {
    std::fprintf(stderr, "rlhf-replay: %s\n",
                 recording.ok() ? "no pipe" : std::string(recording.status().message()).c_str());
    return 1;
  }
  // Forked before LibTorch has threads.
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < recording->world_size; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      close(ports[rank == 0 ? 0 : 1]);  // who reads must see the end when rank 0 is no more
      const int code = RunRank(*recording, rank, threads, ports);
      std::fflush(nullptr);
      _exit(code);
    }
    ranks.push_back(child);
  }
  close(ports[0]);
  close(ports[1]);
  int worst = 0;
  for (const pid_t rank : ranks) {
    int status = 0;
    if (rank < 0 || waitpid(rank, &status, 0) != rank || !WIFEXITED(status) || WEXITSTATUS(status) != 0) worst = 1;
  }
  return worst;
}
