#include "coordinator/jobs/context_spec.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace rlhf::coordinator {
namespace {

class ContextCheck {
 public:
  ContextCheck(const v1::PipelineSpec& pipeline, const std::map<std::string, std::string>& resolved,
               const Artifacts& artifacts, std::vector<v1::SpecProblem>* problems)
      : pipeline_(pipeline), resolved_(resolved), artifacts_(artifacts), problems_(problems) {}

  // A job or a stage.
  template <typename Message>
  void Check(const std::string& prefix, const Message& m) {
    if (m.has_sample()) Room(prefix + "sample", m.sample().model(), m.sample().sampling());
    if (m.has_ppo()) Room(prefix + "ppo", m.ppo().policy(), m.ppo().sampling());
    if (m.has_evaluate()) Room(prefix + "evaluate", m.evaluate().model(), m.evaluate().sampling());
  }

 private:
  void Room(const std::string& field, const std::string& model, const v1::SamplingParams& sampling) {
    const std::string source = SourceOf(model);
    const int64_t context = ContextOf(source);
    if (context == 0 || sampling.max_new_tokens() < context) return;
    v1::SpecProblem& problem = problems_->emplace_back();
    problem.set_field(field + ".sampling.max_new_tokens");
    problem.set_problem(absl::StrCat("expected at most ", context - 1, ", for the context of ", model,
                                     model == source ? "" : absl::StrCat(" (", source, ")"), " is ", context,
                                     " tokens, prompt and answer together; found ", sampling.max_new_tokens(),
                                     ": lower it, or choose a model with a longer context"));
  }

  // The model that a reference's was trained from: "stage:" and "approved:" lead back to it, if the stages are in
  // order.
  std::string SourceOf(absl::string_view model) const {
    for (int i = pipeline_.stages_size() - 1; i >= 0; --i) {
      absl::string_view name = model;
      if (!absl::ConsumePrefix(&name, "stage:") && !absl::ConsumePrefix(&name, "approved:")) break;
      const v1::StageSpec& stage = pipeline_.stages(i);
      if (stage.name() != name) continue;
      model = stage.has_ppo() ? stage.ppo().policy() : stage.sft().model();
    }
    return std::string(model);
  }

  // 0: unknown.
  int64_t ContextOf(const std::string& model) const {
    const auto digest = resolved_.find(model);
    return digest == resolved_.end() ? 0 : artifacts_.ContextOf(digest->second);
  }

  const v1::PipelineSpec& pipeline_;
  const std::map<std::string, std::string>& resolved_;
  const Artifacts& artifacts_;
  std::vector<v1::SpecProblem>* const problems_;
};

}  // namespace

void CheckContexts(const v1::JobSpec& spec, const std::map<std::string, std::string>& resolved,
                   const Artifacts& artifacts, std::vector<v1::SpecProblem>* problems) {
  ContextCheck check(spec.pipeline(), resolved, artifacts, problems);
  check.Check("", spec);
  for (int i = 0; i < spec.pipeline().stages_size(); ++i)
    check.Check(absl::StrCat("pipeline.stages[", i, "]."), spec.pipeline().stages(i));
}

}  // namespace rlhf::coordinator
