// The parts that spec.cc, kind_spec.cc and pipeline_spec.cc share. Internal: callers include spec.h. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <google/protobuf/message.h>

#include "coordinator/jobs/spec.h"
#include "rlhf/v1/job.pb.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

// Collects what is wrong, each with its field's path. The problems must outlive it.
class SpecChecker {
 public:
  explicit SpecChecker(std::vector<v1::SpecProblem>* problems) : problems_(problems) {}

  // Everything inside is reported under this path.
  class Scope {
   public:
    Scope(SpecChecker* checker, const std::string& path);
    ~Scope() { checker_->prefix_ = before_; }

   private:
    SpecChecker* checker_;
    std::string before_;
  };

  void Problem(const std::string& field, const std::string& problem);
  void Required(const std::string& field, const std::string& value, const char* what);
  void Positive(const std::string& field, int64_t value) { AtLeast(field, value, 1); }
  void AtLeast(const std::string& field, int64_t value, int64_t least);
  void AtMost(const std::string& field, int64_t value, int64_t most);
  void Range(const std::string& field, double value, double low, double high);
  void Above(const std::string& field, double value, double low);

  // A regular expression with so many groups (PCRE2); an empty one is not looked at.
  void Pattern(const std::string& field, const std::string& pattern, int groups = 0);
  // HOST:PORT, or dns:///NAME:PORT; an empty one is not looked at.
  void Address(const std::string& field, const std::string& address);

  // Fields and values that this release does not know, in the message and all below it: those of a newer client, who
  // would get another job than the one that was asked for.
  void Known(const google::protobuf::Message& message);

  // Messages that several kinds hold: these fill in the defaults and check them. The default learning rate and
  // temperature are the kind's own.
  void Optimizer(const std::string& field, v1::OptimizerSpec* o, double learning_rate);
  void Sampling(v1::SamplingParams* s, double temperature);
  void Scorer(const std::string& field, v1::ScorerSpec* scorer);

 private:
  std::vector<v1::SpecProblem>* problems_;
  std::string prefix_;
};

// The kind's own part, of a job or a stage: fills in its defaults and checks it. In kind_spec.cc.
void CheckKind(SpecChecker& check, v1::JobSpec* job);
void CheckKind(SpecChecker& check, v1::StageSpec* stage);

// A pipeline: its stages, their gates and what they refer to. In pipeline_spec.cc.
void CheckPipeline(SpecChecker& check, v1::JobSpec* spec);

// Appends the stage's references, empty ones too; `prefix` comes before their fields. In spec.cc.
void ReferencesOfStage(const std::string& prefix, v1::StageSpec* stage, std::vector<Reference>* out);

}  // namespace rlhf::coordinator
