#include "coordinator/grpc_adapter/watch_job.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

constexpr int kEventsAtOnce = 100;

bool Before(const google::protobuf::Timestamp& a, const google::protobuf::Timestamp& b) {
  return a.seconds() != b.seconds() ? a.seconds() < b.seconds() : a.nanos() < b.nanos();
}

}  // namespace

WatchJobStream::WatchJobStream(const Edge& edge, Caller caller, v1::WatchJobRequest request,
                               absl::Duration bookmark_period)
    : LoopStream(edge), caller_(std::move(caller)), request_(std::move(request)), bookmark_period_(bookmark_period) {}

absl::Status WatchJobStream::Begin() {
  RLHF_ASSIGN_OR_RETURN(const v1::Job job, edge_.FindJob(caller_, request_.job_id(), ""));
  const int64_t resume = request_.resume_token();
  if (resume < 0 || resume > edge_.events->LastSequence(job.id())) {
    return WithReason(
        absl::OutOfRangeError(absl::StrCat("resume_token ", resume, " is not of this job's events (the newest is ",
                                           edge_.events->LastSequence(job.id()), "); get the job and watch from 0")),
        v1::RESUME_TOKEN_TOO_OLD);
  }
  sent_ = resume;
  // The end may have been sent before the client came back.
  end_seen_ = IsTerminal(job.state()) && resume > 0 && resume == edge_.events->LastSequence(job.id());
  AddSource(job.id(), resume);
  last_own_ = edge_.loop->clock().Now();
  Every(bookmark_period_ / 5, [this] { Tick(); });
  return AddStages();
}

void WatchJobStream::AddSource(const std::string& job_id, int64_t from) {
  Source& source = sources_.emplace_back();
  source.job_id = job_id;
  source.cursor = from;
  source.watch = edge_.events->Watch(job_id, [this, at = &source] {
    at->dirty = true;
    if (std::exchange(wake_posted_, true)) return;
    // Not from within the event log's round of wakes, which ending the stream would change.
    PostHere([this](LoopStream*) {
      wake_posted_ = false;
      Wake();
    });
  });
}

absl::Status WatchJobStream::AddStages() {
  if (!request_.include_stages()) return absl::OkStatus();
  RLHF_ASSIGN_OR_RETURN(const v1::Job job, edge_.jobs->Get(sources_.front().job_id, ""));
  const bool resumed_here = known_stages_.empty() && request_.resume_token() > 0;
  for (const std::string& child : job.children()) {
    if (!known_stages_.insert(child).second) continue;
    if (resumed_here) {
      const absl::StatusOr<v1::Job> stage = edge_.jobs->Get(child, job.spec().project());
      if (stage.ok() && IsTerminal(stage->state())) continue;
    }
    AddSource(child, 0);
  }
  return absl::OkStatus();
}

absl::Status WatchJobStream::Fill(Source* source) {
  if (!source->page.empty() || !source->dirty) return absl::OkStatus();
  RLHF_ASSIGN_OR_RETURN(std::vector<v1::JobEvent> events,
                        edge_.events->Read(source->job_id, source->cursor, kEventsAtOnce));
  if (source == &sources_.front() && std::exchange(first_read_, false) && request_.resume_token() > 0 &&
      !events.empty() && events.front().sequence() > request_.resume_token() + 1) {
    return WithReason(absl::OutOfRangeError(absl::StrCat("events after resume_token ", request_.resume_token(),
                                                         " were removed; get the job and watch from 0")),
                      v1::RESUME_TOKEN_TOO_OLD);
  }
  source->dirty = static_cast<int>(events.size()) == kEventsAtOnce;
  for (v1::JobEvent& event : events) {
    source->cursor = event.sequence();
    source->page.push_back(std::move(event));
  }
  return absl::OkStatus();
}

void WatchJobStream::Send(Source* source) {
  v1::JobEvent event = std::move(source->page.front());
  source->page.pop_front();
  if (source == &sources_.front()) {
    sent_ = event.sequence();
    last_own_ = edge_.loop->clock().Now();
    if (event.has_state() && IsTerminal(event.state().to())) end_seen_ = true;
  }
  idle_ticks_ = 0;
  Write(std::move(event));
}

bool WatchJobStream::JobEnded() const {
  if (sent_ < edge_.events->LastSequence(sources_.front().job_id)) return false;
  const absl::StatusOr<v1::Job> job = edge_.jobs->Get(sources_.front().job_id, "");
  // A job that was deleted under the watcher has ended too.
  if (job.ok() && !IsTerminal(job->state())) return false;
  return end_seen_ || idle_ticks_ >= 2;
}

void WatchJobStream::Pump() {
  if (!begun_) {
    begun_ = true;
    if (absl::Status status = Begin(); !status.ok()) return End(status);
  }
  Source* oldest = nullptr;
  for (Source& source : sources_) {
    if (absl::Status status = Fill(&source); !status.ok()) return End(status);
    if (source.page.empty()) continue;
    if (oldest == nullptr || Before(source.page.front().at(), oldest->page.front().at())) oldest = &source;
  }
  if (oldest != nullptr) return Send(oldest);
  // New stages first: a pipeline's end must not hide what its last stage said.
  const size_t before = sources_.size();
  if (absl::Status status = AddStages(); !status.ok() && !absl::IsNotFound(status)) return End(status);
  if (sources_.size() != before) return Pump();
  if (JobEnded()) return End(absl::OkStatus());
  if (std::exchange(bookmark_due_, false)) {
    v1::JobEvent bookmark;
    bookmark.set_job_id(sources_.front().job_id);
    bookmark.set_sequence(sent_);
    const int64_t now = absl::ToUnixNanos(edge_.loop->clock().WallNow());
    bookmark.mutable_at()->set_seconds(now / 1'000'000'000);
    bookmark.mutable_at()->set_nanos(static_cast<int32_t>(now % 1'000'000'000));
    bookmark.mutable_bookmark();
    last_own_ = edge_.loop->clock().Now();
    Write(std::move(bookmark));
  }
}

void WatchJobStream::Tick() {
  ++idle_ticks_;
  if (edge_.loop->clock().Now() - last_own_ >= bookmark_period_ * 0.8) bookmark_due_ = true;
  Wake();
}

void WatchJobStream::Ended() {
  for (const Source& source : sources_) edge_.events->Unwatch(source.watch);
}

}  // namespace rlhf::coordinator
