// One self-contained HTML file about a job: how it ended, what changed between its first and last evaluation, its
// learning curves, and its answers side by side.
#pragma once

#include <string>
#include <vector>

#include "rlhf/v1/job_service.pb.h"

namespace rlhf::cli {

// A stage of the job (or the job itself), with its curves and, for evaluations, some of its samples.
struct ReportStage {
  v1::Job job;
  std::vector<v1::MetricPoint> points;
  std::vector<v1::SampleView> samples;
};
struct ReportData {
  v1::Job job;
  std::vector<ReportStage> stages;  // in order
};

// Pure. With two or more evaluations of one suite, the first is "before" and the last "after".
std::string RenderReport(const ReportData& data);

}  // namespace rlhf::cli
