#include "artifact/chat/evaluator.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace rlhf::artifact::chat {

Evaluator::Evaluator(std::vector<std::pair<std::string, Value>> globals, Context context)
    : context_(std::move(context)), scopes_{std::move(globals)} {}

absl::StatusOr<std::string> Evaluator::Run(const Body& body) {
  Execute(body);
  if (context_.failed()) return context_.status;
  return std::move(out_);
}

Value Evaluator::Lookup(const std::string& name) const {
  for (size_t i = scopes_.size(); i-- > 0;) {
    if (i < base_ && i > 0) continue;
    for (auto entry = scopes_[i].rbegin(); entry != scopes_[i].rend(); ++entry) {
      if (entry->first == name) return entry->second;
    }
  }
  if (HasFunction(context_, name))
    return Value::Data(std::make_shared<const Callable>(Callable{name, Value(), nullptr}));
  return Value::Missing(name);
}

void Evaluator::Assign(const std::string& name, Value value) {
  for (auto& [key, old] : scopes_.back()) {
    if (key != name) continue;
    old = std::move(value);
    return;
  }
  // Names are searched one after another.
  size_t names = 1;
  for (const Scope& scope : scopes_) names += scope.size();
  if (names > context_.limits.names) {
    context_.Fail(absl::StrCat("expected at most ", context_.limits.names, " variables"));
    return;
  }
  scopes_.back().emplace_back(name, std::move(value));
}

void Evaluator::Bind(const std::vector<std::string>& targets, const Value& value) {
  if (targets.size() == 1) return Assign(targets[0], value);
  const std::vector<Value> items = ItemsOf(&context_, value);
  if (context_.failed()) return;
  if (items.size() != targets.size()) {
    context_.Fail(absl::StrCat("expected ", targets.size(), " values to unpack, found ", items.size()));
    return;
  }
  for (size_t i = 0; i < targets.size(); ++i) Assign(targets[i], items[i]);
}

void Evaluator::Print(const std::string& text) {
  if (!context_.Spend(static_cast<int64_t>(text.size() / 64))) return;
  if (out_.size() + text.size() > context_.limits.output) {
    context_.status = absl::ResourceExhaustedError(
        absl::StrCat("line ", context_.line, ": expected at most ", context_.limits.output, " bytes of output"));
    return;
  }
  out_ += text;
}

Evaluator::Flow Evaluator::Execute(const Body& body) {
  if (++depth_ > context_.limits.depth) context_.Fail("nested too deeply");
  Flow flow = Flow::kNext;
  for (const auto& statement : body) {
    if (context_.failed() || flow != Flow::kNext) break;
    flow = ExecuteOne(*statement);
  }
  --depth_;
  return flow;
}

