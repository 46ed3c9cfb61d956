// A checkpoint directory: state.safetensors (tensors by name) and state.json (numbers and texts by name).
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/libtorch.h"

namespace rlhf::learner {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

// A tensor of a trainer's state, and what of it this rank holds.
struct StateTensor {
  std::string name;
  torch::ScalarType dtype;
  std::vector<int64_t> shape;
  struct Piece {
    int64_t begin;       // element of the flattened tensor
    torch::Tensor live;  // from there on; where it is all of it, of the tensor's shape
  };
  std::vector<Piece> pieces;
};
using State = std::vector<StateTensor>;
// Of live tensors that are held whole.
State WholeState(const NamedTensors& tensors);

// Hands every tensor of a state over, whole, once, in any order; goes on to the end when a visitor fails (other ranks
// take part in bringing the parts together), and returns the first error.
using StateVisitor = std::function<absl::Status(const std::string& name, const torch::Tensor& whole)>;
using StateSource = std::function<absl::Status(const StateVisitor& visitor)>;
// Of a rank that only hands its parts over.
inline absl::Status IgnoreState(const std::string&, const torch::Tensor&) {
  return absl::OkStatus();
}
StateSource HeldHere(State state);  // every tensor has one piece, all of it

// Writes both files into an existing directory, one tensor at a time; no fsync (the artifact root does it).
absl::Status WriteCheckpoint(const std::string& dir, const State& layout, const StateSource& source,
                             const nlohmann::json& numbers);
// Copies into the live pieces (the file has the same names, shapes and dtypes; missing, extra and misshaped ones are
// named in DataLoss, before anything is changed) and fills `numbers`. Where the file cannot be read to its end, the
// state is left half-read.
absl::Status ReadCheckpoint(const std::string& dir, const State& state, nlohmann::json* numbers);

// XXH3-128 over every tensor's name and bytes, in the layout's order, and the numbers' bytes: what a checkpoint would
// hold, hex.
absl::StatusOr<std::string> StateDigest(const State& layout, const StateSource& source,
                                        const std::vector<double>& numbers);

}  // namespace rlhf::learner
