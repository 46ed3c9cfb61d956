// From whom each rollout worker gets a version's weights: a tree with the learner at its root, that grows in the order
// in which workers ask. Pure logic: no clock, no sessions.
//
// A worker is put below whoever came before it, serves others and has fewer than `degree` below it; the learner first,
// then the workers in their order. So the learner serves `degree` workers however many there are, nobody waits for one
// that came later (there is no circle), and the tree of n workers is log n deep. A worker sends on what it has verified
// while it receives the rest, so that depth costs little (bench/fan_out has the times).
#pragma once

#include <map>
#include <string>
#include <vector>

namespace rlhf::coordinator {

class WeightFanOut {
 public:
  // degree 0: no tree, the learner serves all.
  explicit WeightFanOut(int degree) : degree_(degree) {}

  // Another version: nobody has it.
  void Begin();
  // The workers to ask, in order: whom it is below, then whom that one is below, at most kMostSources; the learner,
  // who comes last, is not named. `address`: where it serves others; empty: nowhere. Asking again changes nothing, but
  // leaves out who has gone since.
  std::vector<std::string> SourcesOf(const std::string& worker, const std::string& address);
  // Whoever is below it was told of others, too; new ones are put elsewhere.
  void Leave(const std::string& worker);

  // How many get it from the learner, were all to get it from the first of their sources.
  int from_learner() const { return from_learner_; }

 private:
  static constexpr size_t kMostSources = 3;
  static constexpr int kLearner = -1;
  struct Member {
    std::string address;
    int parent = kLearner;  // an index into members_; smaller than its own
    int below = 0;
    bool gone = false;
  };
  bool HasRoom(const Member& member) const { return !member.gone && !member.address.empty() && member.below < degree_; }

  const int degree_;
  std::vector<Member> members_;  // in the order in which they asked
  std::map<std::string, size_t> index_;
  size_t full_ = 0;  // of the first so many none has room
  int from_learner_ = 0;
};

}  // namespace rlhf::coordinator
