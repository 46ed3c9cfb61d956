#include "artifact/tokenizer/byte_trie.h"

#include <algorithm>
#include <cstring>
#include <queue>

namespace rlhf::artifact {

ByteTrie::ByteTrie(std::vector<std::pair<std::string, int32_t>> entries) {
  root_.fill(-1);
  entries.erase(std::remove_if(entries.begin(), entries.end(), [](const auto& e) { return e.first.empty(); }),
                entries.end());
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  entries.erase(
      std::unique(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first == b.first; }),
      entries.end());
  Build(entries);
}

void ByteTrie::Build(const std::vector<std::pair<std::string, int32_t>>& sorted) {
  struct Range {
    size_t begin, end, depth;
    int32_t node;  // -1: the root
  };
  std::queue<Range> open;
  if (!sorted.empty()) open.push({0, sorted.size(), 0, -1});
  while (!open.empty()) {
    const Range range = open.front();
    open.pop();
    size_t at = range.begin;
    if (range.node >= 0) {
      nodes_[range.node].first_child = static_cast<int32_t>(nodes_.size());
      if (sorted[at].first.size() == range.depth) nodes_[range.node].value = sorted[at++].second;
    }
    while (at < range.end) {
      const char label = sorted[at].first[range.depth];
      size_t next = at;
      while (next < range.end && sorted[next].first[range.depth] == label) ++next;
      const auto node = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      labels_.push_back(label);
      if (range.node >= 0) {
        ++nodes_[range.node].children;
      } else {
        root_[static_cast<unsigned char>(label)] = node;
      }
      open.push({at, next, range.depth + 1, node});
      at = next;
    }
  }
}

int32_t ByteTrie::Child(int32_t node, char label) const {
  const Node& parent = nodes_[node];
  if (parent.children == 0) return -1;
  const char* labels = labels_.data() + parent.first_child;
  const void* hit = std::memchr(labels, label, static_cast<size_t>(parent.children));
  return hit == nullptr ? -1 : parent.first_child + static_cast<int32_t>(static_cast<const char*>(hit) - labels);
}

}  // namespace rlhf::artifact
