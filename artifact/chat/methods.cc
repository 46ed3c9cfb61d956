// Methods of strings and dicts, and global functions. Lists have none that leave them as they are.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "artifact/chat/context.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact::chat {
namespace {

constexpr absl::string_view kTextMethods[] = {"strip",      "lstrip",   "rstrip",  "split",        "rsplit",
                                              "startswith", "endswith", "upper",   "lower",        "title",
                                              "capitalize", "replace",  "find",    "count",        "splitlines",
                                              "join",       "isdigit",  "isspace", "removeprefix", "removesuffix"};
constexpr absl::string_view kDictMethods[] = {"items", "keys", "values", "get"};

// Characters to strip: those given, or white space.
bool Strips(absl::string_view character, const std::string* given) {
  if (given != nullptr) return absl::StrContains(*given, character);
  size_t length = 0;
  const char32_t code = FirstCodePoint(character, &length);
  return IsWhitespace(code) || (code >= 0x1C && code <= 0x1F);  // Python's str counts the separators, too
}

std::string Stripped(absl::string_view text, const std::string* given, bool left, bool right) {
  const std::vector<absl::string_view> characters = SplitCharacters(text);
  size_t begin = 0, end = characters.size();
  while (left && begin < end && Strips(characters[begin], given)) ++begin;
  while (right && end > begin && Strips(characters[end - 1], given)) --end;
  std::string out;
  for (size_t i = begin; i < end; ++i) out.append(characters[i].data(), characters[i].size());
  return out;
}

std::string Lower(absl::string_view text) {
  std::string out;
  for (const absl::string_view c : SplitCharacters(text)) {
    size_t length = 0;
    AppendLowercase(FirstCodePoint(c, &length), &out);
  }
  return out;
}

// The first letter of each word (or of the text) in upper case, the others in lower.
std::string Capitalized(absl::string_view text, bool every_word) {
  std::string out;
  bool start = true;
  for (const absl::string_view c : SplitCharacters(text)) {
    size_t length = 0;
    const char32_t code = FirstCodePoint(c, &length);
    if (start) {
      AppendUppercase(code, &out);
    } else {
      AppendLowercase(code, &out);
    }
    start = every_word && !IsLetter(code);
  }
  return out;
}

std::string Upper(absl::string_view text) {
  std::string out;
  for (const absl::string_view c : SplitCharacters(text)) {
    size_t length = 0;
    AppendUppercase(FirstCodePoint(c, &length), &out);
  }
  return out;
}

Value Parts(Context* context, const std::vector<std::string>& parts) {
  std::vector<Value> out;
  for (const std::string& part : parts) out.push_back(context->Text(part));
  return context->failed() ? Value() : context->Items(std::move(out));
}

Value Split(Context* context, const std::string& text, const Arguments& arguments, bool from_right) {
  const Value* separator = arguments.Get(0, "sep");
  const Value* limit = arguments.Get(1, "maxsplit");
  int64_t left = limit == nullptr || limit->integer() < 0 ? INT64_MAX : limit->integer();
  std::vector<std::string> parts;
  if (separator == nullptr || separator->none()) {
    if (from_right || left != INT64_MAX) return context->Fail("split by white space with a limit is not supported");
    std::string word;
    for (const absl::string_view c : SplitCharacters(text)) {
      if (!Strips(c, nullptr)) {
        word.append(c.data(), c.size());
      } else if (!word.empty()) {
        parts.push_back(std::move(word));
        word.clear();
      }
    }
    if (!word.empty()) parts.push_back(word);
    return Parts(context, parts);
  }
  const std::string* by = separator->text();
  if (by == nullptr || by->empty()) return context->Fail("split: expected a separator that is not empty");
  if (!context->PaySearch(text.size(), by->size())) return Value();
  absl::string_view rest = text;
  while (left-- > 0) {
    const size_t at = from_right ? rest.rfind(*by) : rest.find(*by);
    if (at == absl::string_view::npos) break;
    const absl::string_view part = from_right ? rest.substr(at + by->size()) : rest.substr(0, at);
    if (!context->Spend(1 + static_cast<int64_t>(part.size() / 64))) return Value();
    parts.emplace_back(part);
    rest = from_right ? rest.substr(0, at) : rest.substr(at + by->size());
  }
  parts.emplace_back(rest);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return Parts(context, parts);
}

Value Replace(Context* context, const std::string& text, const Arguments& arguments) {
  const Value *from = arguments.Get(0, "old"), *to = arguments.Get(1, "new"), *count = arguments.Get(2, "count");
  if (from == nullptr || to == nullptr || from->text() == nullptr || from->text()->empty())
    return context->Fail("replace: expected what is replaced (not empty) and by what");
  if (!context->PaySearch(text.size(), from->text()->size())) return Value();
  const std::string with = context->TextOf(*to);
  int64_t left = count == nullptr || count->none() || count->integer() < 0 ? INT64_MAX : count->integer();
  std::string out;
  size_t done = 0;
  for (size_t at; left > 0 && (at = text.find(*from->text(), done)) != std::string::npos; --left) {
    if (!context->Spend(1 + static_cast<int64_t>(with.size() / 64))) return Value();
    out.append(text, done, at - done);
    out += with;
    done = at + from->text()->size();
  }
  return context->Text(out + text.substr(done));
}

// startswith and endswith take one text or a tuple of them.
Value Matches(Context* context, const std::string& text, const std::string& name, const Arguments& arguments) {
  if (arguments.positional.size() != 1) return context->Fail(absl::StrCat(name, ": expected one argument"));
  const Value& wanted = arguments.positional[0];
  const std::vector<Value> all = wanted.list() != nullptr ? wanted.list()->items : std::vector<Value>{wanted};
  for (const Value& one : all) {
    if (one.text() == nullptr) return context->Fail(absl::StrCat(name, ": expected a text, found ", one.type_name()));
    context->Spend(1 + static_cast<int64_t>(std::min(text.size(), one.text()->size()) / 64));
    if (name == "startswith" ? absl::StartsWith(text, *one.text()) : absl::EndsWith(text, *one.text()))
      return Value::Data(true);
  }
  return Value::Data(false);
}

Value TextMethod(Context* context, const std::string& text, const std::string& name, const Arguments& arguments) {
  if (!context->Spend(1 + static_cast<int64_t>(text.size() / 16))) return Value();
  const Value* first = arguments.Get(0, "chars");
  const std::string* given = first == nullptr ? nullptr : first->text();
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return context->PaySearch(text.size(), given == nullptr ? 0 : 64 * given->size())
               ? context->Text(Stripped(text, given, name != "rstrip", name != "lstrip"))
               : Value();
  if (name == "split" || name == "rsplit") return Split(context, text, arguments, name == "rsplit");
  if (name == "startswith" || name == "endswith") return Matches(context, text, name, arguments);
  if (name == "upper") return context->Text(Upper(text));
  if (name == "lower") return context->Text(Lower(text));
  if (name == "title" || name == "capitalize") return context->Text(Capitalized(text, name == "title"));
  if (name == "replace") return Replace(context, text, arguments);
  if (name == "splitlines") {
    std::vector<std::string> lines;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find_first_of("\n\r", at), text.size());
      lines.push_back(text.substr(at, end - at));
      at = end + (text.compare(end, 2, "\r\n") == 0 ? 2 : 1);
    }
    return Parts(context, lines);
  }
  if (name == "join") {
    if (first == nullptr) return context->Fail("join: expected a list");
    Arguments by;
    by.positional.push_back(Value::Text(text));
    return ApplyFilter(context, "join", *first, by);
  }
  if (name == "isdigit" || name == "isspace") {
    bool all = !text.empty();
    for (const absl::string_view c : SplitCharacters(text))
      all = all && (name == "isspace" ? Strips(c, nullptr) : c[0] >= '0' && c[0] <= '9');
    return Value::Data(all);
  }
  if (given == nullptr) return context->Fail(absl::StrCat(name, ": expected a text"));
  if (!context->PaySearch(text.size(), given->size())) return Value();
  if (name == "removeprefix") return context->Text(absl::StartsWith(text, *given) ? text.substr(given->size()) : text);
  if (name == "removesuffix")
    return context->Text(absl::EndsWith(text, *given) ? text.substr(0, text.size() - given->size()) : text);
  if (name == "find") {
    const size_t at = text.find(*given);
    return Value::Data(at == std::string::npos ? int64_t{-1} : CountCharacters(absl::string_view(text).substr(0, at)));
  }
  if (given->empty()) return context->Fail("count: expected a text that is not empty");
  int64_t count = 0;
  for (size_t at = 0; (at = text.find(*given, at)) != std::string::npos; at += given->size()) ++count;
  return Value::Data(count);
}

