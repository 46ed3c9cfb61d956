#include "client/cpp/fleet_session.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/channel.h"
#include "common/log.h"
#include "common/status_util.h"

namespace rlhf::client {
namespace {

constexpr absl::Duration kSessionCallTimeout = absl::Milliseconds(2500);
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(100);
constexpr absl::Duration kLastBackoff = absl::Seconds(2);
constexpr int kDefaultHeartbeatMs = 3000;

class Session final : public FleetSession {
 public:
  Session(std::shared_ptr<grpc::Channel> channel, v1::RegisterRequest identity, Callbacks callbacks)
      : stub_(v1::FleetService::NewStub(std::move(channel))),
        identity_(std::move(identity)),
        callbacks_(std::move(callbacks)),
        thread_([this] { Run(); }) {}
  ~Session() override { Stop(); }

  std::string session_id() const override {
    absl::MutexLock lock(&mu_);
    return session_id_;
  }
  bool WaitRegistered(absl::Duration timeout) override {
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(this, &Session::RegisteredOrEnded), timeout);
    return announced_;
  }
  void Invalidate() override {
    absl::MutexLock lock(&mu_);
    ForgetSession();
  }
  void Invalidate(const std::string& unknown_session_id) override {
    absl::MutexLock lock(&mu_);
    if (session_id_ == unknown_session_id) ForgetSession();
  }
  absl::Status fatal() const override {
    absl::MutexLock lock(&mu_);
    return fatal_;
  }
  void Stop() override {
    {
      absl::MutexLock lock(&mu_);
      stopped_ = true;
      if (call_in_flight_ != nullptr) call_in_flight_->TryCancel();
    }
    absl::MutexLock lock(&join_mu_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run() {
    while (true) {
      absl::Duration pause;
      if (session_id().empty()) {
        const absl::Status status = Register();
        if (absl::IsFailedPrecondition(status)) {
          spdlog::error("the coordinator refuses this process for good: {}", status.ToString());
          absl::MutexLock lock(&mu_);
          fatal_ = status;
          return;
        }
        pause = PauseAfter(status, "register");
      } else {
        pause = PauseAfter(Heartbeat(), "heartbeat");
      }
      absl::MutexLock lock(&mu_);
      const bool must_register = session_id_.empty();
      // A session that is lost meanwhile is to be replaced at once; one that could not be made waits its backoff.
      mu_.AwaitWithTimeout(must_register ? absl::Condition(&stopped_) : absl::Condition(this, &Session::LostOrStopped),
                           pause);
      if (stopped_) return;
    }
  }

  absl::Status Register() {
    v1::RegisterResponse response;
    const absl::Status status =
        Call([&](grpc::ClientContext* context) { return stub_->Register(context, identity_, &response); });
    if (!status.ok()) return status;
    if (response.session_id().empty()) return absl::InternalError("the coordinator gave a session without an id");
    interval_ = absl::Milliseconds(response.heartbeat_interval_ms() > 0 ? response.heartbeat_interval_ms()
                                                                        : kDefaultHeartbeatMs);
    {
      absl::MutexLock lock(&mu_);
      session_id_ = response.session_id();
    }
    spdlog::info("registered as {}, session {}", identity_.instance_id(), response.session_id());
    if (callbacks_.on_session) callbacks_.on_session(response.session_id());
    absl::MutexLock lock(&mu_);
    // Whoever waited must find the callback's work done, unless the session was lost meanwhile.
    announced_ = session_id_ == response.session_id();
    return absl::OkStatus();
  }

  absl::Status Heartbeat() {
    v1::HeartbeatRequest request;
    v1::HeartbeatResponse response;
    const std::string session = session_id();
    if (session.empty()) return absl::OkStatus();
    if (callbacks_.fill_heartbeat) callbacks_.fill_heartbeat(&request);
    request.set_session_id(session);
    const absl::Status status =
        Call([&](grpc::ClientContext* context) { return stub_->Heartbeat(context, request, &response); });
    if (status.ok()) {
      if (callbacks_.on_heartbeat) callbacks_.on_heartbeat(response);
    } else if (ReasonOf(status) == v1::UNKNOWN_SESSION) {
      spdlog::warn("the coordinator does not know session {}; registering again", session);
      Invalidate(session);
      return absl::OkStatus();
    }
    return status;
  }

  template <typename Invoke>
  absl::Status Call(Invoke invoke) {
    const std::unique_ptr<grpc::ClientContext> context = MakeContext(kSessionCallTimeout);
    {
      absl::MutexLock lock(&mu_);
      if (stopped_) return absl::CancelledError("the session was stopped");
      call_in_flight_ = context.get();
    }
    const absl::Status status = FromGrpc(invoke(context.get()));
    absl::MutexLock lock(&mu_);
    call_in_flight_ = nullptr;
    return status;
  }

  // How long to wait before the next call, and a line in the log when it got worse or better.
  absl::Duration PauseAfter(const absl::Status& status, absl::string_view what) {
    if (status.ok()) {
      if (failures_ > 0) spdlog::info("the coordinator answers again after {} failed calls", failures_);
      failures_ = 0;
      return session_id().empty() ? absl::ZeroDuration() : interval_;
    }
    if (failures_ == 0 && !stopped()) spdlog::warn("{} failed, trying again: {}", std::string(what), status.ToString());
    const absl::Duration backoff = std::min(kLastBackoff, kFirstBackoff * (1 << std::min(failures_, 10)));
    ++failures_;
    const absl::Duration jittered = backoff * absl::Uniform(random_, 0.5, 1.0);
    // A heartbeat that failed is not repeated later than the next one is due.
    return session_id().empty() ? jittered : std::min(jittered, interval_);
  }

  bool stopped() const {
    absl::MutexLock lock(&mu_);
    return stopped_;
  }
  void ForgetSession() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    session_id_.clear();
    announced_ = false;
  }
  bool RegisteredOrEnded() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return announced_ || stopped_ || !fatal_.ok(); }
  bool LostOrStopped() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopped_ || session_id_.empty(); }

  const std::unique_ptr<v1::FleetService::Stub> stub_;
  const v1::RegisterRequest identity_;
  const Callbacks callbacks_;

  // Of the session's thread alone.
  absl::Duration interval_ = absl::Milliseconds(kDefaultHeartbeatMs);
  int failures_ = 0;
  absl::BitGen random_;

  mutable absl::Mutex mu_;
  std::string session_id_ ABSL_GUARDED_BY(mu_);
  bool announced_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status fatal_ ABSL_GUARDED_BY(mu_);
  grpc::ClientContext* call_in_flight_ ABSL_GUARDED_BY(mu_) = nullptr;

  absl::Mutex join_mu_ ABSL_ACQUIRED_BEFORE(mu_);
  std::thread thread_ ABSL_GUARDED_BY(join_mu_);  // last: it uses everything above
};

}  // namespace

std::unique_ptr<FleetSession> FleetSession::Start(std::shared_ptr<grpc::Channel> channel,
                                                  const v1::RegisterRequest& identity, Callbacks callbacks) {
  return std::make_unique<Session>(std::move(channel), identity, std::move(callbacks));
}

}  // namespace rlhf::client
