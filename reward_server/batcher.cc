#include "reward_server/batcher.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/asks_service.h"
#include "common/canonical_bytes.h"

namespace rlhf::reward {
namespace {

std::string BatchKey(const v1::ScoreRequest& request) {
  v1::ScoreRequest without_samples;
  without_samples.set_job_id(request.job_id());
  *without_samples.mutable_scorer() = request.scorer();
  *without_samples.mutable_gold() = request.gold();
  without_samples.set_reference_policy(request.reference_policy());
  without_samples.set_tokenizer(request.tokenizer());
  without_samples.set_temperature(request.temperature());
  without_samples.set_deterministic(request.deterministic());
  return CanonicalBytes(without_samples);
}

}  // namespace

Batcher::Batcher(Compute compute, const BatcherOptions& options, Observer observer)
    : compute_(std::move(compute)), options_(options), observer_(std::move(observer)) {
  for (int i = 0; i <= options.asking_threads; ++i) {
    Worker* const worker = workers_.emplace_back(std::make_unique<Worker>(options.stuck_after)).get();
    worker->asks = i > 0;
    worker->thread = std::thread([this, worker] { Loop(worker); });
  }
}

Batcher::~Batcher() {
  Stop();
}

void Batcher::Submit(v1::ScoreRequest request, Reply reply, Gone gone) {
  Item item;
  item.key = BatchKey(request);
  for (const auto& sample : request.samples())
    item.tokens += sample.prompt_tokens_size() + sample.response_tokens_size();
  item.asks = options_.asking_threads > 0 && (AsksService(request.scorer()) || AsksService(request.gold()));
  item.request = std::move(request);
  item.reply = std::move(reply);
  item.gone = std::move(gone);
  {
    absl::MutexLock lock(&mu_);
    if (!stopping_ && queue_.size() < options_.max_queued_requests) {
      queue_.push_back(std::move(item));
      return;
    }
  }
  item.reply(absl::ResourceExhaustedError(absl::StrCat("the scoring queue holds ", options_.max_queued_requests,
                                                       " requests, or the server stops; try again")));
}

size_t Batcher::queued() const {
  absl::MutexLock lock(&mu_);
  return queue_.size();
}

std::vector<Batcher::Item> Batcher::TakeGone() {
  std::vector<Item> gone;
  for (auto it = queue_.begin(); it != queue_.end();) {
    if (it->gone == nullptr || !it->gone()) {
      ++it;
      continue;
    }
    gone.push_back(std::move(*it));
    it = queue_.erase(it);
  }
  return gone;
}

std::string Batcher::StuckBecause() const {
  for (const auto& worker : workers_) {
    if (std::string why = worker->stuck.StuckBecause(); !why.empty()) return why;
  }
  return "";
}

std::deque<Batcher::Item>::iterator Batcher::Takable(const Worker& worker) {
  return std::find_if(queue_.begin(), queue_.end(), [&](const Item& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return item.asks == worker.asks && asking_.count(item.key) == 0;
  });
}

void Batcher::Loop(Worker* worker) {
  while (true) {
    std::vector<Item> batch, gone;
    std::string key;
    {
      absl::MutexLock lock(&mu_);
      const auto some = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || Takable(*worker) != queue_.end();
      };
      mu_.Await(absl::Condition(&some));
      if (Takable(*worker) == queue_.end()) return;
      // A short wait lets requests that come together share a batch; a full budget ends it early.
      const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        int64_t tokens = 0;
        for (const Item& item : queue_) tokens += item.asks == worker->asks ? item.tokens : 0;
        return stopping_ || tokens >= options_.batch_tokens;
      };
      mu_.AwaitWithTimeout(absl::Condition(&enough), options_.delay);
      // A request that took too long was sent again, as two of half its size: behind its own remains they would be late
      // as well.
      gone = TakeGone();
      int64_t tokens = 0;
      const auto first = Takable(*worker);
      if (first != queue_.end()) key = first->key;
      for (auto it = first; it != queue_.end();) {
        if (it->key != key || (!batch.empty() && tokens + it->tokens > options_.batch_tokens)) {
          ++it;
          continue;
        }
        tokens += it->tokens;
        batch.push_back(std::move(*it));
        it = queue_.erase(it);
      }
      if (worker->asks && !batch.empty()) asking_.insert(key);
    }
    for (Item& item : gone) item.reply(absl::CancelledError("nobody waits for these scores any more"));
    if (batch.empty()) continue;
    v1::ScoreRequest merged = batch.front().request;
    for (size_t i = 1; i < batch.size(); ++i) {
      for (auto& sample : *batch[i].request.mutable_samples()) *merged.add_samples() = std::move(sample);
    }
    std::vector<int> sizes{batch.front().request.samples_size()};
    for (size_t i = 1; i < batch.size(); ++i) sizes.push_back(batch[i].request.samples_size());
    const absl::Time start = absl::Now();
    v1::ScoreResponse response;
    {
      const StuckWatch::Work work(&worker->stuck);
      response = compute_(merged);
    }
    if (worker->asks) {
      absl::MutexLock lock(&mu_);
      asking_.erase(key);
    }
    observer_(merged.samples_size(), absl::Now() - start);
    int next = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      v1::ScoreResponse part;
      for (int s = 0; s < sizes[i]; ++s) *part.add_scores() = std::move(*response.mutable_scores(next++));
      batch[i].reply(std::move(part));
      ++completed_;
    }
  }
}

void Batcher::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

}  // namespace rlhf::reward
