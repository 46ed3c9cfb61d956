// Jinja's filters that chat templates use, and its tests.
#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "artifact/chat/context.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact::chat {
namespace {

Value Length(Context* context, const Value& value) {
  if (const std::string* text = value.text()) return Value::Data(CountCharacters(*text));
  if (const List* list = value.list()) return Value::Data(static_cast<int64_t>(list->items.size()));
  if (const Dict* dict = value.dict()) return Value::Data(static_cast<int64_t>(dict->items.size()));
  if (value.undefined()) return Value::Data(int64_t{0});
  return context->Fail(absl::StrCat("\"", value.type_name(), "\" has no length"));
}

Value ToJson(Context* context, const Value& value, const Arguments& arguments) {
  for (const auto& [name, unused] : arguments.named) {
    if (name != "indent" && name != "ensure_ascii")
      return context->Fail(absl::StrCat("tojson(", name, "=…) is not supported"));
  }
  if (value.undefined() || value.callable() != nullptr || value.space() != nullptr)
    return context->Fail(absl::StrCat("\"", value.type_name(), "\" has no JSON"));
  if (const Value* ascii = arguments.Get(SIZE_MAX, "ensure_ascii"); ascii != nullptr && ascii->Truthy())
    return context->Fail("tojson(ensure_ascii=true) is not supported");
  const Value* indent = arguments.Get(1, "indent");
  if (!context->Pay(value)) return Value();
  return context->Text(value.ToJson(
      indent != nullptr && indent->IsInteger() ? static_cast<int>(std::clamp<int64_t>(indent->integer(), 0, 16)) : -1));
}

Value Join(Context* context, const Value& value, const Arguments& arguments) {
  const Value* separator = arguments.Get(0, "d");
  const Value* attribute = arguments.Get(1, "attribute");
  const std::string between = separator == nullptr ? "" : context->TextOf(*separator);
  std::string out;
  bool first = true;
  for (const Value& item : ItemsOf(context, value)) {
    if (!first) out += between;
    first = false;
    const std::string part = context->TextOf(attribute == nullptr ? item : GetItem(context, item, *attribute));
    if (!context->Spend(1 + static_cast<int64_t>((part.size() + between.size()) / 64))) return Value();
    out += part;
  }
  return context->Text(std::move(out));
}

Value Items(Context* context, const Value& value) {
  if (value.undefined()) return context->Items(std::vector<Value>());
  if (value.dict() == nullptr)
    return context->Fail(absl::StrCat("items of \"", value.type_name(), "\": expected a mapping"));
  return CallMethod(context, value, "items", {});
}

// select, reject, selectattr, rejectattr: keeps what passes a test (without one: what is true).
Value Select(Context* context, const std::string& name, const Value& value, const Arguments& arguments) {
  const bool by_attribute = name == "selectattr" || name == "rejectattr", keep = name[0] == 's';
  const size_t at = by_attribute ? 1 : 0;
  if (by_attribute && arguments.positional.empty()) return context->Fail(absl::StrCat(name, ": expected an attribute"));
  std::string test;
  Arguments rest;
  if (arguments.positional.size() > at) {
    test = context->TextOf(arguments.positional[at]);
    rest.positional.assign(arguments.positional.begin() + static_cast<int64_t>(at) + 1, arguments.positional.end());
  }
  std::vector<Value> out;
  for (const Value& item : ItemsOf(context, value)) {
    const Value tested = by_attribute ? GetItem(context, item, arguments.positional[0]) : item;
    const bool passes = test.empty() ? tested.Truthy() : ApplyTest(context, test, tested, rest);
    if (context->failed()) return Value();
    if (passes == keep) out.push_back(item);
  }
  return context->Items(std::move(out));
}

Value Map(Context* context, const Value& value, const Arguments& arguments) {
  const Value* attribute = arguments.Get(SIZE_MAX, "attribute");
  const Value* fallback = arguments.Get(SIZE_MAX, "default");
  if (attribute == nullptr && arguments.positional.empty())
    return context->Fail("map: expected a filter or attribute=…");
  Arguments rest;
  if (attribute == nullptr) rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
  std::vector<Value> out;
  for (const Value& item : ItemsOf(context, value)) {
    if (attribute == nullptr) {
      out.push_back(ApplyFilter(context, context->TextOf(arguments.positional[0]), item, rest));
    } else {
      Value found = GetItem(context, item, *attribute);
      out.push_back(found.undefined() && fallback != nullptr ? *fallback : found);
    }
    if (context->failed()) return Value();
  }
  return context->Items(std::move(out));
}

Value Integer(const Value& value, const Arguments& arguments) {
  const Value* fallback = arguments.Get(0, "default");
  int64_t out = 0;
  double number = 0;
  if (value.IsInteger()) return Value::Data(value.integer());
  if (value.IsNumber()) {
    number = value.number();
  } else if (value.text() != nullptr) {
    const absl::string_view text = absl::StripAsciiWhitespace(*value.text());
    if (absl::SimpleAtoi(text, &out)) return Value::Data(out);
    if (!absl::SimpleAtod(text, &number)) number = NAN;
  } else {
    number = NAN;
  }
  if (std::abs(number) < 9e18) return Value::Data(static_cast<int64_t>(number));
  return fallback != nullptr ? *fallback : Value::Data(int64_t{0});
}

Value Indent(Context* context, const Value& value, const Arguments& arguments) {
  const Value* width = arguments.Get(0, "width");
  const Value* first = arguments.Get(1, "first");
  const std::string pad =
      width != nullptr && width->text() != nullptr
          ? *width->text()
          : std::string(width == nullptr ? 4 : static_cast<size_t>(std::clamp<int64_t>(width->integer(), 0, 1000)),
                        ' ');
  std::string out;
  bool line_start = first != nullptr && first->Truthy();
  const std::string text = context->TextOf(value);
  for (size_t i = 0; i < text.size(); ++i) {
    if (line_start && text[i] != '\n') {
      if (!context->Spend(1 + static_cast<int64_t>(pad.size() / 64))) return Value();
      out += pad;
    }
    out += text[i];
    line_start = text[i] == '\n';
  }
  return context->Text(std::move(out));
}

// Unlike str.title(): words begin after blanks, dashes and opening brackets only, so that "it's" stays one.
Value Title(Context* context, const Value& value) {
  const std::string text = context->TextOf(value);
  std::string out;
  bool start = true;
  for (const absl::string_view c : SplitCharacters(text)) {
    size_t length = 0;
    const char32_t code = FirstCodePoint(c, &length);
    const bool gap = IsWhitespace(code) || absl::StrContains("-({[<", c);
    if (start && !gap) {
      AppendUppercase(code, &out);
    } else {
      AppendLowercase(code, &out);
    }
    start = gap;
  }
  return context->Text(std::move(out));
}

Value Sorted(Context* context, std::vector<Value> items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Value& a, const Value& b) {
    if (!context->Spend(1)) return false;
    return reverse ? Compare(context, "<", b, a) : Compare(context, "<", a, b);
  });
  return context->failed() ? Value() : context->Items(std::move(items));
}

