#include "artifact/chat/value.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact::chat {
namespace {

constexpr int64_t kMaxWeight = int64_t{1} << 40;  // far beyond every budget

// The shortest decimal that reads back the same, in Python's form.
std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char text[40];
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  std::string out = text;
  if (std::abs(value) >= 1e-4 && std::abs(value) < 1e16 && out.find('e') != std::string::npos) {
    std::snprintf(text, sizeof(text), "%.0f", value);
    out = text;
  }
  if (out.find_first_of(".en") == std::string::npos) out += ".0";
  return out;
}

// As Python's repr has it: what cannot be printed becomes \xhh, \uhhhh or \Uhhhhhhhh.
void AppendPrintable(char32_t code, std::string* out) {
  // These mark special tokens in messages, and are taken out at the end.
  const bool mark = code >= 0xFDD0 && code <= 0xFDEF;
  if (mark || IsPrintable(code)) return AppendUtf8(code, out);
  char text[16];
  const char* const form = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
  std::snprintf(text, sizeof(text), form, static_cast<unsigned>(code));
  *out += text;
}

std::string Quoted(absl::string_view text) {
  const bool double_quotes = text.find('\'') != absl::string_view::npos && text.find('"') == absl::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const absl::string_view rest = text.substr(at);
    const size_t length = std::max<size_t>(1, Utf8Length(rest));
    at += length;
    if (rest[0] == quote || rest[0] == '\\') {
      out += '\\';
      out += rest[0];
    } else if (rest[0] == '\n') {
      out += "\\n";
    } else if (rest[0] == '\r') {
      out += "\\r";
    } else if (rest[0] == '\t') {
      out += "\\t";
    } else if (Utf8Length(rest) == 0) {
      out.append(rest.data(), length);
    } else {
      size_t unused = 0;
      AppendPrintable(FirstCodePoint(rest, &unused), &out);
    }
  }
  return out + quote;
}

}  // namespace

const Value* Dict::Find(absl::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name == key) return &value;
  }
  return nullptr;
}

Value Value::Of(std::vector<Value> items, bool tuple) {
  int depth = 0;
  int64_t weight = 1;
  for (const Value& item : items) {
    depth = std::max(depth, item.depth());
    weight = std::min(kMaxWeight, weight + item.weight());
  }
  if (depth >= kMaxDepth) return Missing("a list nested too deeply, or holding a namespace");
  return Data(std::make_shared<const List>(List{std::move(items), depth + 1, weight, tuple}));
}

Value Value::Of(std::vector<std::pair<std::string, Value>> items) {
  int depth = 0;
  int64_t weight = 1;
  for (const auto& [key, value] : items) {
    depth = std::max(depth, value.depth());
    weight = std::min(kMaxWeight, weight + value.weight() + 1 + static_cast<int64_t>(key.size() / 64));
  }
  if (items.size() > kMaxKeys) return Missing("a dict of too many keys");
  if (depth >= kMaxDepth) return Missing("a dict nested too deeply, or holding a namespace");
  return Data(std::make_shared<const Dict>(Dict{std::move(items), depth + 1, weight}));
}

int64_t Value::integer() const {
  if (const auto* value = As<int64_t>()) return *value;
  if (const auto* value = As<bool>()) return *value ? 1 : 0;
  return 0;
}

double Value::number() const {
  if (const auto* value = As<double>()) return *value;
  return static_cast<double>(integer());
}

int64_t Value::weight() const {
  if (const std::string* t = text()) return 1 + static_cast<int64_t>(t->size() / 64);
  if (const List* l = list()) return l->weight;
  if (const Dict* d = dict()) return d->weight;
  return 1;
}

int Value::depth() const {
  if (const List* l = list()) return l->depth;
  if (const Dict* d = dict()) return d->depth;
  // A namespace may change later: it is never part of anything, so that nothing holds itself.
  if (space() != nullptr) return kMaxDepth;
  if (const Callable* c = callable()) return std::max(1, c->self.depth() + 1);
  return 0;
}

