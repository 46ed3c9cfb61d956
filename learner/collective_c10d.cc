// Gloo and NCCL through c10d's process groups, with waits and timeouts of our own.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "learner/collective.h"
#include "learner/wakeups.h"

namespace rlhf::learner {
namespace {

constexpr std::chrono::milliseconds kSlice{100};             // how soon Gloo's abort is noticed, and NCCL's error
constexpr absl::Duration kNcclPoll = absl::Milliseconds(1);  // where no wake-up can be had
// The watchdog's own, which must never come before ours: ours ends a group and leaves the process alive.
[[maybe_unused]] constexpr std::chrono::hours kWatchdogTimeout{24};

absl::Status Broken(absl::string_view what, const char* why) {
  return absl::UnavailableError(absl::StrCat("collective: ", what, ": ", why));
}

// c10d throws for everything, from a lost peer to a timeout: the group is over in each case.
template <typename Fn>
absl::Status Try(absl::string_view what, Fn&& fn) {
  try {
    fn();
    return absl::OkStatus();
  } catch (const c10::Error& e) {
    return Broken(what, e.what_without_backtrace());
  } catch (const std::exception& e) {
    return Broken(what, e.what());
  }
}

class C10dCollective final : public Collective {
 public:
  C10dCollective(c10::intrusive_ptr<c10d::Backend> backend, const GroupOptions& options)
      : backend_(std::move(backend)), options_(options) {}

  int rank() const override { return options_.rank; }
  int world_size() const override { return options_.world_size; }

  absl::Status AllReduceSum(torch::Tensor tensor) override {
    absl::StatusOr<std::unique_ptr<Pending>> pending = StartAllReduceSum(std::move(tensor));
    return pending.ok() ? (*pending)->Wait() : pending.status();
  }

  absl::Status Broadcast(torch::Tensor tensor, int root) override {
    if (aborted_) return Broken("broadcast", "the group was given up");
    c10::intrusive_ptr<c10d::Work> work;
    std::vector<at::Tensor> tensors{tensor};
    const absl::Status status = Try("broadcast", [&] {
      c10d::BroadcastOptions options;
      options.rootRank = root;
      work = backend_->broadcast(tensors, options);
    });
    return status.ok() ? WaitFor(work, "broadcast") : status;
  }

  absl::StatusOr<std::unique_ptr<Pending>> StartAllReduceSum(torch::Tensor tensor) override {
    if (aborted_) return Broken("all-reduce", "the group was given up");
    auto sum = std::make_unique<Sum>();
    sum->group = this;
    sum->tensors = {std::move(tensor)};
    const absl::Status status = Try("all-reduce", [&] { sum->work = backend_->allreduce(sum->tensors); });
    if (!status.ok()) return status;
    return sum;
  }

  absl::StatusOr<std::unique_ptr<Pending>> StartReduceScatterSum(torch::Tensor tensor) override {
    // Gloo's own is an all-reduce of a copy, and its waits cannot be sliced.
    if (!options_.device.is_cuda()) return StartAllReduceSum(std::move(tensor));
    if (aborted_) return Broken("reduce-scatter", "the group was given up");
    auto sum = std::make_unique<Sum>();
    sum->group = this;
    torch::Tensor own = OwnPart(tensor);
    sum->tensors = {std::move(tensor), own};
    const absl::Status status = Try("reduce-scatter", [&] {
      sum->work = backend_->_reduce_scatter_base(sum->tensors[1], sum->tensors[0], c10d::ReduceScatterOptions());
    });
    if (!status.ok()) return status;
    return sum;
  }

  absl::Status AllGather(torch::Tensor tensor) override {
    if (aborted_) return Broken("all-gather", "the group was given up");
    c10::intrusive_ptr<c10d::Work> work;
    torch::Tensor own = OwnPart(tensor);
    if (!options_.device.is_cuda()) own = own.clone();  // NCCL takes the part where it lies
    const absl::Status status =
        Try("all-gather", [&] { work = backend_->_allgather_base(tensor, own, c10d::AllgatherOptions()); });
    return status.ok() ? WaitFor(work, "all-gather") : status;
  }

  absl::StatusOr<bool> Vote(bool ok) override {
    torch::Tensor against =
        torch::full({1}, ok ? 0.0 : 1.0, torch::TensorOptions().dtype(torch::kFloat32).device(options_.device));
    const absl::Status status = AllReduceSum(against);
    if (!status.ok()) return status;
    return against.item<float>() == 0;
  }

