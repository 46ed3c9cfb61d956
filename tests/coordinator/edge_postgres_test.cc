// A coordinator whose rows are in PostgreSQL, and a database that comes and goes.
#include <atomic>
#include <future>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include "common/free_port.h"
#include "tests/coordinator/coordinator_fixture.h"
#include "tests/testing/postgres_server.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

class EdgePostgresTest : public CoordinatorFixture {
 protected:
  void SetUp() override {
    if (const std::string why = PostgresServer::Missing(); !why.empty()) GTEST_SKIP() << why;
    database_ = std::make_unique<PostgresServer>();
    port_ = FreeLoopbackPort().value_or(0);
  }
  std::future<absl::StatusOr<std::unique_ptr<CoordinatorServer>>> Starting() {
    CoordinatorConfig config = Config();
    config.store = database_->Uri();
    config.http_address = absl::StrCat("127.0.0.1:", port_);
    return std::async(std::launch::async, [this, config] {
      return CoordinatorServer::Start(config, Clock::Real(), [this] { return stop_.load(); });
    });
  }
  httplib::Result Http(const std::string& path) const { return httplib::Client("127.0.0.1", port_).Get(path); }
  void WaitUntilReadyzSays(const std::string& text) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    for (httplib::Result ready = Http("/readyz"); !ready || ready->body.find(text) == std::string::npos;
         ready = Http("/readyz")) {
      ASSERT_LT(absl::Now(), deadline) << (ready ? ready->body : "no answer");
      absl::SleepFor(absl::Milliseconds(20));
    }
  }

  std::unique_ptr<PostgresServer> database_;
  int port_ = 0;
  std::atomic<bool> stop_{false};
};

TEST_F(EdgePostgresTest, ADatabaseThatIsAwayAtTheStartIsWaitedFor) {
  database_->Stop();
  auto starting = Starting();
  WaitUntilReadyzSays("the database");
  EXPECT_EQ(Http("/readyz")->status, 503);
  EXPECT_EQ(Http("/healthz")->status, 200) << "to start it again would not help";
  EXPECT_THAT(Http("/metrics")->body, HasSubstr("\nrlhf_coordinator_ready 0"));
  database_->Start();
  auto server = starting.get();
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(Http("/readyz")->status, 200);
  EXPECT_THAT(Http("/metrics")->body, HasSubstr("\nrlhf_coordinator_ready 1"));
}

TEST_F(EdgePostgresTest, WhoWaitsForTheDatabaseCanBeStopped) {
  database_->Stop();
  auto starting = Starting();
  WaitUntilReadyzSays("the database");
  stop_ = true;
  EXPECT_TRUE(absl::IsCancelled(starting.get().status()));
}

}  // namespace
}  // namespace rlhf::coordinator
