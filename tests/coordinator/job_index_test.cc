// What is kept of jobs so that those that ended long ago cost nothing.
#include "coordinator/jobs/job_index.h"

#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;

class JobIndexTest : public testing::Test {
 protected:
  v1::Job* Add(const std::string& id, const std::string& name, v1::JobState state, const std::string& project = "p") {
    v1::Job& job = jobs_[id];
    job.set_id(id);
    job.set_state(state);
    job.mutable_spec()->set_name(name);
    job.mutable_spec()->set_project(project);
    job.mutable_spec()->mutable_ppo();
    index_.Add(&job);
    return &job;
  }
  void Move(v1::Job* job, v1::JobState to) {
    index_.Moves(*job, to);
    job->set_state(to);
  }
  static std::vector<std::string> Ids(const JobIndex::Order& order) {
    std::vector<std::string> ids;
    for (const auto& [number, job] : order) ids.push_back(job->id());
    return ids;
  }

  std::map<std::string, v1::Job> jobs_;
  JobIndex index_;
};

TEST_F(JobIndexTest, WhatHasEndedIsListedButIsNotActive) {
  v1::Job* const a = Add("a", "n", v1::PENDING);
  Add("b", "n", v1::SUCCEEDED);
  Add("c", "n", v1::RUNNING);
  EXPECT_THAT(Ids(index_.active()), ElementsAre("a", "c"));
  Move(a, v1::RUNNING);
  Move(a, v1::FAILED);
  EXPECT_THAT(Ids(index_.active()), ElementsAre("c"));
  EXPECT_THAT(Ids(index_.all()), ElementsAre("a", "b", "c"));
  EXPECT_EQ(index_.NumberOf("c"), index_.newest());
  EXPECT_EQ(index_.NumberOf("d"), 0);
}

TEST_F(JobIndexTest, JobsAreCountedByKindAndState) {
  v1::Job* const a = Add("a", "n", v1::PENDING);
  Add("b", "n", v1::PENDING);
  Move(a, v1::RUNNING);
  EXPECT_EQ(index_.census().at({"ppo", v1::PENDING}), 1);
  EXPECT_EQ(index_.census().at({"ppo", v1::RUNNING}), 1);
  index_.Remove(*a);
  EXPECT_EQ(index_.census().at({"ppo", v1::RUNNING}), 0);
}

TEST_F(JobIndexTest, ANameIsItsNewestJobs) {
  Add("a", "nightly", v1::SUCCEEDED);
  v1::Job* const b = Add("b", "nightly", v1::RUNNING);
  Add("c", "nightly", v1::RUNNING, "other");
  Add("d", "nightly-2", v1::RUNNING);
  EXPECT_EQ(index_.Named("p", "nightly")->id(), "b");
  EXPECT_EQ(index_.Named("other", "nightly")->id(), "c");
  index_.Remove(*b);
  EXPECT_EQ(index_.Named("p", "nightly")->id(), "a");
  EXPECT_EQ(index_.Named("p", "night"), nullptr);
  index_.Remove(jobs_.at("a"));
  EXPECT_EQ(index_.Named("p", "nightly"), nullptr);
  EXPECT_THAT(Ids(index_.active()), ElementsAre("c", "d"));
}

}  // namespace
}  // namespace rlhf::coordinator
