#include "cli/report/timeline.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace rlhf::cli {
namespace {

// Unix time, µs.
struct Span {
  int64_t begin = 0, end = 0;
  std::string name;
  nlohmann::ordered_json args = nlohmann::ordered_json::object();
};

int64_t Micros(const google::protobuf::Timestamp& at) {
  return at.seconds() * 1'000'000 + at.nanos() / 1000;
}
int64_t Micros(double seconds) {
  return static_cast<int64_t>(seconds * 1e6);
}
double Value(const v1::MetricPoint& point, const std::string& name) {
  const auto it = point.values().find(name);
  return it == point.values().end() ? 0 : it->second;
}

// Where the spans leave a gap, and where they do not.
std::vector<Span> BusyAndIdle(const std::vector<Span>& sorted) {
  std::vector<Span> found;
  for (const Span& span : sorted) {
    if (!found.empty() && span.begin <= found.back().end) {
      found.back().end = std::max(found.back().end, span.end);
      continue;
    }
    if (!found.empty()) found.push_back({found.back().end, span.begin, "idle"});
    found.push_back({span.begin, span.end, "busy"});
  }
  return found;
}

class ChromeTrace {
 public:
  // A row of the picture: `process` groups rows, both begin with 1.
  void AddRow(int process, const std::string& process_name, int row, const std::string& name,
              const std::vector<Span>& spans, const std::string& category) {
    names_.push_back(Named("process_name", process, 0, process_name));
    names_.push_back(Named("thread_name", process, row, name));
    names_.push_back(
        {{"ph", "M"}, {"name", "thread_sort_index"}, {"pid", process}, {"tid", row}, {"args", {{"sort_index", row}}}});
    for (const Span& span : spans) {
      first_ = std::min(first_, span.begin);
      events_.push_back({{"ph", "X"},
                         {"name", span.name},
                         {"cat", category},
                         {"pid", process},
                         {"tid", row},
                         {"ts", span.begin},
                         {"dur", std::max<int64_t>(0, span.end - span.begin)},
                         {"args", span.args}});
    }
  }
  // Spans that overlap, in rows of their own below a row of busy and idle. Returns the next free row.
  int AddLanes(int process, const std::string& process_name, int row, const std::string& who, std::vector<Span> spans,
               const std::string& category) {
    std::stable_sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    AddRow(process, process_name, row++, who, BusyAndIdle(spans), "occupancy");
    std::vector<std::vector<Span>> lanes;
    for (Span& span : spans) {
      const auto free = std::find_if(lanes.begin(), lanes.end(),
                                     [&](const std::vector<Span>& lane) { return lane.back().end <= span.begin; });
      if (free == lanes.end()) {
        lanes.push_back({std::move(span)});
      } else {
        free->push_back(std::move(span));
      }
    }
    for (size_t i = 0; i < lanes.size(); ++i)
      AddRow(process, process_name, row++, absl::StrCat(who, " #", i + 1), lanes[i], category);
    return row;
  }
  std::string Json() {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (auto& name : names_) all.push_back(std::move(name));
    for (auto& event : events_) {
      event["ts"] = event["ts"].get<int64_t>() - first_;
      all.push_back(std::move(event));
    }
    const nlohmann::ordered_json trace = {{"displayTimeUnit", "ms"},
                                          {"otherData", {{"begin_unix_us", events_.empty() ? 0 : first_}}},
                                          {"traceEvents", std::move(all)}};
    return trace.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

 private:
  static nlohmann::ordered_json Named(const char* what, int process, int row, const std::string& name) {
    return {{"ph", "M"}, {"name", what}, {"pid", process}, {"tid", row}, {"args", {{"name", name}}}};
  }
  std::vector<nlohmann::ordered_json> names_, events_;
  int64_t first_ = std::numeric_limits<int64_t>::max();
};

struct Step {
  int64_t step, begin, got, trained, committed;
};

// The coordinator notes when a step was committed; the learner says how long its phases took before that.
std::vector<Step> StepsOf(const TimelineJob& job) {
  std::vector<Step> steps;
  for (const v1::MetricPoint& point : job.points) {
    const double update = Value(point, "seconds/train");
    if (update <= 0) continue;
    Step step;
    step.step = point.step();
    step.committed = Micros(point.at());
    step.trained = step.committed - Micros(Value(point, "seconds/publish"));
    step.got = step.trained - Micros(update);
    step.begin = step.got - Micros(Value(point, "seconds/wait_for_samples"));
    steps.push_back(step);
  }
  return steps;
}

std::vector<Span> LearnerSpans(const TimelineJob& job, LearnerShare* share) {
  const std::vector<Step> steps = StepsOf(job);
  std::vector<Span> spans;
  int64_t wait = 0, update = 0, publish = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    // The commit's answer, and a checkpoint, until the next step is asked for.
    const int64_t end = i + 1 < steps.size() ? std::max(step.committed, steps[i + 1].begin) : step.committed;
    const nlohmann::ordered_json args = {{"job", job.job.id()}, {"step", step.step}};
    spans.push_back({step.begin, step.got, "wait for samples", args});
    spans.push_back({step.got, step.trained, absl::StrCat("update ", step.step), args});
    spans.push_back({step.trained, end, "commit", args});
    wait += step.got - step.begin;
    update += step.trained - step.got;
    publish += end - step.trained;
  }
  const auto before = share->seconds;
  const double seconds = static_cast<double>(wait + update + publish) / 1e6;
  share->steps += static_cast<int64_t>(steps.size());
  share->seconds += seconds;
  if (share->seconds <= 0) return spans;
  const auto add = [&](double* part, int64_t micros) {
    *part = (*part * before + static_cast<double>(micros) / 1e6) / share->seconds;
  };
  add(&share->idle, wait);
  add(&share->update, update);
  add(&share->publish, publish);
  return spans;
}

std::string NameOf(const v1::SampleId& id) {
  return absl::StrCat(id.step(), "/", id.ordinal(), "/", id.index());
}

}  // namespace

