// Ranks of a learner group as real processes: forked before LibTorch has threads, joined over Gloo on loopback.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/time/time.h"
#include "learner/collective.h"

namespace rlhf::learner {

inline constexpr absl::Duration kRanksTimeout = absl::Seconds(20);

// Joins another group of the same processes (rank 0 of the first one hosts the rendezvous of all).
using NextGroup = std::function<std::unique_ptr<Collective>(const std::string& name, int rank, int world)>;

// Runs fn on `world` ranks that meet at one address of this host; each returns an exit code. The codes, by rank.
inline std::vector<int> RunRanks(int world, absl::Duration timeout,
                                 const std::function<int(Collective*, const NextGroup&)>& fn,
                                 const std::string& address = "127.0.0.1") {
  int port_pipe[2];
  EXPECT_EQ(pipe(port_pipe), 0);
  std::vector<pid_t> children;
  for (int rank = 0; rank < world; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      signal(SIGPIPE, SIG_IGN);  // as every role's main does: a dead peer is an error, not the end
      int port = 0;
      std::unique_ptr<Rendezvous> rendezvous;
      if (rank == 0) {
        auto hosted = Rendezvous::Host(address, timeout);
        if (!hosted.ok()) _exit(90);
        rendezvous = *std::move(hosted);
        port = rendezvous->port();
        for (int other = 1; other < world; ++other) {
          if (write(port_pipe[1], &port, sizeof(port)) != sizeof(port)) _exit(91);
        }
      } else if (read(port_pipe[0], &port, sizeof(port)) != sizeof(port)) {
        _exit(92);
      }
      GroupOptions options;
      options.rank = rank;
      options.world_size = world;
      options.prefix = "test/1/";
      options.store_host = options.interface_address = address;
      options.store_port = port;
      options.timeout = timeout;
      auto group = ConnectGroup(options);
      if (!group.ok()) _exit(93);
      _exit(fn(group->get(), [&options](const std::string& name, int in_rank, int of) {
        GroupOptions next = options;
        next.prefix = name + "/";
        next.rank = in_rank;
        next.world_size = of;
        next.timeout = std::max(options.timeout, kRanksTimeout);  // others may still wait in the one that broke
        auto joined = ConnectGroup(next);
        if (!joined.ok()) _exit(94);
        return *std::move(joined);
      }));
    }
    children.push_back(child);
  }
  std::vector<int> codes;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  }
  close(port_pipe[0]);
  close(port_pipe[1]);
  return codes;
}
inline std::vector<int> RunRanks(int world, absl::Duration timeout, const std::function<int(Collective*)>& fn,
                                 const std::string& address = "127.0.0.1") {
  return RunRanks(
      world, timeout, [&fn](Collective* group, const NextGroup&) { return fn(group); }, address);
}

// Makes what the ranks will read in a process of its own: LibTorch's threads stay there.
inline void MakeApart(const std::function<void()>& make) {
  const pid_t maker = fork();
  if (maker == 0) {
    make();
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  waitpid(maker, &status, 0);
  ASSERT_EQ(status, 0);
}

}  // namespace rlhf::learner
