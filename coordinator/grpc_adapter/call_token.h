// The token that a stream's caller came with. The authorizer looks at it when the call begins; while the stream is open
// it is looked at again, so that one that was revoked or has expired does not go on.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/grpc_adapter/edge.h"

namespace rlhf::coordinator {

constexpr absl::Duration kLookAtTokenEvery = absl::Seconds(1);

// Any thread.
class CallToken {
 public:
  CallToken(const Edge& edge, const grpc::CallbackServerContext& context);
  // Of the fleet, and without TLS, nobody comes with one.
  bool present() const { return tokens_ != nullptr; }
  // Unauthenticated with UNAUTHENTICATED_CALLER once it is revoked or has expired; OK without one.
  absl::Status Check() const;

 private:
  const Tokens* tokens_ = nullptr;
  std::string token_;
};

// For a stream that its client sends: ends it while nothing comes, too. The stream reads by it; in between it asks
// Check itself. Thread-safe.
class ReadWatch : public std::enable_shared_from_this<ReadWatch> {
 public:
  // `end` finishes the stream. It is called on the loop, once at most, and only while a read is under way: so long the
  // stream is there.
  static std::shared_ptr<ReadWatch> Begin(const Edge& edge, const grpc::CallbackServerContext& context,
                                          std::function<void(absl::Status)> end);
  // `start` is the stream's StartRead; when this returns, the stream may be gone.
  void Read(absl::FunctionRef<void()> start);
  // First thing in OnReadDone. False: the stream was ended meanwhile, and there is nothing more to do.
  bool Arrived();
  absl::Status Check() const { return token_.Check(); }

 private:
  ReadWatch(const Edge& edge, const grpc::CallbackServerContext& context, std::function<void(absl::Status)> end)
      : loop_(edge.loop), token_(edge, context), end_(std::move(end)) {}
  void Look();

  EventLoop* const loop_;
  const CallToken token_;
  const std::function<void(absl::Status)> end_;
  absl::Mutex mu_;
  int reads_ ABSL_GUARDED_BY(mu_) = 0;  // started and not arrived; -1 where one arrived before it was counted
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace rlhf::coordinator
