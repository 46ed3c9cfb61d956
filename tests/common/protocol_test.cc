// Version 1 of the protocol only grows: what a release could call, name or number, every later one of v1 still has, as
// it was. tests/golden/protocol.txt has a line for each method, field and value that any of them had.
//
// What is new is added to the file by this program itself, which takes nothing out:
//   RLHF_ADD_TO_PROTOCOL=1 build/release/tests/common_tests --gtest_filter='Protocol.*'   (with RLHF_SOURCE_DIR)
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
// Their presence links every file of the protocol.
#include "rlhf/v1/admin_service.pb.h"
#include "rlhf/v1/artifact_service.pb.h"
#include "rlhf/v1/feedback_service.pb.h"
#include "rlhf/v1/fleet_service.pb.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/learner_service.pb.h"
#include "rlhf/v1/log_service.pb.h"
#include "rlhf/v1/oversight_service.pb.h"
#include "rlhf/v1/reward_service.pb.h"
#include "rlhf/v1/state.pb.h"
#include "rlhf/v1/weights_service.pb.h"
#include "tests/testing/golden.h"

namespace rlhf {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;

std::string TypeOf(const FieldDescriptor& field) {
  if (field.is_map())
    return absl::StrCat("map<", TypeOf(*field.message_type()->map_key()), ",",
                        TypeOf(*field.message_type()->map_value()), ">");
  std::string type = field.type_name();
  if (field.type() == FieldDescriptor::TYPE_MESSAGE) type = field.message_type()->full_name();
  if (field.type() == FieldDescriptor::TYPE_ENUM) type = field.enum_type()->full_name();
  if (field.is_repeated()) return absl::StrCat("repeated ", type);
  if (const auto* choice = field.real_containing_oneof()) return absl::StrCat(type, " of oneof ", choice->name());
  // What is absent can be told from a zero, or cannot: a reader of either kind goes wrong with the other.
  return field.has_presence() && field.type() != FieldDescriptor::TYPE_MESSAGE ? absl::StrCat("optional ", type) : type;
}

void Describe(const EnumDescriptor& type, std::set<std::string>* lines) {
  for (int i = 0; i < type.value_count(); ++i)
    lines->insert(absl::StrCat(type.full_name(), " ", type.value(i)->number(), " ", type.value(i)->name()));
}

void Describe(const Descriptor& type, std::set<std::string>* lines) {
  if (type.options().map_entry()) return;
  lines->insert(std::string(type.full_name()));
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    lines->insert(absl::StrCat(type.full_name(), " ", field.number(), " ", field.name(), " ", TypeOf(field)));
  }
  for (int i = 0; i < type.reserved_range_count(); ++i)
    lines->insert(absl::StrCat(type.full_name(), " reserved ", type.reserved_range(i)->start, " to ",
                               type.reserved_range(i)->end - 1));
  for (int i = 0; i < type.nested_type_count(); ++i) Describe(*type.nested_type(i), lines);
  for (int i = 0; i < type.enum_type_count(); ++i) Describe(*type.enum_type(i), lines);
}

std::set<std::string> Protocol() {
  std::set<std::string> lines;
  for (const auto& entry : std::filesystem::directory_iterator(SourceDir() + "/proto/rlhf/v1")) {
    const std::string name = absl::StrCat("rlhf/v1/", entry.path().filename().string());
    const FileDescriptor* const file = google::protobuf::DescriptorPool::generated_pool()->FindFileByName(name);
    EXPECT_NE(file, nullptr) << name << " is not linked into this test: include its header";
    if (file == nullptr) continue;
    for (int i = 0; i < file->message_type_count(); ++i) Describe(*file->message_type(i), &lines);
    for (int i = 0; i < file->enum_type_count(); ++i) Describe(*file->enum_type(i), &lines);
    for (int i = 0; i < file->service_count(); ++i) {
      for (int j = 0; j < file->service(i)->method_count(); ++j) {
        const auto& method = *file->service(i)->method(j);
        lines.insert(absl::StrCat(method.full_name(), method.client_streaming() ? " stream " : " ",
                                  method.input_type()->full_name(), " returns",
                                  method.server_streaming() ? " stream " : " ", method.output_type()->full_name()));
      }
    }
  }
  return lines;
}

std::set<std::string> Without(const std::set<std::string>& all, const std::set<std::string>& some) {
  std::set<std::string> left;
  std::set_difference(all.begin(), all.end(), some.begin(), some.end(), std::inserter(left, left.end()));
  return left;
}

TEST(Protocol, OnlyGrows) {
  const std::filesystem::path path = SourceDir() + "/tests/golden/protocol.txt";
  std::set<std::string> known;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) known.insert(line);
  const std::set<std::string> now = Protocol();
  ASSERT_GT(now.size(), 500);  // all of it was looked at
  const std::set<std::string> gone = Without(known, now);
  const std::set<std::string> added = Without(now, known);
  EXPECT_TRUE(gone.empty())
      << "clients and processes of another release of v1 still use what is removed or changed here:\n  "
      << absl::StrJoin(gone, "\n  ") << "\nnow:\n  " << absl::StrJoin(added, "\n  ")
      << "\nKeep it as it was and add what is new beside it, under a number that was never used.";
  if (std::getenv("RLHF_ADD_TO_PROTOCOL") != nullptr) {
    known.insert(added.begin(), added.end());
    std::ofstream(path) << absl::StrJoin(known, "\n") << "\n";
    return;
  }
  EXPECT_TRUE(added.empty()) << "new in the protocol; when it shall stay for as long as v1 does, add it to " << path
                             << " by running this test with RLHF_ADD_TO_PROTOCOL=1:\n  "
                             << absl::StrJoin(added, "\n  ");
}

}  // namespace
}  // namespace rlhf
