// Distributed tracing: W3C trace context (https://www.w3.org/TR/trace-context/), spans, and their export as OTLP/JSON
// lines (the OpenTelemetry protocol's file format: one ExportTraceServiceRequest a line).
//
// Off until StartTracing: spans then cost nothing and no call carries a context. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rlhf {

// Lower-case hexadecimal digits; empty: no trace.
struct TraceContext {
  std::string trace_id;  // 32
  std::string span_id;   // 16; empty: the trace has no span yet
  bool valid() const { return !trace_id.empty(); }
};
// "00-TRACE-SPAN-01", the header `traceparent`.
constexpr char kTraceparent[] = "traceparent";
std::string ToTraceparent(const TraceContext& context);
// InvalidArgument unless of version 00 or a later one's form, with ids that are not all zeros.
absl::StatusOr<TraceContext> ParseTraceparent(absl::string_view header);
// The trace that all roles put a thing of this name into, without telling each other.
TraceContext TraceOf(absl::string_view name);

struct TracingOptions {
  std::string dir;  // DIR/INSTANCE.traces.jsonl, then INSTANCE.traces.1.jsonl (newer) …
  std::string role, instance;
  int64_t file_bytes = 16 << 20;  // a file is put aside beyond it
  int files = 8;                  // kept, the open one included
  size_t waiting_spans = 4096;    // beyond them spans are dropped
};
absl::Status StartTracing(const TracingOptions& options);
// Writes what waits and closes the file. Call before main returns.
void StopTracing();
// StartTracing and StopTracing around a main; an empty folder's name: off. A folder that cannot be written is a
// warning.
class TracingScope {
 public:
  TracingScope(const std::string& dir, const std::string& role, const std::string& instance);
  ~TracingScope();
  TracingScope(const TracingScope&) = delete;
  TracingScope& operator=(const TracingScope&) = delete;
};
bool TracingOn();
int64_t DroppedSpans();

enum class SpanKind { kInternal = 1, kServer = 2, kClient = 3 };

struct SpanRecord {
  TraceContext context;
  std::string parent_span_id = {};  // empty: a root
  std::string name = {};
  SpanKind kind = SpanKind::kInternal;
  absl::Time begin = absl::InfinitePast(), end = absl::InfinitePast();
  std::map<std::string, std::string> attributes = {};
  std::string error = {};  // not empty: failed
};
// Never blocks. The span's own id is made when it has none.
void ExportSpan(SpanRecord record);

// The span of this thread's work while it lives, a child of the span around it or, given a parent, of that.
class Span {
 public:
  explicit Span(std::string name);
  Span(std::string name, TraceContext parent);
  ~Span();
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;
  void Set(const std::string& key, std::string value);
  void Fail(std::string error);

 private:
  const bool on_;
  SpanRecord record_;
  TraceContext outer_;
};
// Of the innermost Span of this thread; invalid without one.
TraceContext CurrentTrace();
// A span's work that goes on in another thread: `context` is current there while this lives.
class TraceScope {
 public:
  explicit TraceScope(TraceContext context);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  TraceContext outer_;
};

}  // namespace rlhf