Value DictMethod(Context* context, const Dict& dict, const std::string& name, const Arguments& arguments) {
  if (name == "get") {
    const Value* key = arguments.Get(0, "key");
    const Value* fallback = arguments.Get(1, "default");
    const Value* found = key == nullptr || key->text() == nullptr ? nullptr : dict.Find(*key->text());
    return found != nullptr ? *found : fallback != nullptr ? *fallback : Value::Nothing();
  }
  std::vector<Value> out;
  for (const auto& [key, value] : dict.items) {
    if (name == "items") {
      out.push_back(context->Items(std::vector<Value>{Value::Text(key), value}, /*tuple=*/true));
    } else {
      out.push_back(name == "keys" ? Value::Text(key) : value);
    }
  }
  return context->failed() ? Value() : context->Items(std::move(out));
}

Value Range(Context* context, const Arguments& arguments) {
  int64_t bounds[3] = {0, 0, 1};
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) return context->Fail("range: expected one to three integers");
  for (size_t i = 0; i < given.size(); ++i) {
    if (!given[i].IsInteger())
      return context->Fail(absl::StrCat("range: expected integers, found ", given[i].type_name()));
    bounds[given.size() == 1 ? 1 : i] = given[i].integer();
  }
  if (bounds[2] == 0) return context->Fail("range: its step is 0");
  std::vector<Value> out;
  for (int64_t at = bounds[0]; bounds[2] > 0 ? at < bounds[1] : at > bounds[1];) {
    if (static_cast<int64_t>(out.size()) >= context->limits.range)
      return context->Fail(absl::StrCat("range: expected at most ", context->limits.range, " items"));
    out.push_back(Value::Data(at));
    if (__builtin_add_overflow(at, bounds[2], &at)) break;
  }
  return context->Items(std::move(out));
}

}  // namespace

