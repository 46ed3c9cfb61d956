// Halting and resuming over a store that can fail; the loop's turns are the test's.
#include <memory>
#include <optional>

#include <gtest/gtest.h>

#include "coordinator/oversight.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {
namespace {

class HaltTest : public testing::Test {
 protected:
  HaltTest() : loop_(&clock_), oversight_(MakeOversight(&loop_, &store_)) { EXPECT_TRUE(oversight_->Recover().ok()); }

  Done<v1::ServiceState> Into(std::optional<absl::StatusOr<v1::ServiceState>>* answer) {
    return [answer](absl::StatusOr<v1::ServiceState> state) { *answer = std::move(state); };
  }
  void Halt() {
    std::optional<absl::StatusOr<v1::ServiceState>> answer;
    oversight_->Halt("olga", "look", Into(&answer));
    ASSERT_TRUE(answer.has_value() && answer->ok());
  }
  std::unique_ptr<Oversight> Restarted() {
    auto again = MakeOversight(&loop_, &store_);
    EXPECT_TRUE(again->Recover().ok());
    return again;
  }

  FakeClock clock_;
  ManualLoop loop_;
  EdgeMemoryStore store_;
  std::unique_ptr<Oversight> oversight_;
};

TEST_F(HaltTest, AResumptionThatTheStoreLostResumesNothing) {
  Halt();
  store_.FailWith(absl::UnavailableError("the disk is full"));
  std::optional<absl::StatusOr<v1::ServiceState>> answer;
  oversight_->Resume("otto", "seen", Into(&answer));
  loop_.Run();
  ASSERT_TRUE(answer.has_value());
  EXPECT_TRUE(absl::IsUnavailable(answer->status())) << answer->status();
  EXPECT_TRUE(oversight_->halted());
  EXPECT_EQ(oversight_->state().by(), "olga");
  EXPECT_TRUE(Restarted()->halted());
}

TEST_F(HaltTest, AHaltIsEffectiveAtOnceEvenWhereTheStoreFails) {
  store_.FailWith(absl::UnavailableError("the disk is full"));
  std::optional<absl::StatusOr<v1::ServiceState>> answer;
  oversight_->Halt("olga", "look", Into(&answer));
  ASSERT_TRUE(answer.has_value());
  EXPECT_FALSE(answer->ok());
  EXPECT_TRUE(oversight_->halted());
}

TEST_F(HaltTest, AHaltWhileAResumptionIsUnderWayStands) {
  Halt();
  std::optional<absl::StatusOr<v1::ServiceState>> resumed;
  oversight_->Resume("otto", "seen", Into(&resumed));
  EXPECT_TRUE(oversight_->halted()) << "its durability has not come to the loop yet";
  Halt();
  loop_.Run();
  ASSERT_TRUE(resumed.has_value() && resumed->ok());
  EXPECT_TRUE((*resumed)->halted());
  EXPECT_TRUE(oversight_->halted());
  EXPECT_TRUE(Restarted()->halted());
  resumed.reset();
  oversight_->Resume("otto", "seen again", Into(&resumed));
  loop_.Run();
  ASSERT_TRUE(resumed.has_value() && resumed->ok());
  EXPECT_FALSE((*resumed)->halted());
  EXPECT_FALSE(oversight_->halted());
  EXPECT_FALSE(Restarted()->halted());
}

}  // namespace
}  // namespace rlhf::coordinator