  void Abort() override {
    aborted_ = true;
    wakeups_->Wake();
#ifdef USE_C10D_NCCL
    if (options_.device.is_cuda())
      (void)Try("abort", [&] { static_cast<c10d::ProcessGroupNCCL*>(backend_.get())->abort(); });
#endif
  }
  bool aborted() const override {
    return aborted_;
  }

 private:
  struct Sum final : public Pending {
    absl::Status Wait() override { return group->WaitFor(work, "all-reduce"); }
    C10dCollective* group = nullptr;
    std::vector<at::Tensor> tensors;
    c10::intrusive_ptr<c10d::Work> work;
  };

  torch::Tensor OwnPart(const torch::Tensor& tensor) const {
    const int64_t size = tensor.numel() / options_.world_size;
    return tensor.narrow(0, options_.rank * size, size);
  }

  absl::Status WaitFor(const c10::intrusive_ptr<c10d::Work>& work, absl::string_view what) {
    const absl::Duration deadline = Clock::Real()->Now() + options_.timeout;
    if (options_.device.is_cuda()) return WaitForNccl(work, what, deadline);
    while (true) {
      // Gloo cannot abort: a slice that passes throws too, and is told from a failure by the work's own state.
      const absl::Status status = Try(what, [&] { work->wait(kSlice); });
      if (status.ok()) return status;
      // It may have completed just after the slice passed: its own outcome counts.
      if (work->isCompleted()) return Try(what, [&] { work->wait(); });
      if (aborted_) return Broken(what, "the group was given up");
      if (Clock::Real()->Now() > deadline)
        return Broken(
            what,
            absl::StrCat("no answer from the other ranks within ", absl::FormatDuration(options_.timeout)).c_str());
    }
  }

  // NCCL's wait with a timeout aborts the communicators when it passes, so a slice of it would end the group at the
  // first slow rank, and its wait without one blocks nobody. So the device wakes us when the sum is done, and Abort
  // does, whether or not the device ever comes to an end; errors of the communicator are asked for in between.
  absl::Status WaitForNccl(const c10::intrusive_ptr<c10d::Work>& work, absl::string_view what,
                           absl::Duration deadline) {
    absl::Status asked;
    bool completed = false;
    const auto over = [&] {
      asked = Try(what, [&] { completed = work->isCompleted(); });
      return aborted_ || !asked.ok() || completed;
    };
    if (!over()) {
      const bool wakes = Try(what, [&] { WakeWhenDone(work); }).ok();
      wakeups_->Await(over, wakes ? absl::FromChrono(kSlice) : kNcclPoll, *Clock::Real(), deadline);
    }
    // First: an aborted sum looks completed, and is none.
    if (aborted_) return Broken(what, "the group was given up");
    if (!asked.ok()) return asked;
    if (completed) {
      const absl::Status status = Try(what, [&] { work->wait(); });  // an error of its own, and the stream's order
      return status.ok() && aborted_ ? Broken(what, "the group was given up") : status;
    }
    Abort();  // a kernel that waits for a dead rank would hold the device for ever
    return Broken(
        what, absl::StrCat("no answer from the other ranks within ", absl::FormatDuration(options_.timeout)).c_str());
  }

  // On a stream of its own: what was queued to be computed next is not waited for.
  void WakeWhenDone(const c10::intrusive_ptr<c10d::Work>& work) {
#ifdef USE_C10D_NCCL
    const c10::cuda::CUDAGuard guard(options_.device);
    if (!waking_) waking_ = c10::cuda::getStreamFromPool(/*isHighPriority=*/false);
    const c10::cuda::CUDAStreamGuard on(*waking_);
    work->blockCurrentStream();
    // The device may come to it after this group is gone.
    auto held = std::make_unique<std::shared_ptr<Wakeups>>(wakeups_);
    const auto wake = [](void* wakeups) {
      const std::unique_ptr<std::shared_ptr<Wakeups>> own(static_cast<std::shared_ptr<Wakeups>*>(wakeups));
      (*own)->Wake();
    };
    if (cudaLaunchHostFunc(waking_->stream(), wake, held.get()) != cudaSuccess) {
      cudaGetLastError();  // the next call shall not report it
      throw std::runtime_error("cudaLaunchHostFunc");
    }
    (void)held.release();
#endif
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  const GroupOptions options_;
  std::atomic<bool> aborted_{false};
  const std::shared_ptr<Wakeups> wakeups_ = std::make_shared<Wakeups>();
#ifdef USE_C10D_NCCL
  std::optional<c10::cuda::CUDAStream> waking_;
#endif
};

class TcpRendezvous final : public Rendezvous {
 public:
  TcpRendezvous(c10::intrusive_ptr<c10d::TCPStore> store, int port) : store_(std::move(store)), port_(port) {}
  int port() const override { return port_; }

