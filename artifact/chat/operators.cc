// Operators, subscripts, slices, iteration.
#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/chat/context.h"

namespace rlhf::artifact::chat {
namespace {

Value WrongTypes(Context* context, absl::string_view name, const Value& left, const Value& right) {
  return context->Fail(absl::StrCat("\"", name, "\" of ", left.type_name(), " and ", right.type_name(),
                                    right.undefined() ? absl::StrCat(" (", right.As<Undefined>()->name, ")") : "",
                                    " is not supported"));
}

Value IntegerOperation(Context* context, const std::string& name, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (name == "+") {
    overflow = __builtin_add_overflow(a, b, &out);
  } else if (name == "-") {
    overflow = __builtin_sub_overflow(a, b, &out);
  } else if (name == "*") {
    overflow = __builtin_mul_overflow(a, b, &out);
  } else if (name == "**") {
    if (b < 0 || b > 63) return context->Fail("an exponent outside of 0 to 63");
    out = 1;
    for (int64_t i = 0; i < b; ++i) overflow = overflow || __builtin_mul_overflow(out, a, &out);
  } else {
    if (b == 0) return context->Fail("division by zero");
    if (name == "/") return Value::Data(static_cast<double>(a) / static_cast<double>(b));
    if (b == -1) {  // the smallest integer has no opposite
      overflow = __builtin_sub_overflow(int64_t{0}, a, &out);
      if (name == "%") return Value::Data(int64_t{0});
    } else {
      const int64_t rest = ((a % b) + b) % b;
      out = name == "%" ? rest : (a - rest) / b;
    }
  }
  if (overflow) return context->Fail("an integer that is too large");
  return Value::Data(out);
}

Value FloatOperation(Context* context, const std::string& name, double a, double b) {
  if (name == "+") return Value::Data(a + b);
  if (name == "-") return Value::Data(a - b);
  if (name == "*") return Value::Data(a * b);
  if (name == "**") return Value::Data(std::pow(a, b));
  if (b == 0) return context->Fail("division by zero");
  if (name == "/") return Value::Data(a / b);
  const double whole = std::floor(a / b);
  return Value::Data(name == "//" ? whole : a - whole * b);
}

Value Repeat(Context* context, const Value& what, int64_t times) {
  times = std::max<int64_t>(times, 0);
  const auto size = static_cast<int64_t>(what.text() != nullptr ? what.text()->size() / 64 : what.list()->items.size());
  if (times > context->limits.steps || !context->Spend((size + 1) * times)) {
    context->Spend(context->limits.steps);
    return Value();
  }
  if (const std::string* text = what.text()) {
    std::string out;
    for (int64_t i = 0; i < times; ++i) out += *text;
    return context->Text(std::move(out));
  }
  std::vector<Value> out;
  for (int64_t i = 0; i < times; ++i) out.insert(out.end(), what.list()->items.begin(), what.list()->items.end());
  return context->Items(std::move(out));
}

// Where a bound lies in a sequence, as Python clips it.
int64_t Clip(const Value* bound, int64_t size, int64_t missing, int64_t low, int64_t high) {
  if (bound == nullptr || bound->none()) return missing;
  int64_t at = bound->integer();
  if (at < 0) at = at < -size ? -1 : at + size;
  return std::min(std::max(at, low), high);
}

}  // namespace

Value BinaryOperation(Context* context, const std::string& name, const Value& a, const Value& b) {
  if (name == "~") return context->Text(absl::StrCat(context->TextOf(a), context->TextOf(b)));
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return IntegerOperation(context, name, a.integer(), b.integer());
    return FloatOperation(context, name, a.number(), b.number());
  }
  if (name == "+") {
    if (a.text() != nullptr && b.text() != nullptr) return context->Text(absl::StrCat(*a.text(), *b.text()));
    if (a.list() != nullptr && b.list() != nullptr) {
      std::vector<Value> items = a.list()->items;
      items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
      return context->Items(std::move(items));
    }
  }
  if (name == "*") {
    if ((a.text() != nullptr || a.list() != nullptr) && b.IsInteger()) return Repeat(context, a, b.integer());
    if ((b.text() != nullptr || b.list() != nullptr) && a.IsInteger()) return Repeat(context, b, a.integer());
  }
  return WrongTypes(context, name, a, b);
}

