#include "coordinator/grpc_adapter/call_token.h"

#include <utility>

#include "common/rpc_interceptor.h"

namespace rlhf::coordinator {

CallToken::CallToken(const Edge& edge, const grpc::CallbackServerContext& context) {
  if (edge.insecure || !CallerOf(context).role.empty()) return;
  tokens_ = edge.tokens;
  token_ = BearerTokenOf(context.client_metadata());
}

absl::Status CallToken::Check() const {
  return present() ? tokens_->Verify(token_).status() : absl::OkStatus();
}

std::shared_ptr<ReadWatch> ReadWatch::Begin(const Edge& edge, const grpc::CallbackServerContext& context,
                                            std::function<void(absl::Status)> end) {
  std::shared_ptr<ReadWatch> watch(new ReadWatch(edge, context, std::move(end)));
  if (watch->token_.present()) watch->Look();
  return watch;
}

void ReadWatch::Read(absl::FunctionRef<void()> start) {
  const std::shared_ptr<ReadWatch> self = shared_from_this();  // the stream's own may be gone once it reads
  start();
  absl::MutexLock lock(&mu_);
  ++reads_;
}

bool ReadWatch::Arrived() {
  absl::MutexLock lock(&mu_);
  --reads_;
  return !ended_;
}

void ReadWatch::Look() {
  loop_->PostAfter(kLookAtTokenEvery, [weak = weak_from_this()] {
    const std::shared_ptr<ReadWatch> watch = weak.lock();
    if (watch == nullptr) return;
    absl::Status status = watch->Check();
    if (status.ok()) return watch->Look();
    bool ends = false;
    {
      absl::MutexLock lock(&watch->mu_);
      ends = watch->ended_ = watch->reads_ > 0;
    }
    if (!ends) return watch->Look();  // at work: what it waits for next may never come
    // Outside the lock: gRPC may run the stream's callbacks on this thread.
    watch->end_(std::move(status));
  });
}

}  // namespace rlhf::coordinator