bool Value::Truthy() const {
  if (undefined() || none()) return false;
  if (IsNumber()) return number() != 0;
  if (const std::string* t = text()) return !t->empty();
  if (const List* l = list()) return !l->items.empty();
  if (const Dict* d = dict()) return !d->items.empty();
  return true;
}

const char* Value::type_name() const {
  static constexpr const char* kNames[] = {"undefined", "None", "bool", "int",       "float",
                                           "str",       "list", "dict", "namespace", "function"};
  return kNames[data_.index()];
}

std::string Value::ToText() const {
  if (const std::string* t = text()) return *t;
  if (undefined()) return "";
  return Repr();
}

std::string Value::Repr() const {
  if (undefined()) return "Undefined";
  if (none()) return "None";
  if (const auto* b = As<bool>()) return *b ? "True" : "False";
  if (const auto* i = As<int64_t>()) return absl::StrCat(*i);
  if (const auto* d = As<double>()) return FloatText(*d);
  if (const std::string* t = text()) return Quoted(*t);
  std::string out;
  if (const List* l = list()) {
    for (const Value& item : l->items) absl::StrAppend(&out, out.empty() ? "" : ", ", item.Repr());
    if (l->tuple) return absl::StrCat("(", out, l->items.size() == 1 ? ",)" : ")");
    return absl::StrCat("[", out, "]");
  }
  if (const Dict* d = dict()) {
    for (const auto& [key, value] : d->items)
      absl::StrAppend(&out, out.empty() ? "" : ", ", Quoted(key), ": ", value.Repr());
    return absl::StrCat("{", out, "}");
  }
  return absl::StrCat("<", type_name(), ">");
}

void Value::AppendJson(int indent, int level, std::string* out) const {
  const auto separate = [&](bool first, int at) {
    if (!first) *out += indent < 0 ? ", " : ",";
    if (indent >= 0) {
      *out += '\n';
      out->append(static_cast<size_t>(indent) * static_cast<size_t>(at), ' ');
    }
  };
  const auto quoted = [](const std::string& t) {
    std::string json = nlohmann::json(t).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    // Python leaves U+007F as it is, too; both escape the same control characters.
    return json;
  };
  if (const List* l = list()) {
    *out += '[';
    for (size_t i = 0; i < l->items.size(); ++i) {
      separate(i == 0, level + 1);
      l->items[i].AppendJson(indent, level + 1, out);
    }
    if (indent >= 0 && !l->items.empty()) separate(true, level);
    *out += ']';
  } else if (const Dict* d = dict()) {
    *out += '{';
    for (size_t i = 0; i < d->items.size(); ++i) {
      separate(i == 0, level + 1);
      *out += quoted(d->items[i].first) + ": ";
      d->items[i].second.AppendJson(indent, level + 1, out);
    }
    if (indent >= 0 && !d->items.empty()) separate(true, level);
    *out += '}';
  } else if (const std::string* t = text()) {
    *out += quoted(*t);
  } else if (const auto* b = As<bool>()) {
    *out += *b ? "true" : "false";
  } else if (none()) {
    *out += "null";
  } else {
    *out += Repr();
  }
}

std::string Value::ToJson(int indent) const {
  std::string out;
  AppendJson(indent, 0, &out);
  return out;
}

bool Equal(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.text() != nullptr && b.text() != nullptr) return *a.text() == *b.text();
  if (a.list() != nullptr && b.list() != nullptr) {
    const auto &x = a.list()->items, &y = b.list()->items;
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), Equal);
  }
  if (a.dict() != nullptr && b.dict() != nullptr) {
    if (a.dict()->items.size() != b.dict()->items.size()) return false;
    return std::all_of(a.dict()->items.begin(), a.dict()->items.end(), [&](const auto& item) {
      const Value* other = b.dict()->Find(item.first);
      return other != nullptr && Equal(item.second, *other);
    });
  }
  return (a.none() && b.none()) || (a.undefined() && b.undefined()) || (a.space() != nullptr && a.space() == b.space());
}

int64_t CountCharacters(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::vector<absl::string_view> SplitCharacters(absl::string_view text) {
  std::vector<absl::string_view> out;
  while (!text.empty()) {
    const size_t length = std::max<size_t>(1, Utf8Length(text));
    out.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace rlhf::artifact::chat
