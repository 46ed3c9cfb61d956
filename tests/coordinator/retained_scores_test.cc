// A sample's score lies in another segment than its text, and lives as long.
#include <filesystem>
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "coordinator/ledger.h"
#include "coordinator/payload_retention.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

TEST(RetainedScoresTest, AScoresSegmentStaysAsLongAsItsRowNamesIt) {
  ScratchDir dir;
  FakeClock clock;
  ManualLoop loop{&clock};
  InlineBackground background;
  EdgeMemoryStore store;
  const std::unique_ptr<PayloadStore> payloads = *OpenPayloadStore(dir.File("payloads"), /*segment_bytes=*/300);
  PayloadRetention retention(&loop, &background, &store, payloads.get());
  const std::string key = Ledger::RowKey("job", {1, 0, 0});
  v1::SampleRow row;
  row.mutable_id()->set_job_id("job");
  row.mutable_id()->set_step(1);
  row.set_state(v1::TRAINED);
  *row.mutable_payload() = payloads->Append(std::string(250, 'a'));
  *row.mutable_score() = payloads->Append(std::string(250, 'b'));
  ASSERT_NE(row.payload().segment(), row.score().segment());
  ASSERT_TRUE(payloads->Sync().ok());
  WriteBatch batch;
  batch.Put(Table::kSamples, key, row.SerializeAsString());
  ASSERT_TRUE(store.CommitAndWait(std::move(batch)).ok());
  retention.SweepAll();
  loop.Run();
  EXPECT_TRUE(payloads->Read(row.payload()).ok());
  EXPECT_TRUE(payloads->Read(row.score()).ok());
  EXPECT_EQ(retention.freed_bytes(), 0);

  retention.FreeThrough("job", 1);
  loop.Run();
  v1::SampleRow freed;
  ASSERT_TRUE(freed.ParseFromString(*store.Get(Table::kSamples, key)));
  EXPECT_TRUE(freed.freed());
  EXPECT_FALSE(freed.has_payload());
  EXPECT_FALSE(freed.has_score());
  retention.SweepAll();
  loop.Run();
  EXPECT_TRUE(std::filesystem::is_empty(dir.File("payloads")));
}

}  // namespace
}  // namespace rlhf::coordinator
