// Byte strings with values, for prefix search. Thread-safe after construction; no allocation while searching.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace rlhf::artifact {

class ByteTrie {
 public:
  ByteTrie() { root_.fill(-1); }
  // Of equal keys the first stays. Empty keys are left out. Memory: 13 bytes a node, at most one node a key byte.
  explicit ByteTrie(std::vector<std::pair<std::string, int32_t>> entries);

  bool empty() const { return nodes_.empty(); }
  bool Begins(char byte) const { return root_[static_cast<unsigned char>(byte)] >= 0; }

  // Calls visit(length, value) for each key that the text begins with, shortest first.
  template <typename Visit>
  void ForEachPrefix(absl::string_view text, Visit visit) const {
    if (text.empty()) return;
    int32_t at = root_[static_cast<unsigned char>(text[0])];
    for (size_t length = 1; at >= 0; ++length) {
      if (nodes_[at].value >= 0) visit(length, nodes_[at].value);
      if (length == text.size()) return;
      at = Child(at, text[length]);
    }
  }
  // The longest key that the text begins with: its length, 0 when there is none.
  size_t Longest(absl::string_view text, int32_t* value) const {
    size_t best = 0;
    ForEachPrefix(text, [&](size_t length, int32_t found) {
      best = length;
      *value = found;
    });
    return best;
  }

 private:
  struct Node {
    int32_t value = -1;
    int32_t first_child = 0;
    int32_t children = 0;
  };
  int32_t Child(int32_t node, char label) const;
  void Build(const std::vector<std::pair<std::string, int32_t>>& sorted);

  std::array<int32_t, 256> root_;
  std::vector<Node> nodes_;  // children of a node lie together, by label
  std::vector<char> labels_;
};

}  // namespace rlhf::artifact