 private:
  c10::intrusive_ptr<c10d::TCPStore> store_;
  int port_;
};

std::chrono::milliseconds Millis(absl::Duration duration) {
  return absl::ToChronoMilliseconds(duration);
}

// TCPStore by itself would listen on every interface.
absl::StatusOr<std::pair<int, int>> ListenOn(const std::string& address) {
  const auto failed = [&](const char* what) {
    return absl::UnavailableError(absl::StrCat("rendezvous: cannot ", what, " ", address, ": ", std::strerror(errno)));
  };
  addrinfo wanted{}, *found = nullptr;
  wanted.ai_flags = AI_NUMERICHOST;
  wanted.ai_socktype = SOCK_STREAM;
  if (::getaddrinfo(address.c_str(), nullptr, &wanted, &found) != 0)
    return absl::InvalidArgumentError(absl::StrCat("expected an IPv4 or IPv6 address, found \"", address, "\""));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> at(found, &::freeaddrinfo);
  const int fd = ::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, 0);
  if (fd < 0) return failed("open a socket for");
  sockaddr_in6 bound{};  // of both families: their ports are in the same place
  socklen_t size = sizeof(bound);
  if (::bind(fd, at->ai_addr, at->ai_addrlen) != 0 || ::listen(fd, 128) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    const absl::Status status = failed("listen on");
    ::close(fd);
    return status;
  }
  return std::pair(fd, static_cast<int>(ntohs(bound.sin6_port)));
}

}  // namespace

void LeaveTimeoutsToUs() {
  for (const char* name :
       {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING", "TORCH_NCCL_DUMP_ON_TIMEOUT"})
    ::setenv(name, "0", /*overwrite=*/0);
}

absl::StatusOr<std::unique_ptr<Rendezvous>> Rendezvous::Host(const std::string& interface_address,
                                                             absl::Duration timeout) {
  absl::StatusOr<std::pair<int, int>> listening = ListenOn(interface_address);
  if (!listening.ok()) return listening.status();
  c10::intrusive_ptr<c10d::TCPStore> store;
  const absl::Status status = Try("rendezvous", [&] {
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(listening->second);
    options.isServer = true;
    options.waitWorkers = false;
    options.timeout = Millis(timeout);
    options.masterListenFd = listening->first;  // the store owns it from here
    store = c10::make_intrusive<c10d::TCPStore>(interface_address, options);
  });
  if (!status.ok()) return status;
  return std::make_unique<TcpRendezvous>(std::move(store), listening->second);
}

absl::StatusOr<std::unique_ptr<Collective>> ConnectGroup(const GroupOptions& options) {
  c10::intrusive_ptr<c10d::Backend> backend;
  const absl::Status status = Try(absl::StrCat("rank ", options.rank, " of ", options.world_size), [&] {
    c10d::TCPStoreOptions store_options;
    store_options.port = static_cast<uint16_t>(options.store_port);
    store_options.timeout = Millis(options.timeout);
    c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::TCPStore>(options.store_host, store_options);
    store = c10::make_intrusive<c10d::PrefixStore>(options.prefix, store);
    if (options.device.is_cuda()) {
#ifdef USE_C10D_NCCL
      auto nccl = c10d::ProcessGroupNCCL::Options::create();
      nccl->timeout = kWatchdogTimeout;
      backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, options.rank, options.world_size, nccl);
#else
      throw std::runtime_error("this build has no NCCL: build the preset cuda");
#endif
    } else {
      auto gloo = c10d::ProcessGroupGloo::Options::create(Millis(options.timeout));
      gloo->devices = {c10d::ProcessGroupGloo::createDeviceForHostname(options.interface_address)};
      backend = c10::make_intrusive<c10d::ProcessGroupGloo>(store, options.rank, options.world_size, gloo);
    }
  });
  if (!status.ok()) return status;
  return std::make_unique<C10dCollective>(std::move(backend), options);
}

}  // namespace rlhf::learner
