// One reward component: from an answer to a number. Strategies; made once a scorer and used for many samples.
//
// Thread-safe, but for components that hold a model: the scorer calls one at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::reward {

class Component {
 public:
  virtual ~Component() = default;
  // One result a sample, in order. A failure belongs to its sample and is a status, never a number.
  virtual std::vector<absl::StatusOr<double>> Score(const std::vector<const v1::Sample*>& samples) = 0;
  // What the last Score was made of, by part and sample: recorded beside it. Null for most.
  virtual const std::vector<std::vector<double>>* parts() const { return nullptr; }
  // What a part is called, after the component's name and a slash; a number says that it is a member of an ensemble.
  virtual std::string PartName(size_t part) const { return std::to_string(part); }
};

// A component that looks at one sample at a time.
std::unique_ptr<Component> PerSample(std::function<absl::StatusOr<double>(const v1::Sample&)> fn);

// Rules. InvalidArgument naming the pattern and the place when it does not compile.
absl::StatusOr<std::unique_ptr<Component>> MakeRegex(const v1::RegexComponent& spec);
absl::StatusOr<std::unique_ptr<Component>> MakeLength(const v1::LengthComponent& spec);
absl::StatusOr<std::unique_ptr<Component>> MakeExactAnswer(const v1::ExactAnswerComponent& spec);
absl::StatusOr<std::unique_ptr<Component>> MakeAbstention(const v1::AbstentionComponent& spec);
absl::StatusOr<std::unique_ptr<Component>> MakeActionClaim(const v1::ActionClaimComponent& spec);
absl::StatusOr<std::unique_ptr<Component>> MakeSentenceShare(const v1::SentenceShareComponent& spec);
// A user's own service.
absl::StatusOr<std::unique_ptr<Component>> MakeExternal(const std::string& name, const v1::ExternalComponent& spec);

}  // namespace rlhf::reward
