// Values of the template language: Python's, as far as chat templates see them. Not thread-safe to change; strings,
// lists and dicts are shared and never change once made.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"

namespace rlhf::artifact::chat {

class Value;
struct Statement;

struct List {
  std::vector<Value> items;
  int depth = 1;       // of nesting
  int64_t weight = 1;  // of all that is in it, shared parts each time
  bool tuple = false;  // only written differently
};
struct Dict {
  std::vector<std::pair<std::string, Value>> items;  // in order of insertion
  int depth = 1;
  int64_t weight = 1;
  const Value* Find(absl::string_view key) const;
};
// What {% set ns.x = … %} changes.
struct Namespace {
  Dict fields;
};
// Something that can be called: a macro, a global function, or a method with its object.
struct Callable;

struct Undefined {
  std::string name;  // what was looked up
};
struct None {};

class Value {
 public:
  using Data = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
                            std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                            std::shared_ptr<const Callable>>;
  static constexpr int kMaxDepth = 24;      // of lists in lists
  static constexpr size_t kMaxKeys = 1000;  // of a dict: they are searched from the first

  Value() = default;
  Value(Data data) : data_(std::move(data)) {}  // NOLINT: a value is its data
  static Value Text(std::string text) { return Data(std::make_shared<const std::string>(std::move(text))); }
  static Value Missing(absl::string_view name) { return Data(Undefined{std::string(name)}); }
  static Value Nothing() { return Data(None()); }
  // Undefined when the items nest deeper than kMaxDepth, one is a namespace, or a dict has more than kMaxKeys.
  static Value Of(std::vector<Value> items, bool tuple = false);
  static Value Of(std::vector<std::pair<std::string, Value>> items);

  template <typename T>
  const T* As() const {
    return std::get_if<T>(&data_);
  }
  const std::string* text() const { return Pointee<std::shared_ptr<const std::string>>(); }
  const List* list() const { return Pointee<std::shared_ptr<const List>>(); }
  const Dict* dict() const { return Pointee<std::shared_ptr<const Dict>>(); }
  Namespace* space() const {
    const auto* found = std::get_if<std::shared_ptr<Namespace>>(&data_);
    return found == nullptr ? nullptr : found->get();
  }
  const Callable* callable() const { return Pointee<std::shared_ptr<const Callable>>(); }
  bool undefined() const { return As<Undefined>() != nullptr; }
  bool none() const { return As<None>() != nullptr; }
  // Booleans count as integers, as in Python.
  bool IsInteger() const { return As<int64_t>() != nullptr || As<bool>() != nullptr; }
  bool IsNumber() const { return IsInteger() || As<double>() != nullptr; }
  int64_t integer() const;
  double number() const;
  int depth() const;
  // What it costs to print or compare: one for each part, and for 64 bytes of text.
  int64_t weight() const;

  bool Truthy() const;
  const char* type_name() const;  // Python's
  std::string ToText() const;     // str()
  std::string Repr() const;       // repr()
  // json.dumps(…, ensure_ascii=False); indent < 0: on one line.
  std::string ToJson(int indent) const;

 private:
  template <typename P>
  typename P::element_type* Pointee() const {
    const auto* found = std::get_if<P>(&data_);
    return found == nullptr ? nullptr : found->get();
  }
  void AppendJson(int indent, int level, std::string* out) const;
  Data data_;
};

bool Equal(const Value& a, const Value& b);

struct Callable {
  std::string name;
  Value self;                        // a method's object; else undefined
  const Statement* macro = nullptr;  // a macro; owned by the template
};

// Code points of valid UTF-8.
int64_t CountCharacters(absl::string_view text);
std::vector<absl::string_view> SplitCharacters(absl::string_view text);

}  // namespace rlhf::artifact::chat
