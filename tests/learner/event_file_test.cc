// TensorBoard event files, read as TensorBoard reads them: records with their checksums, then events by protobuf's wire
// format.
#include "learner/service/event_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::learner {
namespace {

using google::protobuf::UnknownFieldSet;
using testing::ElementsAre;
using testing::Pair;

const absl::Time kAt = absl::FromUnixSeconds(1'700'000'000);

struct Event {
  double wall_time = 0;
  int64_t step = 0;
  std::string file_version;
  bool session_start = false;
  std::map<std::string, float> scalars;
};

uint64_t LittleEndian(const std::string& bytes, size_t at, int n) {
  uint64_t value = 0;
  for (int i = 0; i < n; ++i) value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
  return value;
}

std::unique_ptr<const UnknownFieldSet> Parse(const std::string& bytes) {
  auto fields = std::make_unique<UnknownFieldSet>();
  EXPECT_TRUE(fields->ParseFromString(bytes));
  return fields;
}

Event EventOf(const std::string& bytes) {
  Event event;
  const std::unique_ptr<const UnknownFieldSet> fields = Parse(bytes);
  for (int i = 0; i < fields->field_count(); ++i) {
    const auto& field = fields->field(i);
    if (field.number() == 1) {
      const uint64_t bits = field.fixed64();
      std::memcpy(&event.wall_time, &bits, sizeof(bits));
    } else if (field.number() == 2) {
      event.step = static_cast<int64_t>(field.varint());
    } else if (field.number() == 3) {
      event.file_version = field.length_delimited();
    } else if (field.number() == 5) {
      const std::unique_ptr<const UnknownFieldSet> summary = Parse(field.length_delimited());
      for (int v = 0; v < summary->field_count(); ++v) {
        EXPECT_EQ(summary->field(v).number(), 1);
        const std::unique_ptr<const UnknownFieldSet> value = Parse(summary->field(v).length_delimited());
        if (value->field_count() != 2) {
          ADD_FAILURE() << "expected a tag and a value, found " << value->field_count() << " fields";
          continue;
        }
        const uint32_t bits = value->field(1).fixed32();
        std::memcpy(&event.scalars[value->field(0).length_delimited()], &bits, sizeof(bits));
      }
    } else if (field.number() == 7) {
      const std::unique_ptr<const UnknownFieldSet> log = Parse(field.length_delimited());
      event.session_start = log->field_count() == 1 && log->field(0).number() == 1 && log->field(0).varint() == 1;
    } else {
      ADD_FAILURE() << "unknown field " << field.number();
    }
  }
  return event;
}

// nullopt when a checksum or a length is wrong.
std::optional<std::vector<Event>> EventsOf(const std::string& bytes) {
  std::vector<Event> events;
  for (size_t at = 0; at < bytes.size();) {
    if (at + 12 > bytes.size()) return std::nullopt;
    if (LittleEndian(bytes, at + 8, 4) != MaskedCrc32c(bytes.substr(at, 8))) return std::nullopt;
    const uint64_t size = LittleEndian(bytes, at, 8);
    if (at + 12 + size + 4 > bytes.size()) return std::nullopt;
    const std::string data = bytes.substr(at + 12, size);
    if (LittleEndian(bytes, at + 12 + size, 4) != MaskedCrc32c(data)) return std::nullopt;
    events.push_back(EventOf(data));
    at += 12 + size + 4;
  }
  return events;
}

// What TensorBoard shows of a folder: files by name; a session start drops what was of its step and later.
std::map<int64_t, float> Curve(const std::string& folder, const std::string& tag) {
  std::vector<std::string> paths;
  for (const auto& file : std::filesystem::directory_iterator(folder)) paths.push_back(file.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::pair<int64_t, float>> points;
  for (const std::string& path : paths) {
    const auto events = EventsOf(ReadFile(path).value_or(""));
    EXPECT_TRUE(events.has_value()) << path;
    for (const Event& event : events.value_or(std::vector<Event>())) {
      if (event.session_start) std::erase_if(points, [&](const auto& point) { return point.first >= event.step; });
      if (const auto it = event.scalars.find(tag); it != event.scalars.end())
        points.emplace_back(event.step, it->second);
    }
  }
  std::map<int64_t, float> curve;
  for (const auto& [step, value] : points)
    EXPECT_TRUE(curve.emplace(step, value).second) << "step " << step << " twice";
  return curve;
}

TEST(EventFile, ChecksumsAreThoseOfTheRfc) {
  // RFC 3720, B.4, and the value every implementation is checked with.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(MaskedCrc32c("123456789"), ((0xe3069283u >> 15) | (0xe3069283u << 17)) + 0xa282ead8u);
}

TEST(EventFile, HoldsVersionStartAndScalars) {
  const ScratchDir dir;
  EventFile file(dir.path(), "l0");
  file.Begin("j1", 1, kAt);
  file.Step(1, kAt + absl::Milliseconds(1500), {{"loss/policy", -0.25}, {"kl", 3}});
  const std::string bytes = ReadFile(file.path()).value_or("");
  const auto events = EventsOf(bytes);
  ASSERT_TRUE(events.has_value());
  ASSERT_EQ(events->size(), 3u);
  EXPECT_EQ((*events)[0].file_version, "brain.Event:2");
  EXPECT_TRUE((*events)[1].session_start);
  EXPECT_EQ((*events)[1].step, 1);
  EXPECT_EQ((*events)[2].step, 1);
  EXPECT_DOUBLE_EQ((*events)[2].wall_time, 1'700'000'001.5);
  EXPECT_THAT((*events)[2].scalars, ElementsAre(Pair("kl", 3.0f), Pair("loss/policy", -0.25f)));
  // A damaged byte anywhere is noticed.
  for (const size_t at : {size_t{2}, size_t{20}, bytes.size() - 6, bytes.size() - 1}) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    EXPECT_FALSE(EventsOf(damaged).has_value()) << at;
  }
}

TEST(EventFile, StepsTrainedAgainAreShownOnce) {
  const ScratchDir dir;
  {
    EventFile file(dir.path(), "l0");
    file.Begin("j1", 1, kAt);
    for (int step = 1; step <= 5; ++step) file.Step(step, kAt, {{"kl", step}});
    // The group forms anew: the next step follows, nothing to say.
    const auto before = ReadFile(file.path()).value_or("");
    file.Begin("j1", 6, kAt);
    EXPECT_EQ(ReadFile(file.path()).value_or(""), before);
    // The job goes back to its checkpoint of step 3 under the same process.
    file.Begin("j1", 4, kAt);
    for (int step = 4; step <= 7; ++step) file.Step(step, kAt, {{"kl", 10 * step}});
  }
  // The process starts again, and the job from the checkpoint of step 6.
  EventFile file(dir.path(), "l0");
  file.Begin("j1", 7, kAt + absl::Seconds(9));
  file.Step(7, kAt, {{"kl", 700}});
  EXPECT_THAT(Curve(dir.File("j1"), "kl"), ElementsAre(Pair(1, 1.0f), Pair(2, 2.0f), Pair(3, 3.0f), Pair(4, 40.0f),
                                                       Pair(5, 50.0f), Pair(6, 60.0f), Pair(7, 700.0f)));
  const std::string first_job = file.path();
  file.Begin("j2", 1, kAt + absl::Seconds(9));
  file.Step(1, kAt, {{"kl", 2}});
  EXPECT_NE(file.path(), first_job);
  EXPECT_THAT(Curve(dir.File("j2"), "kl"), ElementsAre(Pair(1, 2.0f)));
  file.End();
  EXPECT_TRUE(file.path().empty());
}

TEST(EventFile, WritesNothingWithoutAFolderAndSurvivesOneThatCannotBe) {
  EventFile off("", "l0");
  off.Begin("j1", 1, kAt);
  off.Step(1, kAt, {{"kl", 1}});
  EXPECT_TRUE(off.path().empty());
  const ScratchDir dir;
  ASSERT_TRUE(WriteFileDurably(dir.File("file"), "not a folder").ok());
  EventFile file(dir.File("file"), "l0");
  file.Begin("j1", 1, kAt);
  file.Step(1, kAt, {{"kl", 1}});
  EXPECT_TRUE(file.path().empty());
}

}  // namespace
}  // namespace rlhf::learner