Evaluator::Flow Evaluator::ExecuteOne(const Statement& statement) {
  context_.line = statement.line;
  if (!context_.Spend(1)) return Flow::kNext;
  switch (statement.kind) {
    case StatementKind::kText:
      Print(statement.text);
      return Flow::kNext;
    case StatementKind::kPrint:
      Print(context_.TextOf(Evaluate(*statement.expression)));
      return Flow::kNext;
    case StatementKind::kIf: {
      const bool chosen = Evaluate(*statement.expression).Truthy();
      return context_.failed() ? Flow::kNext : Execute(chosen ? statement.body : statement.otherwise);
    }
    case StatementKind::kFor:
      return ExecuteFor(statement);
    case StatementKind::kSet:
    case StatementKind::kSetBlock:
      ExecuteSet(statement);
      return Flow::kNext;
    case StatementKind::kMacro:
      Assign(statement.text,
             Value::Data(std::make_shared<const Callable>(Callable{statement.text, Value(), &statement})));
      return Flow::kNext;
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Value Evaluator::LoopVariable(const std::vector<Value>& items, size_t index) {
  const auto at = static_cast<int64_t>(index), size = static_cast<int64_t>(items.size());
  // A namespace cannot be part of another value.
  const auto item = [&](bool there, size_t which) {
    return there && items[which].depth() + 1 < Value::kMaxDepth ? items[which]
                                                                : Value::Missing("a neighbour of the loop");
  };
  return context_.Items(std::vector<std::pair<std::string, Value>>{
      {"index", Value::Data(at + 1)},
      {"index0", Value::Data(at)},
      {"revindex", Value::Data(size - at)},
      {"revindex0", Value::Data(size - at - 1)},
      {"first", Value::Data(at == 0)},
      {"last", Value::Data(at + 1 == size)},
      {"length", Value::Data(size)},
      {"previtem", item(index > 0, index - 1)},
      {"nextitem", item(index + 1 < items.size(), index + 1)},
      {"cycle", Value::Data(std::make_shared<const Callable>(Callable{"loop.cycle", Value::Data(at)}))},
  });
}

Evaluator::Flow Evaluator::ExecuteFor(const Statement& statement) {
  const Value over = Evaluate(*statement.expression);
  if (context_.failed()) return Flow::kNext;
  std::vector<Value> items = ItemsOf(&context_, over);
  if (statement.condition != nullptr) {
    std::vector<Value> kept;
    scopes_.emplace_back();
    for (const Value& item : items) {
      if (context_.failed()) break;
      Bind(statement.targets, item);
      if (Evaluate(*statement.condition).Truthy()) kept.push_back(item);
    }
    scopes_.pop_back();
    items = std::move(kept);
  }
  if (context_.failed()) return Flow::kNext;
  if (items.empty()) return Execute(statement.otherwise);
  for (size_t i = 0; i < items.size() && !context_.failed(); ++i) {
    scopes_.emplace_back();
    Assign("loop", LoopVariable(items, i));
    Bind(statement.targets, items[i]);
    const Flow flow = context_.failed() ? Flow::kBreak : Execute(statement.body);
    scopes_.pop_back();
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

void Evaluator::ExecuteSet(const Statement& statement) {
  if (statement.kind == StatementKind::kSetBlock) {
    std::string outer = std::move(out_);
    out_.clear();
    Execute(statement.body);
    std::string inner = std::move(out_);
    out_ = std::move(outer);
    if (!context_.failed()) Assign(statement.targets[0], context_.Text(std::move(inner)));
    return;
  }
  const Value value = Evaluate(*statement.expression);
  if (context_.failed()) return;
  if (statement.field.empty()) return Bind(statement.targets, value);
  Namespace* space = Lookup(statement.targets[0]).space();
  if (space == nullptr || statement.targets.size() != 1) {
    context_.Fail(absl::StrCat("set ", statement.targets[0], ".", statement.field, ": expected a namespace"));
    return;
  }
  if (value.depth() >= Value::kMaxDepth) {
    context_.Fail("a namespace in a namespace is not supported");
    return;
  }
  for (auto& [key, old] : space->fields.items) {
    if (key != statement.field) continue;
    old = value;
    return;
  }
  if (space->fields.items.size() >= context_.limits.names) {
    context_.Fail(absl::StrCat("expected at most ", context_.limits.names, " fields of a namespace"));
    return;
  }
  space->fields.items.emplace_back(statement.field, value);
}

Value Evaluator::Evaluate(const Expression& expression) {
  if (context_.failed()) return Value();
  context_.line = expression.line;
  if (!context_.Spend(1)) return Value();
  if (++depth_ > context_.limits.depth) context_.Fail("nested too deeply");
  Value out;
  const auto& parts = expression.parts;
  switch (expression.kind) {
    case ExpressionKind::kLiteral:
      out = expression.value;
      break;
    case ExpressionKind::kName:
      out = Lookup(expression.name);
      break;
    case ExpressionKind::kList:
    case ExpressionKind::kTuple: {
      std::vector<Value> items;
      for (const auto& part : parts) items.push_back(Evaluate(*part));
      out = context_.failed() ? Value() : context_.Items(std::move(items), expression.kind == ExpressionKind::kTuple);
      break;
    }
    case ExpressionKind::kDict: {
      std::vector<std::pair<std::string, Value>> items;
      for (size_t i = 0; i + 1 < parts.size(); i += 2) {
        const Value key = Evaluate(*parts[i]);
        if (!context_.failed() && key.text() == nullptr) context_.Fail("a dict's key is a text");
        if (context_.failed()) break;
        items.emplace_back(*key.text(), Evaluate(*parts[i + 1]));
      }
      out = context_.failed() ? Value() : context_.Items(std::move(items));
      break;
    }
    case ExpressionKind::kUnary: {
      const Value value = Evaluate(*parts[0]);
      if (context_.failed()) break;
      out = expression.name == "not" ? Value::Data(!value.Truthy())
                                     : BinaryOperation(&context_, expression.name, Value::Data(int64_t{0}), value);
      break;
    }
    case ExpressionKind::kBinary:
      out = EvaluateBinary(expression);
      break;
    case ExpressionKind::kCompare:
      out = EvaluateCompare(expression);
      break;
    case ExpressionKind::kIf: {
      const bool chosen = Evaluate(*parts[1]).Truthy();
      out = chosen             ? Evaluate(*parts[0])
            : parts.size() > 2 ? Evaluate(*parts[2])
                               : Value::Missing("an if without else");
      break;
    }
    case ExpressionKind::kAttribute: {
      const Value object = Evaluate(*parts[0]);
      if (!context_.failed()) out = GetAttribute(&context_, object, expression.name);
      break;
    }
    case ExpressionKind::kItem: {
      const Value object = Evaluate(*parts[0]), key = Evaluate(*parts[1]);
      if (!context_.failed()) out = GetItem(&context_, object, key);
      break;
    }
    case ExpressionKind::kSlice: {
      Value values[4];
      for (size_t i = 0; i < 4; ++i) values[i] = parts[i] == nullptr ? Value::Nothing() : Evaluate(*parts[i]);
      if (!context_.failed()) out = GetSlice(&context_, values[0], &values[1], &values[2], &values[3]);
      break;
    }
    case ExpressionKind::kCall:
      out = EvaluateCall(expression);
      break;
    case ExpressionKind::kFilter:
    case ExpressionKind::kTest: {
      const Value value = Evaluate(*parts[0]);
      const Arguments arguments = EvaluateArguments(expression);
      if (context_.failed()) break;
      out = expression.kind == ExpressionKind::kFilter
                ? ApplyFilter(&context_, expression.name, value, arguments)
                : Value::Data(ApplyTest(&context_, expression.name, value, arguments));
      break;
    }
  }
  --depth_;
  return context_.failed() ? Value() : out;
}

Value Evaluator::EvaluateBinary(const Expression& expression) {
  const Value left = Evaluate(*expression.parts[0]);
  if (context_.failed()) return Value();
  if (expression.name == "and") return left.Truthy() ? Evaluate(*expression.parts[1]) : left;
  if (expression.name == "or") return left.Truthy() ? left : Evaluate(*expression.parts[1]);
  const Value right = Evaluate(*expression.parts[1]);
  return context_.failed() ? Value() : BinaryOperation(&context_, expression.name, left, right);
}

Value Evaluator::EvaluateCompare(const Expression& expression) {
  Value left = Evaluate(*expression.parts[0]);
  bool holds = true;
  for (size_t i = 0; i < expression.names.size() && holds; ++i) {
    Value right = Evaluate(*expression.parts[i + 1]);
    if (context_.failed()) return Value();
    holds = Compare(&context_, expression.names[i], left, right);
    left = std::move(right);
  }
  return Value::Data(holds);
}

Arguments Evaluator::EvaluateArguments(const Expression& call) {
  Arguments arguments;
  for (size_t i = 1; i < call.parts.size(); ++i) arguments.positional.push_back(Evaluate(*call.parts[i]));
  for (const auto& [name, value] : call.named) arguments.named.emplace_back(name, Evaluate(*value));
  return arguments;
}

Value Evaluator::EvaluateCall(const Expression& expression) {
  const Value target = Evaluate(*expression.parts[0]);
  const Arguments arguments = EvaluateArguments(expression);
  if (context_.failed()) return Value();
  if (const auto* missing = target.As<Undefined>()) {
    return context_.Fail(absl::StrCat("\"", missing->name, "\" is undefined and cannot be called",
                                      missing->name == "strftime_now" ? " (a prompt must not depend on the day)" : ""));
  }
  const Callable* callable = target.callable();
  if (callable == nullptr) return context_.Fail(absl::StrCat("\"", target.type_name(), "\" cannot be called"));
  if (callable->macro != nullptr) return CallMacro(*callable->macro, arguments);
  if (callable->name == "loop.cycle") {
    if (arguments.positional.empty()) return context_.Fail("loop.cycle: expected values");
    return arguments.positional[static_cast<size_t>(callable->self.integer()) % arguments.positional.size()];
  }
  if (callable->self.undefined()) return CallFunction(&context_, callable->name, arguments);
  return CallMethod(&context_, callable->self, callable->name, arguments);
}

Value Evaluator::CallMacro(const Statement& macro, const Arguments& arguments) {
  if (arguments.positional.size() > macro.targets.size())
    return context_.Fail(absl::StrCat(macro.text, ": expected at most ", macro.targets.size(), " arguments"));
  for (const auto& [name, value] : arguments.named) {
    if (std::find(macro.targets.begin(), macro.targets.end(), name) == macro.targets.end())
      return context_.Fail(absl::StrCat(macro.text, ": it has no parameter \"", name, "\""));
  }
  std::string outer = std::move(out_);
  out_.clear();
  const size_t outer_base = base_;
  scopes_.emplace_back();
  base_ = scopes_.size() - 1;
  const size_t required = macro.targets.size() - macro.defaults.size();
  for (size_t i = 0; i < macro.targets.size(); ++i) {
    const Value* given = arguments.Get(i, macro.targets[i]);
    Assign(macro.targets[i], given != nullptr ? *given
                             : i < required   ? Value::Missing(macro.targets[i])
                                              : Evaluate(*macro.defaults[i - required]));
  }
  Execute(macro.body);
  scopes_.pop_back();
  base_ = outer_base;
  std::string inner = std::move(out_);
  out_ = std::move(outer);
  return context_.Text(std::move(inner));
}

}  // namespace rlhf::artifact::chat
