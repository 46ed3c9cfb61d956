// A manifest's files as protocol messages.
#pragma once

#include "artifact/artifact_root.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::artifact {

// In the manifest's order.
google::protobuf::RepeatedPtrField<v1::FileEntry> EntriesOf(const Manifest& manifest);

}  // namespace rlhf::artifact
