// A unary call answered from the event loop. The handler runs on the loop and answers exactly once, whenever it likes
// and on any thread; when the client has gone away or the server stops first, the call ends then and the late answer is
// dropped.
#pragma once

#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "coordinator/grpc_adapter/edge.h"

namespace rlhf::coordinator {

// The one way to finish a reactor, shared by the reactor and by the handler's Done.
template <typename Response>
class Answer {
 public:
  explicit Answer(Response* response) : response_(response) {}
  void Bind(grpc::ServerUnaryReactor* reactor) {
    absl::MutexLock lock(&mu_);
    reactor_ = reactor;
  }
  // False when the call had ended before; then `result` is untouched.
  bool Finish(absl::StatusOr<Response>&& result) {
    grpc::ServerUnaryReactor* reactor = nullptr;
    {
      absl::MutexLock lock(&mu_);
      reactor = std::exchange(reactor_, nullptr);
    }
    if (reactor == nullptr) return false;
    // Outside the lock: gRPC may run the reactor's callbacks on this thread. Nobody else finishes it any more.
    const grpc::Status status = ToGrpc(result.status());
    if (result.ok()) *response_ = *std::move(result);
    reactor->Finish(status);
    return true;
  }
  bool ended() const {
    absl::MutexLock lock(&mu_);
    return reactor_ == nullptr;
  }

 private:
  mutable absl::Mutex mu_;
  grpc::ServerUnaryReactor* reactor_ ABSL_GUARDED_BY(mu_) = nullptr;
  Response* const response_;  // lives until Finish
};

template <typename Response>
class UnaryReactor final : public grpc::ServerUnaryReactor {
 public:
  UnaryReactor(OpenCalls* calls, std::shared_ptr<Answer<Response>> answer, bool waits)
      : calls_(calls), answer_(std::move(answer)) {
    answer_->Bind(this);
    if (!waits) return;
    // Copies the answer, not this reactor: EndAll may run while the reactor goes away.
    handle_ = calls_->Add([answer = answer_] {
      answer->Finish(
          WithRetryDelay(absl::UnavailableError("the coordinator is shutting down; try again"), absl::Seconds(1)));
    });
  }
  void OnCancel() override { answer_->Finish(absl::CancelledError("the client went away")); }
  void OnDone() override {
    if (handle_ != 0) calls_->Remove(handle_);
    delete this;
  }

 private:
  OpenCalls* const calls_;
  const std::shared_ptr<Answer<Response>> answer_;
  uint64_t handle_ = 0;
};

enum class Waits { kNo, kYes };

// `handler` is void(const Caller&, Request&, Done<Response>) or absl::StatusOr<Response>(const Caller&, Request&). The
// first may take a std::function<bool()> too: whether the call has ended, and long work with it; any thread.
// `undelivered` (optional) gets an OK result that came too late, on the thread that made it.
template <typename Request, typename Response, typename Handler>
grpc::ServerUnaryReactor* OnLoop(const Edge& edge, grpc::CallbackServerContext* context, const Request* request,
                                 Response* response, Handler handler, Waits waits = Waits::kNo,
                                 std::function<void(Response)> undelivered = nullptr) {
  auto answer = std::make_shared<Answer<Response>>(response);
  auto* reactor = new UnaryReactor<Response>(edge.open_calls, answer, waits == Waits::kYes);
  // The request is copied: it goes away with the reactor, which a cancellation may end before the loop comes to it.
  edge.loop->Post([answer, caller = CallerOf(*context), request = *request, handler = std::move(handler),
                   undelivered = std::move(undelivered)]() mutable {
    if (answer->ended()) return;
    Done<Response> done([answer, undelivered = std::move(undelivered)](absl::StatusOr<Response> result) {
      // NOLINTNEXTLINE(bugprone-use-after-move): untouched where it was not taken.
      if (!answer->Finish(std::move(result)) && result.ok() && undelivered) undelivered(*std::move(result));
    });
    if constexpr (std::is_invocable_v<Handler, const Caller&, Request&, Done<Response>, std::function<bool()>>) {
      handler(caller, request, std::move(done), [answer] { return answer->ended(); });
    } else if constexpr (std::is_void_v<std::invoke_result_t<Handler, const Caller&, Request&, Done<Response>>>) {
      handler(caller, request, std::move(done));
    } else {
      answer->Finish(handler(caller, request, nullptr));
    }
  });
  return reactor;
}

// A handler without Done, for OnLoop.
template <typename F>
auto Directly(F f) {
  return [f = std::move(f)](const Caller& caller, auto& request, auto&&) mutable { return f(caller, request); };
}

// Answers on the loop with what `read` found on one of the threads.
template <typename T>
void OffLoop(EventLoop* loop, Background* threads, absl::AnyInvocable<absl::StatusOr<T>()> read, Done<T> done) {
  threads->Run([loop, read = std::move(read), done = std::move(done)]() mutable {
    absl::StatusOr<T> found = read();
    loop->Post([done = std::move(done), found = std::move(found)]() mutable { done(std::move(found)); });
  });
}

}  // namespace rlhf::coordinator
