#include "bench/fan_out/simulation.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <queue>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/scheduling/weight_fan_out.h"

namespace rlhf::bench {
namespace {

// The learner is process 0, the workers are 1 … n in the order in which they ask.
class Simulation {
 public:
  Simulation(int workers, int degree, uint64_t bytes, const FanOutNetwork& network)
      : network_(network), bytes_(bytes), blocks_((bytes + network.block_bytes - 1) / network.block_bytes) {
    coordinator::WeightFanOut tree(degree);
    processes_.resize(static_cast<size_t>(workers) + 1);
    processes_[0].has = blocks_;
    std::map<std::string, size_t> by_address;
    for (size_t i = 1; i < processes_.size(); ++i) {
      const std::string address = absl::StrCat("worker-", i);
      by_address[address] = i;
      const std::vector<std::string> sources = tree.SourcesOf(address, address);
      const size_t source = sources.empty() ? 0 : by_address.at(sources.front());
      processes_[source].readers.push_back(i);
      processes_[i].depth = processes_[source].depth + 1;
    }
  }

  FanOutTimes Run() {
    Send(0);
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      if (event.arrives) {
        ++processes_[event.process].has;
        if (processes_[event.process].has == blocks_) done_.push_back(now_);
      } else {
        processes_[event.process].sending = false;
      }
      Send(event.process);
    }
    FanOutTimes times;
    std::sort(done_.begin(), done_.end());
    times.first = done_.front();
    times.median = done_[done_.size() / 2];
    times.last = done_.back();
    times.learner_bytes = bytes_ * processes_[0].readers.size();
    for (const Process& process : processes_) times.depth = std::max(times.depth, process.depth);
    return times;
  }

 private:
  struct Process {
    uint64_t has = 0;            // blocks, verified
    absl::Duration verifies_to;  // when all that is under way to it will be
    std::deque<size_t> readers;  // whose turn it is first
    std::map<size_t, uint64_t> sent_to;
    bool sending = false;
    int depth = 0;
  };
  struct Event {
    absl::Duration at;
    uint64_t order;  // of two at a time, the one that was made first
    size_t process;
    bool arrives;  // a block is there and verified; else its sender is free
    bool operator>(const Event& other) const { return at != other.at ? at > other.at : order > other.order; }
  };

  uint64_t BytesOf(uint64_t block) const {
    return std::min(network_.block_bytes, bytes_ - block * network_.block_bytes);
  }
  // The next block that somebody waits for, when the link is free.
  void Send(size_t from) {
    Process& process = processes_[from];
    if (process.sending) return;
    for (size_t i = 0; i < process.readers.size(); ++i) {
      const size_t to = process.readers.front();
      process.readers.pop_front();
      process.readers.push_back(to);
      uint64_t& sent = process.sent_to[to];
      if (sent == process.has) continue;
      const auto bytes = static_cast<double>(BytesOf(sent++));
      const absl::Duration wire = absl::Seconds(bytes * 8 / (network_.gbit_per_second * 1e9));
      process.sending = true;
      events_.push({now_ + wire, order_++, from, false});
      absl::Duration& verified = processes_[to].verifies_to;  // one block after the other
      verified = std::max(verified, now_ + wire + network_.latency) + network_.verify_gigabyte * (bytes / 1e9);
      events_.push({verified, order_++, to, true});
      return;
    }
  }

  const FanOutNetwork network_;
  const uint64_t bytes_, blocks_;
  std::vector<Process> processes_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::vector<absl::Duration> done_;
  absl::Duration now_;
  uint64_t order_ = 0;
};

}  // namespace

FanOutTimes SimulateFanOut(int workers, int degree, uint64_t bytes, const FanOutNetwork& network) {
  return Simulation(workers, degree, bytes, network).Run();
}

}  // namespace rlhf::bench
