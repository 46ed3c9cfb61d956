// Memory of tensors on the CPU, for processes that take and free the same ones over and over.
#pragma once

namespace rlhf::model {

// From now on the memory of freed tensors stays with the process, as KeepFreedMemory says, and tensors of 256 KiB and
// more ask for huge pages: a step goes through more memory than the processor has addresses of small pages at hand.
// Once, before tensors are made.
void KeepTensorMemory();

}  // namespace rlhf::model