bool Compare(Context* context, const std::string& name, const Value& a, const Value& b) {
  if (name == "==") return context->Same(a, b);
  if (name == "!=") return !context->Same(a, b);
  if (name == "not in") return !Compare(context, "in", a, b);
  if (name == "in") {
    if (const std::string* text = b.text()) {
      if (a.text() != nullptr)
        return context->PaySearch(text->size(), a.text()->size()) && absl::StrContains(*text, *a.text());
    } else if (const List* list = b.list()) {
      context->Spend(static_cast<int64_t>(list->items.size()));
      return std::any_of(list->items.begin(), list->items.end(),
                         [&](const Value& item) { return context->Same(a, item); });
    } else if (const Dict* dict = b.dict()) {
      context->Spend(static_cast<int64_t>(dict->items.size() / 64));
      return a.text() != nullptr && dict->Find(*a.text()) != nullptr;
    } else if (b.undefined()) {
      return false;
    }
    WrongTypes(context, name, a, b);
    return false;
  }
  int order = 0;
  if (a.IsNumber() && b.IsNumber()) {
    order = a.number() < b.number() ? -1 : a.number() > b.number() ? 1 : 0;
    if (a.IsInteger() && b.IsInteger()) order = a.integer() < b.integer() ? -1 : a.integer() > b.integer() ? 1 : 0;
  } else if (a.text() != nullptr && b.text() != nullptr) {
    context->Spend(static_cast<int64_t>(std::min(a.text()->size(), b.text()->size()) / 64));
    order = a.text()->compare(*b.text());  // UTF-8 sorts as its code points do
  } else {
    WrongTypes(context, name, a, b);
    return false;
  }
  return name == "<" ? order < 0 : name == "<=" ? order <= 0 : name == ">" ? order > 0 : order >= 0;
}

std::vector<Value> ItemsOf(Context* context, const Value& value) {
  std::vector<Value> out;
  if (const List* list = value.list()) {
    context->Spend(static_cast<int64_t>(list->items.size()));
    out = list->items;
  } else if (const Dict* dict = value.dict()) {
    context->Spend(static_cast<int64_t>(dict->items.size()));
    for (const auto& item : dict->items) out.push_back(Value::Text(item.first));
  } else if (const std::string* text = value.text()) {
    if (!context->Spend(CountCharacters(*text))) return out;
    for (const absl::string_view character : SplitCharacters(*text)) out.push_back(Value::Text(std::string(character)));
  } else if (!value.undefined()) {
    context->Fail(absl::StrCat("\"", value.type_name(), "\" cannot be iterated"));
  }
  return out;
}

Value GetAttribute(Context* context, const Value& object, const std::string& name) {
  if (const auto* missing = object.As<Undefined>())
    return context->Fail(absl::StrCat("\"", missing->name, "\" is undefined; it has no \"", name, "\""));
  if (Namespace* space = object.space()) {
    const Value* found = space->fields.Find(name);
    return found != nullptr ? *found : Value::Missing(name);
  }
  if (HasMethod(object, name)) return Value::Data(std::make_shared<const Callable>(Callable{name, object}));
  if (const Dict* dict = object.dict()) {
    if (const Value* found = dict->Find(name)) return *found;
  }
  return Value::Missing(name);
}

Value GetItem(Context* context, const Value& object, const Value& key) {
  if (const auto* missing = object.As<Undefined>())
    return context->Fail(
        absl::StrCat("\"", missing->name, "\" is undefined; it has no item \"", context->TextOf(key), "\""));
  if (key.text() != nullptr) {
    if (const Dict* dict = object.dict()) {
      if (const Value* found = dict->Find(*key.text())) return *found;
    }
    return GetAttribute(context, object, *key.text());
  }
  const List* list = object.list();
  if (!key.IsInteger() || (list == nullptr && object.text() == nullptr)) return Value::Missing(context->TextOf(key));
  int64_t at = key.integer();
  if (list != nullptr) {
    const auto size = static_cast<int64_t>(list->items.size());
    if (at < 0) at += size;
    return at >= 0 && at < size ? list->items[at] : Value::Missing(context->TextOf(key));
  }
  const Value end = at == -1 ? Value::Nothing() : Value::Data(at + 1);
  const Value one = GetSlice(context, object, &key, &end, nullptr);
  return one.text() != nullptr && !one.text()->empty() ? one : Value::Missing(context->TextOf(key));
}

Value GetSlice(Context* context, const Value& object, const Value* begin, const Value* end, const Value* step) {
  for (const Value* bound : {begin, end, step}) {
    if (bound != nullptr && !bound->none() && !bound->IsInteger())
      return context->Fail(absl::StrCat("a slice's bounds are integers; found ", bound->type_name()));
  }
  if (object.text() == nullptr && object.list() == nullptr)
    return context->Fail(absl::StrCat("\"", object.type_name(), "\" cannot be sliced"));
  const int64_t by = step == nullptr || step->none() ? 1 : step->integer();
  if (by == 0) return context->Fail("a slice's step is 0");
  std::vector<absl::string_view> characters;
  if (object.text() != nullptr) {
    if (!context->Spend(CountCharacters(*object.text()) / 16)) return Value();
    characters = SplitCharacters(*object.text());
  }
  const auto size = static_cast<int64_t>(object.text() != nullptr ? characters.size() : object.list()->items.size());
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? size : size - 1;
  const int64_t first = Clip(begin, size, by > 0 ? 0 : size - 1, low, high);
  const int64_t last = Clip(end, size, by > 0 ? size : -1, low, high);
  std::string text;
  std::vector<Value> items;
  for (int64_t at = first; by > 0 ? at < last : at > last;) {
    if (object.text() != nullptr) {
      text.append(characters[at].data(), characters[at].size());
    } else {
      items.push_back(object.list()->items[at]);
    }
    if (__builtin_add_overflow(at, by, &at)) break;
  }
  return object.text() != nullptr ? context->Text(std::move(text)) : context->Items(std::move(items));
}

}  // namespace rlhf::artifact::chat
