// Comparisons that were made elsewhere: kept as rows of a named set, and published as a data artifact under the set's
// name, so that a reward-model job can name it. Loop thread only.
#pragma once

#include <string>
#include <vector>

#include "coordinator/artifacts.h"
#include "coordinator/event_loop.h"
#include "coordinator/oversight.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/feedback_service.pb.h"

namespace rlhf::coordinator {

class ComparisonSets {
 public:
  ComparisonSets(EventLoop* loop, Background* background, StateStore* store, Artifacts* artifacts, Oversight* oversight)
      : loop_(loop), background_(background), store_(store), artifacts_(artifacts), oversight_(oversight) {}
  // Adds what is new and moves the alias `set` of the project to the grown set. A comparison without id gets one from
  // its content; one whose id is there is a duplicate; a bad one is a problem and keeps nobody else out.
  void Import(const std::string& subject, const std::string& project, const std::string& set,
              std::vector<v1::Comparison> comparisons, Done<v1::ImportComparisonsResponse> done);
  absl::StatusOr<std::vector<v1::Comparison>> Read(const std::string& project, const std::string& set);

 private:
  void Publish(const std::string& subject, const std::string& project, const std::string& set,
               v1::ImportComparisonsResponse response, Done<v1::ImportComparisonsResponse> done);

  EventLoop* const loop_;
  Background* const background_;
  StateStore* const store_;
  Artifacts* const artifacts_;
  Oversight* const oversight_;
};

}  // namespace rlhf::coordinator
