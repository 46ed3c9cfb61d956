#include "cli/follow.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/connection.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "common/clock.h"
#include "common/job_state.h"
#include "common/printable.h"
#include "common/spec_loader.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

constexpr absl::Duration kUnreachableFor = absl::Minutes(5);

class Screen {
 public:
  Screen(const FollowOptions& options, v1::JobService::Stub* stub) : options_(options), stub_(stub) {}

  void Show(const v1::JobEvent& event) {
    if (options_.json) {
      std::printf("%s\n", ToJson(event, /*pretty=*/false).c_str());
      std::fflush(stdout);
      return;
    }
    Learn(event);
    view_.Apply(event);
    if (options_.terminal) {
      if (event.has_message() || event.has_state() || event.has_alert()) {
        std::printf("\r\033[K%s\n", Printable(view_.Line(event)).c_str());
      }
      std::printf("\r\033[K%s", view_.Bar(options_.width).c_str());
    } else if (const std::string line = view_.Line(event); !line.empty() && (!event.has_metrics() || Due(event))) {
      std::printf("%s\n", Printable(line).c_str());
    }
    std::fflush(stdout);
  }
  void End() {
    if (options_.terminal && !options_.json) std::printf("\r\033[K");
  }

 private:
  // A stage that is seen for the first time: its name and length.
  void Learn(const v1::JobEvent& event) {
    const std::string& id =
        event.has_metrics() && !event.metrics().job_id().empty() ? event.metrics().job_id() : event.job_id();
    if (!known_.insert(id).second) return;
    v1::GetJobRequest request;
    request.set_job_id(id);
    v1::Job job;
    const auto context = CallContext(absl::Seconds(5));
    if (stub_->GetJob(context.get(), request, &job).ok()) view_.SetJob(job);
  }
  // Plain output keeps a line a second of metrics, not hundreds.
  bool Due(const v1::JobEvent& event) {
    const absl::Duration now = Clock::Real()->Now();
    if (now - last_metrics_ < absl::Seconds(2)) return false;
    last_metrics_ = now;
    return true;
  }

  FollowOptions options_;
  v1::JobService::Stub* stub_;
  ProgressView view_;
  std::set<std::string> known_;
  absl::Duration last_metrics_ = -absl::InfiniteDuration();
};

// Shows events until the stream ends; request->resume_token follows what was seen.
absl::Status Watch(v1::JobService::Stub* stub, v1::WatchJobRequest* request, Screen* screen,
                   absl::Duration* reachable) {
  const auto context = CallContext(absl::Hours(24 * 30));
  const auto reader = stub->WatchJob(context.get(), *request);
  v1::JobEvent event;
  while (reader->Read(&event)) {
    *reachable = Clock::Real()->Now();
    // Stages count events of their own; the token is of the watched job's.
    if (event.job_id() == request->job_id() && event.sequence() > request->resume_token())
      request->set_resume_token(event.sequence());
    if (!event.has_bookmark()) screen->Show(event);
  }
  return FromGrpc(reader->Finish());
}

}  // namespace

absl::StatusOr<v1::Job> FollowJob(const std::shared_ptr<grpc::Channel>& channel, const std::string& job_id,
                                  const FollowOptions& options) {
  const auto stub = v1::JobService::NewStub(channel);
  Screen screen(options, stub.get());
  v1::WatchJobRequest request;
  request.set_include_stages(true);
  absl::Duration reachable = Clock::Real()->Now();
  while (true) {
    v1::GetJobRequest get;
    get.set_job_id(job_id);
    v1::Job job;
    const auto get_context = CallContext(absl::Seconds(10));
    absl::Status status = FromGrpc(stub->GetJob(get_context.get(), get, &job));
    if (status.ok()) {
      reachable = Clock::Real()->Now();
      request.set_job_id(job.id());
      status = Watch(stub.get(), &request, &screen, &reachable);
      // The end is shown only once all events before it were.
      if (status.ok() && IsTerminal(job.state())) {
        screen.End();
        return job;
      }
      // The newest events are what matters; those before the first one kept are gone.
      if (absl::IsOutOfRange(status)) request.set_resume_token(0);
    }
    if (!status.ok() && !absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status) &&
        !absl::IsCancelled(status) && !absl::IsOutOfRange(status)) {
      screen.End();
      return status;
    }
    if (Clock::Real()->Now() - reachable > kUnreachableFor) {
      screen.End();
      return absl::UnavailableError(absl::StrCat("lost the coordinator while following ", job_id,
                                                 "; the job goes on without us: `rlhfctl watch ", job_id, "`"));
    }
    if (!status.ok()) absl::SleepFor(absl::Milliseconds(500));
  }
}

int ExitCodeOf(const v1::Job& job) {
  switch (job.state()) {
    case v1::SUCCEEDED:
      return v1::EXIT_OK;
    case v1::CANCELLED:
      return v1::EXIT_JOB_CANCELLED;
    case v1::FAILED:
      return job.reason_code() == "GATE_CLOSED" ? v1::EXIT_GATE_CLOSED : v1::EXIT_JOB_FAILED;
    default:
      return v1::EXIT_ERROR;
  }
}

std::string Verdict(const v1::Job& job) {
  std::string out = absl::StrCat("job ", job.id(), " ", v1::JobState_Name(job.state()));
  if (!job.reason().empty()) absl::StrAppend(&out, ": ", Printable(job.reason()));
  if (job.state() == v1::SUCCEEDED) absl::StrAppend(&out, "\nnext: rlhfctl report ", job.id(), " --out report.html");
  if (job.state() == v1::FAILED) absl::StrAppend(&out, "\nnext: rlhfctl why ", job.id());
  return out;
}

FollowOptions FollowOptionsForStdout(const std::string& output) {
  FollowOptions options;
  options.json = output != "table";  // a stream is JSON lines in either case
  options.terminal = isatty(STDOUT_FILENO) != 0;
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) options.width = size.ws_col;
  return options;
}

}  // namespace rlhf::cli
