// Memory for gigabytes that are filled at once, in huge pages where the kernel has them: taking new memory in pages of
// 4 KiB costs more than filling it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace rlhf {

// Not initialised; throws std::bad_alloc. Given back to the system with its last owner.
std::shared_ptr<uint8_t[]> AllocateLarge(size_t size);

// Asks for huge pages in what lies between; advice only.
void AdviseHugePages(void* begin, void* end);

}  // namespace rlhf
