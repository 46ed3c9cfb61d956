#include "artifact/sample_id.h"

namespace rlhf::artifact {

v1::SampleId SampleIdOf(const v1::PromptLease& lease, int index) {
  v1::SampleId id;
  id.set_job_id(lease.job_id());
  id.set_step(lease.step());
  id.set_ordinal(lease.ordinal());
  id.set_index(index);
  return id;
}

}  // namespace rlhf::artifact
