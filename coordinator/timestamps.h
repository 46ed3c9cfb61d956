// absl::Time as protobuf's Timestamp.
#pragma once

#include <google/protobuf/timestamp.pb.h>

#include "absl/time/time.h"

namespace rlhf::coordinator {

inline google::protobuf::Timestamp ToTimestamp(absl::Time at) {
  const absl::Duration since = at - absl::UnixEpoch();
  google::protobuf::Timestamp out;
  out.set_seconds(absl::ToInt64Seconds(since));
  out.set_nanos(static_cast<int32_t>((since - absl::Seconds(out.seconds())) / absl::Nanoseconds(1)));
  return out;
}

inline absl::Time FromTimestamp(const google::protobuf::Timestamp& at) {
  return absl::FromUnixSeconds(at.seconds()) + absl::Nanoseconds(at.nanos());
}

}  // namespace rlhf::coordinator