Value ListFilter(Context* context, const std::string& name, const Value& value, const Arguments& arguments) {
  std::vector<Value> items = ItemsOf(context, value);
  if (context->failed()) return Value();
  if (name == "list") return context->Items(std::move(items));
  if (name == "first") return items.empty() ? Value::Missing("first of nothing") : items.front();
  if (name == "last") return items.empty() ? Value::Missing("last of nothing") : items.back();
  if (name == "sort") {
    const Value* reverse = arguments.Get(0, "reverse");
    if (arguments.Get(SIZE_MAX, "attribute") != nullptr) return context->Fail("sort(attribute=…) is not supported");
    return Sorted(context, std::move(items), reverse != nullptr && reverse->Truthy());
  }
  if (name == "unique") {
    std::vector<Value> out;
    for (const Value& item : items) {
      if (!context->Spend(1 + static_cast<int64_t>(out.size()))) return Value();
      if (std::none_of(out.begin(), out.end(), [&](const Value& other) { return context->Same(item, other); }))
        out.push_back(item);
    }
    return context->Items(std::move(out));
  }
  if (name == "reverse") {
    std::reverse(items.begin(), items.end());
    if (value.text() == nullptr) return context->Items(std::move(items));
    std::string out;
    for (const Value& item : items) out += context->TextOf(item);
    return context->Text(std::move(out));
  }
  Value best = items.empty() ? Value::Missing(name) : items[0];
  if (name == "sum") best = Value::Data(int64_t{0});
  for (size_t i = 0; i < items.size() && !context->failed(); ++i) {
    if (name == "sum") best = BinaryOperation(context, "+", best, items[i]);
    if (name == "min" && Compare(context, "<", items[i], best)) best = items[i];
    if (name == "max" && Compare(context, ">", items[i], best)) best = items[i];
  }
  return best;
}

}  // namespace