Timeline MakeTimeline(const std::vector<TimelineJob>& jobs) {
  enum Process { kJobs = 1, kLearner, kRollout, kReward };
  Timeline timeline;
  ChromeTrace trace;
  std::map<std::string, std::vector<Span>> leases, scorings;
  int row = 1;
  for (const TimelineJob& job : jobs) {
    const std::string name = job.job.stage().empty() ? job.job.spec().name() : job.job.stage();
    if (job.job.has_started_at()) {
      const int64_t begin = Micros(job.job.started_at());
      int64_t end = begin;
      if (job.job.has_finished_at()) {
        end = Micros(job.job.finished_at());
      } else if (job.job.has_last_progress_at()) {
        end = Micros(job.job.last_progress_at());
      }
      trace.AddRow(kJobs, "jobs", row, name,
                   {{begin, end, v1::JobState_Name(job.job.state()), {{"job", job.job.id()}}}}, "job");
    }
    if (const std::vector<Span> spans = LearnerSpans(job, &timeline.learner); !spans.empty())
      trace.AddRow(kLearner, "learner", row, absl::StrCat(name, " rank 0"), spans, "learner");
    ++row;
    for (const v1::SampleRow& sample : job.rows) {
      const v1::SampleTimes& times = sample.times();
      const nlohmann::ordered_json args = {
          {"job", job.job.id()}, {"sample", NameOf(sample.id())}, {"attempt", sample.attempt()}};
      if (times.leased() > 0 && times.generated() > 0) {
        leases[sample.worker_id()].push_back({times.leased(), times.generated(), NameOf(sample.id()), args});
        ++timeline.leases;
      }
      if (times.sent() > 0 && times.scored() > 0) {
        scorings[times.reward_server()].push_back({times.sent(), times.scored(), NameOf(sample.id()), args});
        ++timeline.scorings;
      }
    }
  }
  row = 1;
  for (auto& [worker, spans] : leases)
    row = trace.AddLanes(kRollout, "rollout workers", row, worker, std::move(spans), "generation");
  row = 1;
  for (auto& [server, spans] : scorings)
    row = trace.AddLanes(kReward, "reward servers", row, server, std::move(spans), "scoring");
  timeline.chrome_json = trace.Json();
  return timeline;
}

}  // namespace rlhf::cli
