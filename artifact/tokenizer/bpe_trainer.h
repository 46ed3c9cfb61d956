// Training a byte-pair encoding: the most frequent pair is merged until the vocabulary is full. Pure; needs memory of
// about 40 bytes a character of the distinct words.
//
// The merges are those of the `tokenizers` library's BpeTrainer without limits on alphabet, frequency or token length:
// ties go to the pair with the smaller ids, and counts are kept as that trainer keeps them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace rlhf::artifact {

struct TrainingWord {
  std::vector<int32_t> symbols;  // ids of `tokens`
  int64_t count = 0;
};

struct TrainedBpe {
  std::vector<std::string> tokens;  // by id: those given, then what was merged
  std::vector<std::pair<std::string, std::string>> merges;
};

TrainedBpe TrainBpe(std::vector<std::string> tokens, std::vector<TrainingWord> words, size_t vocab_size);

}  // namespace rlhf::artifact