Value ApplyFilter(Context* context, const std::string& name, const Value& value, const Arguments& arguments) {
  if (!context->Spend(1)) return Value();
  if (name == "length" || name == "count") return Length(context, value);
  if (name == "tojson") return ToJson(context, value, arguments);
  if (name == "join") return Join(context, value, arguments);
  if (name == "items") return Items(context, value);
  if (name == "default" || name == "d") {
    const Value* fallback = arguments.Get(0, "default_value");
    const Value* also_false = arguments.Get(1, "boolean");
    const bool missing = value.undefined() || (also_false != nullptr && also_false->Truthy() && !value.Truthy());
    return !missing ? value : fallback != nullptr ? *fallback : Value::Text("");
  }
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
    return Select(context, name, value, arguments);
  if (name == "map") return Map(context, value, arguments);
  if (name == "string") return context->Text(context->TextOf(value));
  if (name == "safe") return value;
  if (name == "int") return Integer(value, arguments);
  if (name == "float") {
    double number = value.number();
    if (value.text() != nullptr && !absl::SimpleAtod(absl::StripAsciiWhitespace(*value.text()), &number)) number = 0;
    return Value::Data(number);
  }
  if (name == "abs") {
    if (!value.IsNumber()) return context->Fail("abs: expected a number");
    return value.IsInteger()
               ? (value.integer() < 0 ? BinaryOperation(context, "-", Value::Data(int64_t{0}), value) : value)
               : Value::Data(std::abs(value.number()));
  }
  if (name == "indent") return Indent(context, value, arguments);
  if (name == "dictsort") {
    const Value items = Items(context, value);
    if (context->failed()) return Value();
    std::vector<Value> pairs = items.list()->items;
    std::stable_sort(pairs.begin(), pairs.end(), [](const Value& a, const Value& b) {
      return absl::AsciiStrToLower(*a.list()->items[0].text()) < absl::AsciiStrToLower(*b.list()->items[0].text());
    });
    return context->Items(std::move(pairs));
  }
  for (const char* known : {"list", "first", "last", "sort", "unique", "reverse", "sum", "min", "max"}) {
    if (name == known) return ListFilter(context, name, value, arguments);
  }
  if (name == "trim") {
    const Value text = context->Text(context->TextOf(value));
    return context->failed() ? Value() : CallMethod(context, text, "strip", arguments);
  }
  if (name == "title") return Title(context, value);
  for (const char* known : {"upper", "lower", "capitalize", "replace"}) {
    if (name != known) continue;
    const Value text = context->Text(context->TextOf(value));
    return context->failed() ? Value() : CallMethod(context, text, name, arguments);
  }
  return context->Fail(absl::StrCat("the filter \"", name, "\" is not supported"));
}

bool ApplyTest(Context* context, const std::string& name, const Value& value, const Arguments& arguments) {
  if (!context->Spend(1)) return false;
  if (name == "defined") return !value.undefined();
  if (name == "undefined") return value.undefined();
  if (name == "none") return value.none();
  if (name == "string") return value.text() != nullptr;
  if (name == "mapping") return value.dict() != nullptr;
  if (name == "sequence" || name == "iterable")
    return value.text() != nullptr || value.list() != nullptr || value.dict() != nullptr || value.undefined();
  if (name == "boolean") return value.As<bool>() != nullptr;
  if (name == "integer") return value.As<int64_t>() != nullptr;
  if (name == "float") return value.As<double>() != nullptr;
  if (name == "number") return value.IsNumber();
  if (name == "callable") return value.callable() != nullptr;
  if (name == "true" || name == "false") {
    const bool* flag = value.As<bool>();
    return flag != nullptr && *flag == (name == "true");
  }
  if (name == "even" || name == "odd") {
    if (!value.IsInteger()) context->Fail(absl::StrCat(name, ": expected an integer, found ", value.type_name()));
    return (value.integer() % 2 == 0) == (name == "even");
  }
  static constexpr const char* kComparisons[][2] = {{"equalto", "=="}, {"eq", "=="}, {"ne", "!="}, {"lt", "<"},
                                                    {"lessthan", "<"}, {"le", "<="}, {"gt", ">"},  {"greaterthan", ">"},
                                                    {"ge", ">="},      {"in", "in"}};
  const Value* other = arguments.Get(0, "other");
  for (const auto& comparison : kComparisons) {
    if (name != comparison[0]) continue;
    if (other != nullptr) return Compare(context, comparison[1], value, *other);
    context->Fail(absl::StrCat("the test \"", name, "\" needs an argument"));
    return false;
  }
  if (other != nullptr && name == "sameas")
    return context->Same(value, *other) && std::string(value.type_name()) == other->type_name();
  if (other != nullptr && name == "divisibleby") {
    const Value rest = BinaryOperation(context, "%", value, *other);
    return !context->failed() && rest.integer() == 0;
  }
  context->Fail(absl::StrCat("the test \"", name, "\" is not supported"));
  return false;
}

}  // namespace rlhf::artifact::chat
