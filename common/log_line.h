// A line of a process's log as the coordinator keeps it (rlhf.v1.LogLine).
#pragma once

#include "common/log.h"
#include "rlhf/v1/log_service.pb.h"

namespace rlhf {

// The line with what is known of what it is about: step, sample, group_epoch and trace_id among its fields.
v1::LogLine LogLineOf(const LogRecord& record);

}  // namespace rlhf
