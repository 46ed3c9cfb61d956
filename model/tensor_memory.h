// Memory of tensors on the CPU, for processes that take and free the same ones over and over.
#pragma once

namespace rlhf::model {

// From now on what tensors are freed of stays with the process (KeepFreedMemory), and what lies around them is in huge
// pages where the kernel has them: a step goes through more memory than the processor has addresses of small pages at
// hand. Once, before tensors are made.
void KeepTensorMemory();

}  // namespace rlhf::model
