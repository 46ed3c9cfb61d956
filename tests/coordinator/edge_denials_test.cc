// That a flood of refused calls or handshakes fills no audit log, and hides nobody in it.
#include "coordinator/auth/denials.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/counter.h>

#include "absl/strings/str_cat.h"
#include "coordinator/oversight.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;

class DenialsTest : public testing::Test {
 protected:
  DenialsTest() { EXPECT_TRUE(oversight_->Recover().ok()); }
  // What is in the audit log once the loop has run.
  std::vector<v1::AuditRecord> Recorded() {
    loop_.Run();
    const auto all = oversight_->audit().All();
    EXPECT_TRUE(all.ok()) << all.status();
    return all.ok() ? *all : std::vector<v1::AuditRecord>();
  }

  FakeClock clock_;
  ManualLoop loop_{&clock_};
  EdgeMemoryStore store_;
  const std::unique_ptr<Oversight> oversight_ = MakeOversight(&loop_, &store_);
};

TEST_F(DenialsTest, CallsAreRecordedAtABoundedRateAndAllAreCounted) {
  MetricsRegistry metrics("coordinator");
  Denials denials(&loop_, oversight_.get(), &store_, &metrics, /*burst=*/3);
  // "SUBJECT OBJECT LEFT_OUT" of each record, in order.
  const auto records = [&] {
    std::vector<std::string> seen;
    for (const v1::AuditRecord& record : Recorded()) {
      EXPECT_EQ(record.action(), "call.denied");
      EXPECT_EQ(record.decision(), "denied");
      EXPECT_EQ(record.details().at("reason"), "role");
      const auto left_out = record.details().find("left_out_before");
      seen.push_back(absl::StrCat(record.subject(), " ", record.object().size(), " ",
                                  left_out == record.details().end() ? "0" : left_out->second));
    }
    return seen;
  };
  for (int i = 0; i < 10; ++i) denials.Note("", std::string(1000, 'm'), "role");
  EXPECT_THAT(records(), ElementsAre("unknown 200 0", "unknown 200 0", "unknown 200 0"));
  for (int i = 0; i < 10; ++i) denials.Note("eve", "/m", "role");
  EXPECT_EQ(records().size(), 6u) << "strangers hide nobody who has a name";
  EXPECT_EQ(records().back(), "eve 2 0");
  clock_.Advance(absl::Seconds(1));
  denials.Note("eve", "/m", "role");
  denials.Note("eve", "/m", "role");
  EXPECT_EQ(records().size(), 7u) << "one a second";
  EXPECT_EQ(records().back(), "eve 2 7");
  clock_.Advance(absl::Hours(1));
  for (int i = 0; i < 10; ++i) denials.Note("eve", "/m", "role");
  EXPECT_EQ(records().size(), 10u) << "an hour's silence saves no more than the burst";
  EXPECT_EQ(records()[7], "eve 2 1");
  EXPECT_EQ(metrics.Counter("rlhf_auth_failures_total", "", {{"reason", "role"}}).Value(), 32);
}

// A flood of refused handshakes cannot fill the audit log, and none of them goes uncounted in it.
TEST_F(DenialsTest, HandshakesAreRecordedOnceAMinuteAndReason) {
  Denials denials(&loop_, oversight_.get(), &store_, nullptr);
  // "REASON COUNT" of each record, in order.
  const auto records = [&] {
    std::vector<std::string> seen;
    for (const v1::AuditRecord& record : Recorded()) {
      EXPECT_EQ(record.action(), "handshake.denied");
      seen.push_back(absl::StrCat(record.details().at("reason"), " ", record.details().at("count")));
    }
    return seen;
  };
  denials.NoteHandshake("handshake_expired");
  EXPECT_THAT(records(), ElementsAre("handshake_expired 1"));
  for (int i = 0; i < 1000; ++i) denials.NoteHandshake("handshake_expired");
  denials.NoteHandshake("handshake_untrusted");
  EXPECT_THAT(records(), ElementsAre("handshake_expired 1", "handshake_untrusted 1"));
  clock_.Advance(absl::Seconds(59));
  EXPECT_EQ(records().size(), 2u);
  clock_.Advance(absl::Seconds(1));
  EXPECT_THAT(records(), ElementsAre("handshake_expired 1", "handshake_untrusted 1", "handshake_expired 1000"));
  clock_.Advance(absl::Minutes(10));
  EXPECT_EQ(records().size(), 3u) << "nothing happened";
  denials.NoteHandshake("handshake_expired");
  EXPECT_EQ(records().back(), "handshake_expired 1") << "at once again";
}

// Strangers can make calls without end; what somebody with a token tries is not lost among them.
TEST_F(DenialsTest, AFloodOfStrangersHidesNobody) {
  Denials denials(&loop_, oversight_.get(), &store_, nullptr, /*burst=*/20);
  const auto recorded = [&] {
    std::map<std::string, std::vector<v1::AuditRecord>> by;
    for (const v1::AuditRecord& record : Recorded()) by[record.subject()].push_back(record);
    return by;
  };
  for (int i = 0; i < 5000; ++i) denials.Note("", "/rlhf.v1.JobService/ListJobs", "unknown_token");
  denials.Note("eve", "/rlhf.v1.JobService/GetJob", "project");
  auto by = recorded();
  EXPECT_EQ(by["unknown"].size(), 20u);
  ASSERT_EQ(by["eve"].size(), 1u);
  EXPECT_EQ(by["eve"][0].object(), "/rlhf.v1.JobService/GetJob");
  // Nor does one person's hide another's; each is bounded, and what was left out is counted.
  for (int i = 0; i < 5000; ++i) denials.Note("eve", "/rlhf.v1.JobService/GetJob", "project");
  denials.Note("mallory", "/rlhf.v1.AdminService/CreateToken", "role");
  by = recorded();
  EXPECT_EQ(by["eve"].size(), 20u);
  EXPECT_EQ(by["mallory"].size(), 1u);
  clock_.Advance(absl::Seconds(1));
  denials.Note("eve", "/rlhf.v1.JobService/GetJob", "project");
  EXPECT_EQ(recorded()["eve"].back().details().at("left_out_before"), "4981");
  // However many there are.
  for (int i = 0; i < 20'000; ++i) denials.Note(absl::StrCat("subject-", i), "/m", "role");
  by = recorded();
  EXPECT_GT(by.size(), 900u);
  EXPECT_LT(by.size(), 1100u);
}

}  // namespace
}  // namespace rlhf::coordinator
