#include "coordinator/jobs/explain.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/job_state.h"
#include "coordinator/jobs.h"

namespace rlhf::coordinator {
namespace {

constexpr int kHoldersNamed = 10;

class Waits {
 public:
  void Add(v1::WaitReason reason, std::string waits_for, absl::Duration since, std::string what_to_do,
           const std::vector<std::string>& held_by = {}) {
    v1::Wait& wait = *response.add_waits();
    wait.set_reason(reason);
    wait.set_waits_for(std::move(waits_for));
    wait.set_since_seconds(absl::ToInt64Seconds(since));
    wait.set_what_to_do(std::move(what_to_do));
    for (const std::string& holder : held_by) {
      if (wait.held_by_size() < kHoldersNamed) wait.add_held_by(holder);
    }
  }
  v1::ExplainJobResponse response;
};

std::string Ranks(int n) {
  return absl::StrCat(n, n == 1 ? " learner" : " learners");
}

// "3 of version 0.1.0 and 1 of version 0.2.0"
std::string Versions(const std::map<std::string, int>& versions) {
  return absl::StrJoin(versions, " and ", [](std::string* out, const auto& version) {
    absl::StrAppend(out, version.second, " of version ", version.first.empty() ? "unknown" : version.first);
  });
}

void ExplainLearners(const JobFacts& facts, Waits* waits) {
  const LearnerFacts& learners = facts.learners;
  if (learners.formed) return;
  const bool none_suffices = std::all_of(learners.versions.begin(), learners.versions.end(),
                                         [&](const auto& version) { return version.second < learners.ranks; });
  if (learners.forming) {
    waits->Add(v1::GROUP_FORMING,
               absl::StrCat("its learner group to form: ", learners.not_joined.size(), " of ", learners.ranks,
                            " have not joined"),
               learners.since, "nothing; after 30 s the group is formed anew", learners.not_joined);
  } else if (!learners.broke.empty()) {
    waits->Add(v1::GROUP_FORMING,
               absl::StrCat("its learner group, which breaks again and again without a step between: ", learners.broke),
               learners.since,
               absl::StrCat("mend what its learners report; the next group is formed in ",
                            absl::FormatDuration(absl::Ceil(learners.next_in, absl::Seconds(1)))));
  } else if (learners.awaits_holders) {
    waits->Add(v1::GROUP_FORMING, "a learner that holds its newest weights, to come back", learners.since,
               "nothing; within 30 s it goes on without, from its checkpoint");
  } else if (!facts.job.preempted_by().empty()) {
    waits->Add(v1::PREEMPTED,
               absl::StrCat("learners: ", JobNamed(facts.job.preempted_by()), ", of higher priority, took them"),
               learners.since, "it goes on from its checkpoint when they are free; start more learners to go on sooner",
               {facts.job.preempted_by()});
  } else if (learners.wait == GangWait::kQuota) {
    waits->Add(v1::QUOTA, absl::StrCat(Ranks(learners.ranks), ": its project or submitter has all it may have"),
               learners.since, "wait for its other jobs, or raise the bound: `rlhfctl quota set --max-learners`",
               learners.holders);
  } else if (learners.registered < learners.ranks) {
    waits->Add(v1::NO_LEARNER, absl::StrCat(Ranks(learners.ranks), "; ", learners.registered, " are registered"),
               learners.since, "start more learners, or lower learners.ranks");
  } else if (learners.registered - learners.unsuited < learners.ranks) {
    waits->Add(v1::NO_LEARNER,
               absl::StrCat(Ranks(learners.ranks), " that can train it; ", learners.registered,
                            " are registered, of which ", learners.unsuited, " cannot (", learners.unsuited_why, ")"),
               learners.since, "do as that learner says, or start others");
  } else if (learners.versions.size() > 1 && none_suffices) {
    waits->Add(v1::NO_LEARNER,
               absl::StrCat(Ranks(learners.ranks), " of one version; ", Versions(learners.versions), " are registered"),
               learners.since, "finish the update of the learners: a group is of one version; or lower learners.ranks");
  } else {
    const std::string versions = learners.versions.size() > 1 ? absl::StrCat("; of one version, and registered are ",
                                                                             Versions(learners.versions))
                                                              : "";
    waits->Add(v1::LEARNERS_BUSY,
               absl::StrCat(Ranks(learners.ranks), " at once; ", learners.free, " of ", learners.registered,
                            " are free", versions),
               learners.since, "wait, start more learners, or give it a higher priority", learners.holders);
  }
}

void ExplainSamples(const JobFacts& facts, Waits* waits) {
  const SampleFacts& samples = facts.samples;
  const v1::LedgerCounts& counts = samples.counts;
  const std::string problem =
      samples.last_problem.empty() ? "" : absl::StrCat("; the newest problem: ", samples.last_problem);
  const std::string queued = absl::StrCat(counts.queued(), counts.queued() == 1 ? " sample" : " samples");
  if (counts.queued() > 0) {
    if (samples.weights_away) {
      waits->Add(v1::WEIGHTS_UNAVAILABLE, "a learner that serves the committed weights, for the queued samples",
                 samples.since, "nothing while its learner group forms; see what that waits for");
    } else if (samples.rollout_workers == 0) {
      waits->Add(v1::NO_ROLLOUT_WORKER, absl::StrCat("a rollout worker, for ", queued), samples.since,
                 "start rollout workers, or uncordon some: `rlhfctl workers list`");
    } else if (samples.unsuited_workers >= samples.rollout_workers) {
      waits->Add(v1::NO_ROLLOUT_WORKER,
                 absl::StrCat("a rollout worker that can serve it, for ", queued, " (", samples.rollout_workers,
                              " registered, of which none can: ", samples.unsuited_why, ")"),
                 samples.since, "start rollout workers with the --precision, --device or memory that it names");
    } else if (samples.too_large_samples > 0) {
      waits->Add(
          v1::NO_ROLLOUT_WORKER,
          absl::StrCat("a rollout worker with the room for ", samples.too_large_samples,
                       " of the queued samples; none of ", samples.rollout_workers, " has it: ", samples.too_large_why),
          samples.since, "uncordon or start a larger one; with none, their prompts fail");
    } else if (samples.over_quota) {
      waits->Add(v1::QUOTA,
                 absl::StrCat("rollout workers, for ", queued, ": its project or submitter has all it may have"),
                 samples.since, "wait, or raise the bound: `rlhfctl quota set --max-rollout-workers`",
                 samples.rollout_holders);
    } else if (samples.serving_this == 0) {
      waits->Add(v1::ROLLOUT_WORKERS_BUSY,
                 absl::StrCat("one of ", samples.rollout_workers, " rollout workers, for ", queued), samples.since,
                 "wait, start more, or give it a higher priority", samples.rollout_holders);
    }
  }
  if (counts.generated() > 0 && samples.reward_servers == 0) {
    waits->Add(v1::NO_REWARD_SERVER, absl::StrCat("a reward server, for ", counts.generated(), " generated samples"),
               samples.since, "start a reward server, or uncordon one: `rlhfctl workers list`");
  }
  const bool nobody_scores = samples.unsuited_reward_servers >= samples.reward_servers;
  if (counts.generated() > 0 && samples.reward_servers > 0 && nobody_scores) {
    waits->Add(
        v1::NO_REWARD_SERVER,
        absl::StrCat("a reward server that can score it, for ", counts.generated(), " generated samples (",
                     samples.reward_servers, " registered, of which none can: ", samples.unsuited_reward_why, ")"),
        samples.since, "start reward servers with the --precision and --device that it names");
  }
  // What failed and is tried again may fail for ever: a port that is blocked, a scorer that hangs.
  const std::string mend = problem.empty()
                               ? "nothing"
                               : "nothing if it comes on; else mend what the newest problem names: it is tried again";
  if (samples.serving_this > 0) {
    const std::string loading =
        samples.loading == 0 ? ""
                             : absl::StrCat("; ", samples.loading, " of them wait for ", samples.loading_by,
                                            ", which has fetched or loaded its model or weights for ",
                                            absl::FormatDuration(absl::Floor(samples.loading_for, absl::Seconds(1))));
    waits->Add(v1::GENERATING,
               absl::StrCat(samples.serving_this, " rollout workers: ", counts.leased(),
                            " samples are being generated, ", counts.queued(), " are queued", loading, problem),
               samples.since,
               samples.loading == 0 ? mend
                                    : absl::StrCat("nothing if that takes as long as usual; else look at the log of ",
                                                   samples.loading_by, " and the volumes of its --artifact-root and ",
                                                   "--cache-dir: other workers, when idle, try them too"));
  }
  if (counts.generated() > 0 && !nobody_scores) {
    waits->Add(v1::SCORING,
               absl::StrCat(counts.generated(), " samples to be scored; ", samples.score_requests,
                            " requests are at reward servers", problem),
               samples.since, samples.score_requests > 0 ? mend : "see the reward servers' logs: `rlhfctl logs`");
  }
}

void ExplainPeople(const JobFacts& facts, Waits* waits) {
  if (facts.collects) {
    waits->Add(v1::RATERS,
               absl::StrCat(facts.wanted - facts.answered, " more comparisons by people; ", facts.answered, " of ",
                            facts.wanted, " are given, ", facts.handed_out, " tasks are with raters"),
               facts.no_progress, "answer tasks: `rlhfctl feedback next`, the Python client, or the web page",
               facts.raters);
  }
  if (!facts.gate_id.empty()) {
    waits->Add(v1::GATE,
               absl::StrCat(facts.required_approvals - facts.approvals, " more approvals of gate ", facts.gate_id, " (",
                            facts.approvals, " of ", facts.required_approvals, " given)"),
               facts.in_state,
               absl::StrCat("an overseer decides: `rlhfctl gate approve ", facts.gate_id, "` or `reject`"),
               facts.approved_by);
  } else if (!facts.stage_id.empty()) {
    waits->Add(
        v1::STAGE,
        absl::StrCat("stage ", facts.stage_id,
                     facts.stage_waits_for.empty() ? "" : absl::StrCat(", which waits for ", facts.stage_waits_for)),
        facts.in_state, absl::StrCat("`rlhfctl why ", facts.stage_id, "` says more"), {facts.stage_id});
  }
}

void ExplainActive(const JobFacts& facts, Waits* waits) {
  const v1::Job& job = facts.job;
  if (!facts.store_failure.empty()) {
    waits->Add(v1::STORE_FAILING, absl::StrCat("the coordinator's store: ", facts.store_failure), facts.no_progress,
               "free the disk (or mend it) and restart the coordinator; nothing that was acknowledged is lost");
  }
  // Paused by the coordinator itself, for want of room, of a volume to write to, or of one that answers.
  if (job.state() == v1::PAUSED && !job.reason_code().empty()) {
    const char *wanted = "room", *mend = "free the disk";
    if (job.reason_code() == kDiskReadOnly) {
      wanted = "a writable volume";
      mend = "make the volume writable";
    } else if (job.reason_code() == kDiskHangs) {
      wanted = "a volume that answers";
      mend = "look after the volume's server or disk, and the network between";
    }
    waits->Add(v1::STORE_FAILING, absl::StrCat(wanted, ": it is paused: ", job.reason()), facts.in_state,
               absl::StrCat(mend, "; it goes on by itself"));
    return;
  }
  if (job.state() == v1::PAUSED) {
    waits->Add(v1::PAUSED_BY_PERSON, absl::StrCat("a person: it is ", job.reason().empty() ? "paused" : job.reason()),
               facts.in_state, absl::StrCat("`rlhfctl resume ", job.id(), "`"));
    return;
  }
  if (!facts.unpublished.empty()) {
    waits->Add(v1::STORE_FAILING, absl::StrCat("the artifact volume: ", facts.unpublished), facts.no_progress,
               "make room, or the volume writable; it tries again by itself");
  }
  if (facts.halted && facts.learners.trains) {
    waits->Add(v1::SERVICE_IS_HALTED,
               absl::StrCat("all training is halted", facts.halt_reason.empty() ? "" : ": ", facts.halt_reason),
               facts.no_progress, "an overseer ends it: `rlhfctl service resume`", {facts.halted_by});
  }
  if (facts.over_job_quota) {
    waits->Add(v1::QUOTA, "its turn: its project or submitter has all the active jobs it may have", facts.in_state,
               "wait for its other jobs, or raise the bound: `rlhfctl quota set --max-jobs`", facts.quota_holders);
    return;
  }
  if (!facts.newer_release.empty()) {
    waits->Add(v1::STARTING, absl::StrCat("a coordinator of the release that began it: ", facts.newer_release),
               facts.in_state, "update the coordinator, or cancel the job");
    return;
  }
  if (facts.starting) {
    waits->Add(v1::STARTING, "its data to be read", facts.in_state, "nothing");
    return;
  }
  ExplainPeople(facts, waits);
  if (facts.learners.trains) ExplainLearners(facts, waits);
  // With a group that trains, samples of later steps are not what it waits for.
  const bool samples_matter = facts.samples.generates && (!facts.learners.formed || facts.samples.batch_wanted);
  if (samples_matter) ExplainSamples(facts, waits);
  if (facts.checkpointing) {
    const std::string by = facts.saved_by.empty() ? "a learner" : facts.saved_by;
    waits->Add(
        v1::CHECKPOINTING, absl::StrCat("the checkpoint of step ", job.step(), ", which ", by, " writes"),
        facts.no_progress,
        absl::StrCat("nothing if it takes as long as usual; else look at the volumes of its --artifact-root and ",
                     "--cache-dir: once they answer it goes on, or from the checkpoint before when ", by, " is ended"));
  } else if (facts.learners.formed && !facts.samples.batch_wanted) {
    // SFT and reward models' learners say how many steps there are with their first report.
    const std::string of = job.total_steps() > 0 ? absl::StrCat(" of ", job.total_steps()) : "";
    waits->Add(v1::TRAINING,
               absl::StrCat("step ", job.step() + 1, of, " to be trained, at group epoch ", job.group_epoch(),
                            facts.first_of_group ? ", the group's first: its learners load models, data and weights "
                                                   "before it"
                                                 : ""),
               facts.no_progress, "nothing; `rlhfctl watch` shows its progress");
  }
  if (facts.learners.yielding) {
    waits->Add(v1::PREEMPTED,
               absl::StrCat("the end of this step: then ", JobNamed(facts.learners.yields_to),
                            ", of higher priority, takes its learners"),
               facts.learners.since, "nothing; it goes on from its checkpoint later", {facts.learners.yields_to});
  }
}

}  // namespace

std::string JobNamed(const std::string& id) {
  return id == kJobElsewhere ? id : absl::StrCat("job ", id);
}

void HideJobs(const std::function<bool(const std::string& job_id)>& hidden, JobFacts* facts) {
  const auto hide = [&](std::string* id) {
    if (!id->empty() && hidden(*id)) *id = kJobElsewhere;
  };
  for (std::vector<std::string>* ids :
       {&facts->learners.holders, &facts->samples.rollout_holders, &facts->quota_holders}) {
    for (std::string& id : *ids) hide(&id);
    // Once is enough.
    std::stable_partition(ids->begin(), ids->end(), [](const std::string& id) { return id != kJobElsewhere; });
    ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
  }
  hide(&facts->learners.yields_to);
}

v1::ExplainJobResponse ExplainFacts(const JobFacts& facts) {
  Waits waits;
  if (IsTerminal(facts.job.state())) {
    waits.Add(v1::NOTHING,
              absl::StrCat("nothing: it is ", v1::JobState_Name(facts.job.state()),
                           facts.job.reason().empty() ? "" : ": ", facts.job.reason()),
              facts.in_state, "");
  } else {
    ExplainActive(facts, &waits);
    if (waits.response.waits().empty())
      waits.Add(v1::WORKING, "nothing: it works", facts.no_progress, "nothing; `rlhfctl watch` shows its progress");
  }
  v1::ExplainJobResponse response = std::move(waits.response);
  const v1::Wait& first = response.waits(0);
  response.set_waits_for(first.waits_for());
  response.set_since_seconds(first.since_seconds());
  *response.mutable_held_by() = first.held_by();
  response.set_what_to_do(first.what_to_do());
  if (facts.job.has_last_progress_at()) *response.mutable_last_progress_at() = facts.job.last_progress_at();
  const bool with_people = facts.job.state() == v1::PAUSED || facts.collects || !facts.gate_id.empty();
  response.set_no_progress(!IsTerminal(facts.job.state()) && !with_people && facts.no_progress > kNoProgress);
  return response;
}

}  // namespace rlhf::coordinator
