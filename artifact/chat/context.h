// What every part of the evaluation shares: the first error, and the budget that bounds time and memory. Not
// thread-safe.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "artifact/chat/value.h"

namespace rlhf::artifact::chat {

struct Limits {
  int64_t steps = 1'000'000;  // one for each expression, item, and 64 bytes of text made
  size_t output = 16 << 20;   // bytes
  int depth = 300;            // of nested expressions, statements and macro calls
  int64_t range = 100'000;    // items of range(); Jinja's sandbox allows as many
  size_t names = 1'000;       // variables that are set at one time, and fields of a namespace
};

struct Context {
  Limits limits;
  std::optional<absl::Time> now;  // unset: strftime_now is undefined
  int line = 0;
  int64_t steps = 0;
  absl::Status status;

  bool failed() const { return !status.ok(); }
  // InvalidArgument "line N: …"; the first one stays. Returns undefined.
  Value Fail(absl::string_view problem);
  // ResourceExhausted when the budget is used up: false.
  bool Spend(int64_t count);
  // Pays for going through all of a value: lists in lists may be shared many times over. False when it is too much.
  bool Pay(const Value& value) { return Spend(value.weight()); }
  // Pays for looking for a text of `what` bytes in one of `all`, where every place may nearly match.
  bool PaySearch(size_t all, size_t what) {
    return Spend(static_cast<int64_t>((1 + all / 64) * (1 + std::min(what, all) / 64)));
  }
  // str() and ==, paid for.
  std::string TextOf(const Value& value) { return Pay(value) ? value.ToText() : ""; }
  bool Same(const Value& a, const Value& b) { return Pay(a) && Pay(b) && Equal(a, b); }
  // Texts and lists go through here, so that their size is paid for.
  Value Text(std::string text);
  Value Items(std::vector<Value> items, bool tuple = false);
  Value Items(std::vector<std::pair<std::string, Value>> items);
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at a place or of a name; null when missing.
  const Value* Get(size_t place, absl::string_view name) const;
};

// Python's operators; `name` is as written.
Value BinaryOperation(Context* context, const std::string& name, const Value& left, const Value& right);
bool Compare(Context* context, const std::string& name, const Value& left, const Value& right);
// What a for loop goes over. Fails for what cannot be iterated.
std::vector<Value> ItemsOf(Context* context, const Value& value);

Value GetAttribute(Context* context, const Value& object, const std::string& name);
Value GetItem(Context* context, const Value& object, const Value& key);
// null bounds: left out.
Value GetSlice(Context* context, const Value& object, const Value* begin, const Value* end, const Value* step);

Value ApplyFilter(Context* context, const std::string& name, const Value& value, const Arguments& arguments);
bool ApplyTest(Context* context, const std::string& name, const Value& value, const Arguments& arguments);
// True when the type of the object has a method of the name.
bool HasMethod(const Value& object, const std::string& name);
Value CallMethod(Context* context, const Value& object, const std::string& name, const Arguments& arguments);
bool HasFunction(const Context& context, const std::string& name);
Value CallFunction(Context* context, const std::string& name, const Arguments& arguments);

}  // namespace rlhf::artifact::chat
