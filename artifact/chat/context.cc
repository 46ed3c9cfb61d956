#include "artifact/chat/context.h"

#include "absl/strings/str_cat.h"

namespace rlhf::artifact::chat {

Value Context::Fail(absl::string_view problem) {
  if (status.ok()) status = absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", problem));
  return Value();
}

bool Context::Spend(int64_t count) {
  steps += count;
  if (steps <= limits.steps) return status.ok();
  if (status.ok()) {
    status = absl::ResourceExhaustedError(
        absl::StrCat("line ", line, ": expected to end within ", limits.steps,
                     " steps; is a loop too long, or the conversation? Shorten it, or simplify the template"));
  }
  return false;
}

Value Context::Text(std::string text) {
  Spend(1 + static_cast<int64_t>(text.size() / 64));
  return failed() ? Value() : Value::Text(std::move(text));
}

Value Context::Items(std::vector<Value> items, bool tuple) {
  if (!Spend(1 + static_cast<int64_t>(items.size()))) return Value();
  Value out = Value::Of(std::move(items), tuple);
  if (const auto* problem = out.As<Undefined>()) return Fail(problem->name);
  return out;
}

Value Context::Items(std::vector<std::pair<std::string, Value>> items) {
  if (!Spend(1 + static_cast<int64_t>(items.size()))) return Value();
  Value out = Value::Of(std::move(items));
  if (const auto* problem = out.As<Undefined>()) return Fail(problem->name);
  return out;
}

const Value* Arguments::Get(size_t place, absl::string_view name) const {
  if (place < positional.size()) return &positional[place];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

}  // namespace rlhf::artifact::chat
