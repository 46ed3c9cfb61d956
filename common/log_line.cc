#include "common/log_line.h"

#include <google/protobuf/util/time_util.h>

#include "absl/strings/str_cat.h"

namespace rlhf {

v1::LogLine LogLineOf(const LogRecord& record) {
  v1::LogLine line;
  *line.mutable_at() = google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(record.at));
  line.set_level(record.level);
  line.set_job_id(record.context.job_id);
  line.set_message(record.message);
  auto& fields = *line.mutable_fields();
  if (record.context.step >= 0) fields["step"] = absl::StrCat(record.context.step);
  if (!record.context.sample.empty()) fields["sample"] = record.context.sample;
  if (record.context.group_epoch >= 0) fields["group_epoch"] = absl::StrCat(record.context.group_epoch);
  if (!record.context.trace_id.empty()) fields["trace_id"] = record.context.trace_id;
  return line;
}

}  // namespace rlhf
