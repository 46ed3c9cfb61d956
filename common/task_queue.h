// The threads of an HTTP listener. Unlike the library's own queue this one is bounded: when all threads are busy and
// the queue is full, accepting waits, so a flood of connections stays in the kernel's backlog and takes no descriptors
// from the rest of the process.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include <httplib.h>

#include "common/bounded_queue.h"

namespace rlhf {

class BoundedTaskQueue final : public httplib::TaskQueue {
 public:
  BoundedTaskQueue(int threads, size_t waiting) : queue_(waiting) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  void enqueue(std::function<void()> task) override { queue_.Push(std::move(task)); }
  void shutdown() override {
    queue_.Close();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Work() {
    while (auto task = queue_.Pop()) (*task)();
  }

  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace rlhf
