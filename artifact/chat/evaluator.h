// Runs a parsed template. Not thread-safe; one for each rendering.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/chat/ast.h"
#include "artifact/chat/context.h"

namespace rlhf::artifact::chat {

class Evaluator {
 public:
  // globals: the variables that the template sees.
  Evaluator(std::vector<std::pair<std::string, Value>> globals, Context context);

  // InvalidArgument for what the template refuses or what is not supported; ResourceExhausted past a limit.
  absl::StatusOr<std::string> Run(const Body& body);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using Scope = std::vector<std::pair<std::string, Value>>;

  Flow Execute(const Body& body);
  Flow ExecuteOne(const Statement& statement);
  Flow ExecuteFor(const Statement& statement);
  void ExecuteSet(const Statement& statement);
  void Print(const std::string& text);
  Value LoopVariable(const std::vector<Value>& items, size_t index);

  Value Evaluate(const Expression& expression);
  Value EvaluateBinary(const Expression& expression);
  Value EvaluateCompare(const Expression& expression);
  Value EvaluateCall(const Expression& expression);
  Value CallMacro(const Statement& macro, const Arguments& arguments);
  Arguments EvaluateArguments(const Expression& call);

  Value Lookup(const std::string& name) const;
  void Assign(const std::string& name, Value value);
  void Bind(const std::vector<std::string>& targets, const Value& value);

  Context context_;
  std::vector<Scope> scopes_;  // the first: globals
  size_t base_ = 0;            // the first scope that is seen besides the globals: a macro does not see its caller's
  std::string out_;
  int depth_ = 0;
};

}  // namespace rlhf::artifact::chat
