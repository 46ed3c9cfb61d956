// Prompts for an engine and what it makes of them, by ordinal and index.
#pragma once

#include <map>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "rollout_worker/engine.h"

namespace rlhf::rollout {

using Samples = std::map<std::pair<int, int>, v1::Sample>;

inline v1::PromptLease LeaseOf(const std::string& text, int ordinal, int samples, int max_new) {
  v1::PromptLease lease;
  lease.set_job_id("job");
  lease.set_step(1);
  lease.set_ordinal(ordinal);
  lease.set_seed(3);
  lease.mutable_prompt()->set_text(text);
  lease.mutable_sampling()->set_temperature(1);
  lease.mutable_sampling()->set_max_new_tokens(max_new);
  for (int i = 0; i < samples; ++i) {
    lease.add_samples()->set_index(i);
    lease.mutable_samples(i)->set_attempt(1);
  }
  return lease;
}

// To the end of all that was added; that there is one is asserted.
inline void RunAll(Engine& engine, Samples* out) {
  for (int guard = 0; !engine.idle() && guard < 10'000; ++guard) {
    auto finished = engine.Step();
    ASSERT_TRUE(finished.ok()) << finished.status();
    for (v1::Sample& sample : *finished) (*out)[{sample.id().ordinal(), sample.id().index()}] = std::move(sample);
  }
  ASSERT_TRUE(engine.idle());
}

}  // namespace rlhf::rollout
