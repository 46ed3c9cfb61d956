// Which fields of a message are printed. Internal to spec_loader.
#pragma once

#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

namespace rlhf {

// By number: all that are set, and of what the service reports (a metric, a count, a step) numbers and truth values
// that are zero too, which a reader could else not tell from ones that nobody computed. Of a job's specification
// (job.proto) what is not set is left to its default, and left out.
std::vector<const google::protobuf::FieldDescriptor*> FieldsToShow(const google::protobuf::Message& message);

}  // namespace rlhf
