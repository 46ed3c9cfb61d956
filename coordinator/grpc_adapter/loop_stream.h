// A server stream that lives on the event loop: everything but gRPC's own callbacks and the making of long messages
// runs there, so it needs no locks. One write is in flight at most; the next message is made when the one before was
// taken by the transport, so a slow client holds nothing but its own place.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "common/status_util.h"
#include "coordinator/grpc_adapter/call_token.h"
#include "coordinator/grpc_adapter/edge.h"

namespace rlhf::coordinator {

template <typename T>
class LoopStream : public grpc::ServerWriteReactor<T>, public std::enable_shared_from_this<LoopStream<T>> {
 public:
  explicit LoopStream(const Edge& edge) : edge_(edge) {}

  // The stream keeps itself alive from here until gRPC is done with it. It ends when its caller's token is revoked or
  // expires.
  static grpc::ServerWriteReactor<T>* Run(std::shared_ptr<LoopStream<T>> stream,
                                          const grpc::CallbackServerContext& context) {
    LoopStream<T>* raw = stream.get();
    raw->self_ = stream;
    raw->token_.emplace(raw->edge_, context);
    raw->handle_ = raw->edge_.open_calls->Add([weak = std::weak_ptr<LoopStream<T>>(stream)] {
      const auto stream = weak.lock();
      if (stream == nullptr) return;
      stream->PostHere([](LoopStream* s) {
        s->End(WithRetryDelay(absl::UnavailableError("the coordinator is shutting down; go on with the resume token"),
                              absl::Seconds(1)));
      });
    });
    // So that a client knows that it is being served, also before there is anything to say.
    raw->StartSendInitialMetadata();
    raw->PostHere([](LoopStream* s) {
      if (s->token_->present()) s->Every(kLookAtTokenEvery, [s] { s->LookAtToken(); });
      s->Step();
    });
    return raw;
  }

  void OnWriteDone(bool ok) final {
    PostHere([ok](LoopStream* s) {
      s->writing_ = false;
      if (!ok) s->End(absl::CancelledError("the client went away"));
      s->Step();
    });
  }
  void OnCancel() final {
    PostHere([](LoopStream* s) { s->End(absl::CancelledError("the client went away")); });
  }
  void OnDone() final {
    edge_.open_calls->Remove(handle_);
    PostHere([](LoopStream* s) { s->self_.reset(); });
  }

 protected:
  // On the loop, when a message may be written: calls Write or End once, or neither and Wake later.
  virtual void Pump() = 0;
  // On the loop, once, when the stream has ended for whatever reason.
  virtual void Ended() {}

  void Write(T message) {
    message_ = std::move(message);
    writing_ = true;
    this->StartWrite(&message_);
  }
  // As Write, for a message that takes time: it is made and serialized on `thread`. `make` owns what it reads.
  void WriteMade(Background* thread, absl::AnyInvocable<T()> make) {
    writing_ = true;
    thread->Run([stream = this->shared_from_this(), make = std::move(make)]() mutable {
      stream->message_ = make();
      stream->StartWrite(&stream->message_);
    });
  }
  void End(absl::Status status) {
    if (ended_) return;
    ended_ = true;
    status_ = std::move(status);
    Ended();
    Step();
  }
  // There may be something to write now. On the loop.
  void Wake() { Step(); }
  bool ended() const { return ended_; }
  // Runs fn on the loop while the stream lives.
  void PostHere(std::function<void(LoopStream*)> fn) {
    edge_.loop->Post([stream = this->shared_from_this(), fn = std::move(fn)] { fn(stream.get()); });
  }
  void Every(absl::Duration period, std::function<void()> fn) {
    edge_.loop->PostAfter(period, [weak = this->weak_from_this(), period, fn = std::move(fn)] {
      const auto stream = weak.lock();
      if (stream == nullptr || stream->ended_) return;
      fn();
      stream->Every(period, fn);
    });
  }

  const Edge& edge_;

 private:
  void LookAtToken() {
    if (absl::Status status = token_->Check(); !status.ok()) End(std::move(status));
  }
  void Step() {
    if (writing_ || finished_) return;
    if (ended_) {
      finished_ = true;
      this->Finish(ToGrpc(status_));
    } else {
      Pump();
    }
  }

  std::shared_ptr<LoopStream<T>> self_;
  std::optional<CallToken> token_;
  uint64_t handle_ = 0;
  T message_;
  bool writing_ = false, ended_ = false, finished_ = false;
  absl::Status status_;
};

}  // namespace rlhf::coordinator
