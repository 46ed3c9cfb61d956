// What taking memory from the kernel costs, avoided: a new page of 4 KiB costs more than filling it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace rlhf {

// For gigabytes that are filled at once: in huge pages where the kernel has them. Not initialised; throws
// std::bad_alloc. Given back to the system with its last owner.
std::shared_ptr<uint8_t[]> AllocateLarge(size_t size);

// Asks for huge pages in what lies between; advice only.
void AdviseHugePages(void* begin, void* end);
// Also for what lies around it, to multiples of 64 MiB: a heap of malloc's for another thread than the first is such a
// piece, and what of it was touched before it was advised stays in small pages.
void AdviseHugePagesAround(void* begin, void* end);

// From now on what is freed of blocks below kMappedAlone stays with the process, up to 2 GiB of an arena of malloc's,
// instead of going back to the kernel and coming anew: a training step takes and frees the same tensors every time.
// Nothing, and false, where the environment sets malloc's threshold (MALLOC_MMAP_THRESHOLD_).
bool KeepFreedMemory();
constexpr size_t kMappedAlone = size_t{32} << 20;

}  // namespace rlhf