bool HasMethod(const Value& object, const std::string& name) {
  const auto among = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  return (object.text() != nullptr && among(kTextMethods)) || (object.dict() != nullptr && among(kDictMethods));
}

Value CallMethod(Context* context, const Value& object, const std::string& name, const Arguments& arguments) {
  if (object.text() != nullptr) return TextMethod(context, *object.text(), name, arguments);
  if (object.dict() != nullptr) return DictMethod(context, *object.dict(), name, arguments);
  return context->Fail(absl::StrCat("\"", object.type_name(), "\" has no method \"", name, "\""));
}

bool HasFunction(const Context& context, const std::string& name) {
  return name == "range" || name == "namespace" || name == "dict" || name == "raise_exception" ||
         (name == "strftime_now" && context.now);
}

Value CallFunction(Context* context, const std::string& name, const Arguments& arguments) {
  if (name == "range") return Range(context, arguments);
  if (name == "dict") return context->Items(arguments.named);
  if (name == "namespace") {
    for (const auto& [key, value] : arguments.named) {
      if (value.space() != nullptr) return context->Fail("a namespace in a namespace is not supported");
    }
    auto space = std::make_shared<Namespace>();
    space->fields.items = arguments.named;
    return Value::Data(std::move(space));
  }
  const std::string text = arguments.positional.empty() ? "" : context->TextOf(arguments.positional[0]);
  if (name == "raise_exception") return context->Fail(absl::StrCat("the template refuses the conversation: ", text));
  if (name == "strftime_now" && context->now)
    return context->Text(absl::FormatTime(text, *context->now, absl::UTCTimeZone()));
  return context->Fail(absl::StrCat("the function \"", name, "\" is not supported"));
}

}  // namespace rlhf::artifact::chat
