// Jobs' rows, which outlive the processes that work on them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "rlhf/v1/state.pb.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {

class StoredJobsTest : public testing::Test {
 protected:
  // As a submission, or an earlier coordinator, leaves it. What it names "base" and "rm" is resolved.
  void Store(v1::Job job) {
    for (const std::string name : {"base", "rm"}) (*job.mutable_resolved())[name] = "sha256:" + name;
    WriteBatch batch;
    batch.Put(Table::kJobs, job.id(), job.SerializeAsString());
    ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
  }
  v1::Job JobRow(const std::string& id = "job") {
    v1::Job job;
    const auto row = rows_.Get(Table::kJobs, id);
    EXPECT_TRUE(row.ok() && job.ParseFromString(*row));
    return job;
  }
  // Of all jobs.
  std::vector<std::string> Messages() {
    std::vector<std::string> messages;
    const absl::Status read = rows_.Scan(Table::kEvents, "", [&](absl::string_view, absl::string_view value) {
      v1::JobEvent event;
      EXPECT_TRUE(event.ParseFromArray(value.data(), static_cast<int>(value.size())));
      if (!event.message().empty()) messages.push_back(event.message());
      return true;
    });
    EXPECT_TRUE(read.ok()) << read;
    return messages;
  }

  ScratchDir dir_;
  FakeClock clock_;
  EdgeMemoryStore rows_;
};

}  // namespace rlhf::coordinator
