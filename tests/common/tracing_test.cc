// Trace context through gRPC, and spans as OTLP/JSON lines.
#include "common/tracing.h"

#include <filesystem>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/rpc_server.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {
namespace {

constexpr char kExample[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

std::vector<nlohmann::json> AllSpansOf(const std::string& path) {
  std::vector<nlohmann::json> spans;
  const std::string text = ReadFile(path).value_or("");
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const nlohmann::json request = nlohmann::json::parse(line, nullptr, false);
    EXPECT_TRUE(request.is_object()) << line;
    for (const auto& span : request["resourceSpans"][0]["scopeSpans"][0]["spans"]) spans.push_back(span);
  }
  return spans;
}
std::map<std::string, nlohmann::json> SpansOf(const std::string& path) {
  std::map<std::string, nlohmann::json> spans;
  for (const nlohmann::json& span : AllSpansOf(path)) spans[span["name"].get<std::string>()] = span;
  return spans;
}

class TracingTest : public testing::Test {
 protected:
  void Start(int64_t file_bytes = 1 << 20, int files = 3) {
    TracingOptions options;
    options.dir = dir_.File("traces");
    options.role = "learner";
    options.instance = "l0";
    options.file_bytes = file_bytes;
    options.files = files;
    ASSERT_TRUE(StartTracing(options).ok());
  }
  void TearDown() override { StopTracing(); }
  std::string Path() const { return dir_.File("traces/l0.traces.jsonl"); }
  const ScratchDir dir_;
};

TEST(Traceparent, IsReadAndWrittenAsW3cSays) {
  const auto context = ParseTraceparent(kExample);
  ASSERT_TRUE(context.ok()) << context.status();
  EXPECT_EQ(context->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(context->span_id, "00f067aa0ba902b7");
  EXPECT_EQ(ToTraceparent(*context), kExample);
  EXPECT_TRUE(ParseTraceparent(absl::StrCat("01", std::string(kExample).substr(2), "-more")).ok()) << "a later version";
  for (const std::string& bad :
       {std::string(), std::string("00"), absl::StrCat(kExample, "-more"), std::string(kExample).substr(0, 54),
        absl::StrCat("ff", std::string(kExample).substr(2)),
        std::string("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
        std::string("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b7--01"),
        absl::StrCat("01", std::string(kExample).substr(2), "more")})
    EXPECT_FALSE(ParseTraceparent(bad).ok()) << bad;
}

TEST(Traceparent, OneNameIsOneTrace) {
  EXPECT_EQ(TraceOf("j1/1/0/0").trace_id, TraceOf("j1/1/0/0").trace_id);
  EXPECT_NE(TraceOf("j1/1/0/0").trace_id, TraceOf("j1/1/0/1").trace_id);
  EXPECT_TRUE(ParseTraceparent(absl::StrCat("00-", TraceOf("j1/1/0/0").trace_id, "-00f067aa0ba902b7-01")).ok());
}

TEST_F(TracingTest, NothingIsWrittenOrCarriedWhileOff) {
  const Span span("off");
  EXPECT_FALSE(CurrentTrace().valid());
}

TEST_F(TracingTest, SpansNestOnTheirThreadAndAreWrittenAsOtlp) {
  Start();
  {
    Span outer("outer", *ParseTraceparent(kExample));
    outer.Set("job", "j1");
    {
      Span inner("inner");
      inner.Fail("no \"luck\"");
      std::thread([] { EXPECT_FALSE(CurrentTrace().valid()); }).join();
    }
    ExportSpan({.context = TraceOf("a"), .name = "a", .begin = absl::UnixEpoch(), .end = absl::FromUnixSeconds(1)});
  }
  EXPECT_FALSE(CurrentTrace().valid());
  StopTracing();
  std::map<std::string, nlohmann::json> spans = SpansOf(Path());
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans["outer"]["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(spans["outer"]["parentSpanId"], "00f067aa0ba902b7");
  EXPECT_EQ(spans["outer"]["attributes"][0]["value"]["stringValue"], "j1");
  EXPECT_EQ(spans["inner"]["traceId"], spans["outer"]["traceId"]);
  EXPECT_EQ(spans["inner"]["parentSpanId"], spans["outer"]["spanId"]);
  EXPECT_EQ(spans["inner"]["status"]["code"], 2);
  EXPECT_EQ(spans["inner"]["status"]["message"], "no \"luck\"");
  EXPECT_EQ(spans["a"]["traceId"], TraceOf("a").trace_id);
  EXPECT_EQ(spans["a"]["endTimeUnixNano"], "1000000000");
  EXPECT_FALSE(spans["a"].contains("parentSpanId"));
}

TEST_F(TracingTest, FilesAreRotatedAndBounded) {
  Start(/*file_bytes=*/2000, /*files=*/3);
  for (int i = 0; i < 100; ++i) const Span span(absl::StrCat("span ", i));
  StopTracing();
  int files = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_.File("traces"))) {
    EXPECT_LE(std::filesystem::file_size(file), 2000u);
    ++files;
  }
  EXPECT_EQ(files, 3);
  EXPECT_EQ(SpansOf(Path()).count("span 99"), 1u) << "the newest is in the open file";
}

TEST_F(TracingTest, WhatAnEarlierProcessWroteCounts) {
  for (int process = 0; process < 20; ++process) {
    Start(/*file_bytes=*/2000, /*files=*/1);
    const Span span(absl::StrCat("span ", process));
    StopTracing();
  }
  EXPECT_LE(std::filesystem::file_size(Path()), 2000u);
}

class Sink final : public v1::LogService::CallbackService {
 public:
  grpc::ServerUnaryReactor* AppendLogs(grpc::CallbackServerContext* context, const v1::AppendLogsRequest*,
                                       v1::AppendLogsResponse*) override {
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

TEST_F(TracingTest, AServerContinuesItsCallersTrace) {
  Start();
  Sink sink;
  std::unique_ptr<RpcServer> server = ServeOnLoopback({&sink});
  ASSERT_NE(server, nullptr);
  for (const char* token : {"", "secret"}) {
    client::ChannelOptions channel_options;
    channel_options.address = absl::StrCat("127.0.0.1:", server->port());
    channel_options.tls.insecure = true;
    channel_options.bearer_token = token;
    auto channel = client::MakeChannel(channel_options);
    ASSERT_TRUE(channel.ok());
    const Span span(absl::StrCat("caller", token));
    const auto context = client::MakeContext(absl::Seconds(20));
    v1::AppendLogsResponse response;
    ASSERT_TRUE(v1::LogService::NewStub(*channel)->AppendLogs(context.get(), v1::AppendLogsRequest(), &response).ok());
  }
  server->Shutdown(absl::Seconds(5));
  server.reset();
  StopTracing();
  std::map<std::string, nlohmann::json> callers = SpansOf(Path());
  int served = 0;
  for (const nlohmann::json& span : AllSpansOf(Path())) {
    if (span["name"] != "rlhf.v1.LogService/AppendLogs") continue;
    ++served;
    EXPECT_EQ(span["kind"], 2);
    const auto& caller = span["traceId"] == callers["caller"]["traceId"] ? callers["caller"] : callers["callersecret"];
    EXPECT_EQ(span["traceId"], caller["traceId"]);
    EXPECT_EQ(span["parentSpanId"], caller["spanId"]);
  }
  EXPECT_EQ(served, 2);
  EXPECT_NE(callers["caller"]["traceId"], callers["callersecret"]["traceId"]);
}

}  // namespace
}  // namespace rlhf
