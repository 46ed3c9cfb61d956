// Jobs that go on from another's checkpoint (JobSpec.start_from): what of their specification has to be as there, and
// where they begin. Loop thread only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "coordinator/jobs/driver.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// Before the specification is completed: what it leaves out and the state settles is as in the job it goes on from.
// Null: there is no such job.
void FillInFromStart(const v1::Job* from, v1::JobSpec* spec);

// Of a complete specification, with what its references are resolved to: where it begins, or what is wrong with that.
// Fills start_from in; does nothing where there is none.
v1::StartPoint FindStart(const v1::Job* from, const std::map<std::string, std::string>& resolved, StateStore* store,
                         Artifacts* artifacts, v1::JobSpec* spec, std::vector<v1::SpecProblem>* problems);

// Of a new job's row: its steps begin behind the start.
void BeginAt(JobHost* host, const v1::StartPoint& start, v1::Job* row, WriteBatch* batch);

}  // namespace rlhf::coordinator
