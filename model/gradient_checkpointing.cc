#include "model/gradient_checkpointing.h"

#include <utility>

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct HeldSegment : torch::CustomClassHolder {
  HeldSegment(Segment segment, Hold around) : run(std::move(segment)), hold(std::move(around)) {}
  Segment run;
  Hold hold;
};

class CheckpointFunction : public torch::autograd::Function<CheckpointFunction> {
 public:
  // The list is an at::TensorList because inputs in a std::vector would not be seen.
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, at::TensorList trained,
                               const Segment& segment, const Hold& hold) {
    const std::vector<torch::Tensor> parameters = trained.vec();
    variable_list saved{input};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    context->save_for_backward(saved);
    context->saved_data["segment"] = c10::IValue::make_capsule(c10::make_intrusive<HeldSegment>(segment, hold));
    return segment(input, parameters);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const auto held = context->saved_data["segment"].toCapsule();
    const auto& kept = static_cast<const HeldSegment&>(*held);
    const Segment& run = kept.run;
    const std::shared_ptr<void> holding = kept.hold ? kept.hold() : nullptr;
    // Leaves of a graph of their own: the caller's leaves are reached by what is returned, and by nothing else.
    variable_list leaves, wanted;
    std::vector<size_t> places;
    for (size_t i = 0; i < saved.size(); ++i) {
      leaves.push_back(saved[i].detach());
      if (!context->needs_input_grad(i)) continue;
      leaves.back().requires_grad_(true);
      wanted.push_back(leaves.back());
      places.push_back(i);
    }
    torch::Tensor output;
    {
      const at::AutoGradMode with_graph(true);
      output = run(leaves.front(), {leaves.begin() + 1, leaves.end()});
    }
    variable_list out(saved.size() + 2);  // none for the segment and what is held for it
    const variable_list gradients =
        torch::autograd::grad({output}, wanted, {grads[0]}, /*retain_graph=*/false, /*create_graph=*/false,
                              /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) out[places[i]] = gradients[i];
    return out;
  }
};

}  // namespace

torch::Tensor Checkpoint(const Segment& segment, const torch::Tensor& input, const std::vector<torch::Tensor>& trained,
                         const Hold& hold) {
  return CheckpointFunction::apply(input, at::TensorList(trained), segment, hold);
}

}  // namespace rlhf::model
