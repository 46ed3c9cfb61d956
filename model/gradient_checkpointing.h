// Activation checkpointing (Chen et al. 2016): a segment of a forward pass keeps its input alone and is computed again
// in backward, where its own activations live no longer than its gradients take.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "model/libtorch.h"

namespace rlhf::model {

// Computes a segment's output from its input and from the tensors that train in it. Without random numbers, and the
// same however often it is called, also after the call of Checkpoint returned; it is dropped with the graph.
using Segment = std::function<torch::Tensor(const torch::Tensor& input, const std::vector<torch::Tensor>& trained)>;

// Called before the segment is computed again in backward; what it returns lives until the segment's gradients are
// there.
using Hold = std::function<std::shared_ptr<void>()>;

// segment(input, trained), with gradients to the input (where it requires one) and to all of `trained`, which all
// require one. They are those of the segment without checkpointing: the same operations on the same numbers. In
// backward the segment gets copies of `trained` that share their data, so a leaf's hooks run once, outside. Without
// autograd it is the segment alone. Any device and type. Gradients of gradients are not there.
torch::Tensor Checkpoint(const Segment& segment, const torch::Tensor& input, const std::vector<torch::Tensor>& trained,
                         const Hold& hold = nullptr);

}  // namespace rlhf::model
