// Every named stage at which a process can be killed, in the order in which a sample passes them.
#pragma once

#include <array>

namespace rlhf {

inline constexpr std::array kStages = {
    // The coordinator: leasing, before and after durable writes, around a step's commit.
    "coordinator/leasing", "store/before_commit", "store/after_commit", "payloads/before_sync", "payloads/after_sync",
    "coordinator/before_commit_step", "coordinator/after_commit_step",
    // A rollout worker: leased, mid-generation, generated and unsent, sent, receiving weights.
    "rollout/leased", "rollout/mid_generation", "rollout/generated", "rollout/before_submit", "rollout/after_submit",
    "rollout/receive_weights",
    // The reward server.
    "reward/before_score", "reward/after_score",
    // A learner: before and inside the sums over ranks, between them and the commit, after it, in a checkpoint, sending
    // weights.
    "learner/before_step", "learner/before_allreduce", "learner/inside_allreduce", "learner/after_step",
    "learner/before_commit", "learner/after_commit", "learner/checkpoint", "learner/mid_checkpoint",
    "learner/checkpoint_published", "learner/stream_weights"};

}  // namespace rlhf
