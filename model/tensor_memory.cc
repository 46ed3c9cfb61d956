#include "model/tensor_memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include "common/large_memory.h"

namespace rlhf::model {
namespace {

// LibTorch's memory with advice. (Its own variable THP_MEM_ALLOC_ENABLE advises for tensors of 2 MiB and more alone.)
class AdvisingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    constexpr size_t kLeast = size_t{256} << 10;
    void* const data = c10::alloc_cpu(size);
    char* const end = static_cast<char*>(data) + size;
    if (size >= kMappedAlone) {
      AdviseHugePages(data, end);  // around it lies what is not malloc's
    } else if (size >= kLeast) {
      AdviseHugePagesAround(data, end);
    }
    return {data, data, &c10::free_cpu, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};

}  // namespace

void KeepTensorMemory() {
  if (!KeepFreedMemory()) return;
  c10::SetCPUAllocator(new AdvisingAllocator, /*priority=*/1);  // LibTorch keeps it to the end of the process
}

}  // namespace rlhf::model
