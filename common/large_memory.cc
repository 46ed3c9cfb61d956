#include "common/large_memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cstdlib>
#include <limits>
#include <new>

namespace rlhf {
namespace {

constexpr size_t kHuge = size_t{2} << 20, kHeap = size_t{64} << 20;

uintptr_t RoundUp(uintptr_t address, size_t to = kHuge) {
  return (address + to - 1) / to * to;
}
uintptr_t RoundDown(uintptr_t address, size_t to = kHuge) {
  return address / to * to;
}

void Advise(uintptr_t begin, uintptr_t end) {
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace

void AdviseHugePages(void* begin, void* end) {
  Advise(RoundUp(reinterpret_cast<uintptr_t>(begin)), RoundDown(reinterpret_cast<uintptr_t>(end)));
}

void AdviseHugePagesAround(void* begin, void* end) {
  Advise(RoundDown(reinterpret_cast<uintptr_t>(begin), kHeap), RoundUp(reinterpret_cast<uintptr_t>(end), kHeap));
}

std::shared_ptr<uint8_t[]> AllocateLarge(size_t size) {
  if (size < 2 * kHuge) return std::shared_ptr<uint8_t[]>(new uint8_t[size]);
  const size_t mapped = size + kHuge;  // so that the bytes can begin at a huge page
  void* const base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  auto* const bytes = reinterpret_cast<uint8_t*>(RoundUp(reinterpret_cast<uintptr_t>(base)));
  AdviseHugePages(bytes, static_cast<uint8_t*>(base) + mapped);
  return {bytes, [base, mapped](uint8_t* /*bytes*/) { munmap(base, mapped); }};
}

bool KeepFreedMemory() {
  if (std::getenv("MALLOC_MMAP_THRESHOLD_") != nullptr) return false;
  mallopt(M_MMAP_THRESHOLD, kMappedAlone);  // the most that glibc takes
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);  // or arenas of other threads than the first would give back each of their heaps
  return true;
}

}  // namespace rlhf
