// After a restored backup the fleet may hold newer versions than the rows know: jobs that train begin a new lineage.
#include <string>

#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "coordinator/backup.h"
#include "rlhf/v1/state.pb.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

class RestoredLineagesTest : public testing::Test {
 protected:
  void Put(const std::string& id, v1::JobState state, bool ppo) {
    v1::Job job;
    job.set_id(id);
    job.set_state(state);
    if (ppo) {
      job.mutable_spec()->mutable_ppo();
    } else {
      job.mutable_spec()->mutable_sft();
    }
    job.mutable_version()->set_lineage(4);
    job.mutable_version()->set_step(7);
    WriteBatch batch;
    batch.Put(Table::kJobs, id, job.SerializeAsString());
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  }
  v1::PolicyVersion VersionOf(const std::string& id) {
    v1::Job job;
    EXPECT_TRUE(job.ParseFromString(*store_.Get(Table::kJobs, id)));
    return job.version();
  }
  // How many jobs begin a lineage as this coordinator starts.
  int Begin(uint32_t further = 0) {
    WriteBatch batch;
    const auto jobs = BeginLineagesAfterRestore(&store_, dir_.path(), further, &batch);
    EXPECT_TRUE(jobs.ok()) << jobs.status();
    EXPECT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    return jobs.value_or(-2);
  }

  ScratchDir dir_;
  EdgeMemoryStore store_;
};

TEST_F(RestoredLineagesTest, JobsThatTrainBeginANewOneOnce) {
  Put("trains", v1::RUNNING, true);
  Put("paused", v1::PAUSED, true);
  Put("ended", v1::SUCCEEDED, true);
  Put("sft", v1::RUNNING, false);
  EXPECT_EQ(Begin(), -1) << "it is no restored backup";
  EXPECT_EQ(VersionOf("trains").lineage(), 4u);
  ASSERT_TRUE(WriteFileDurably(dir_.File(kRestoredFile), "{}").ok());
  EXPECT_EQ(Begin(/*further=*/1000), 2);
  for (const char* id : {"trains", "paused"}) {
    EXPECT_EQ(VersionOf(id).lineage(), 1005u)
        << id << ": where the same backup is restored again, chance gives another one";
    EXPECT_EQ(VersionOf(id).step(), 7) << id;
  }
  for (const char* id : {"ended", "sft"}) EXPECT_EQ(VersionOf(id).lineage(), 4u) << id;
  ASSERT_TRUE(ForgetRestore(dir_.path()).ok());
  EXPECT_EQ(Begin(), -1);
}

}  // namespace
}  // namespace rlhf::coordinator
