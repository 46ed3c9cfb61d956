// A parsed template. Const after parsing.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "artifact/chat/value.h"

namespace rlhf::artifact::chat {

enum class ExpressionKind {
  kLiteral,    // value
  kName,       // name
  kList,       // parts
  kTuple,      // parts
  kDict,       // parts: key, value, key, value, …
  kUnary,      // name: "-", "+", "not"
  kBinary,     // name: "+", "and", "or", …
  kCompare,    // parts[0] names[0] parts[1] names[1] …, chained as in Python
  kIf,         // parts: then, condition, else (may be missing)
  kAttribute,  // parts[0].name
  kItem,       // parts[0][parts[1]]
  kSlice,      // parts[0][parts[1]:parts[2]:parts[3]], null where left out
  kCall,       // parts[0](parts[1…], named)
  kFilter,     // parts[0] | name(parts[1…], named)
  kTest,       // parts[0] is name(parts[1…])
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kLiteral;
  int line = 0;
  int height = 0;  // of the tree below
  std::string name;
  Value value;
  std::vector<std::unique_ptr<Expression>> parts;
  std::vector<std::string> names;
  std::vector<std::pair<std::string, std::unique_ptr<Expression>>> named;
};

enum class StatementKind {
  kText,      // text
  kPrint,     // expression
  kIf,        // expression, body, otherwise
  kFor,       // targets, expression, condition (may be null), body, otherwise
  kSet,       // targets, expression; names[0] "." names[1] when one target has a dot
  kSetBlock,  // targets, body
  kMacro,     // text is its name; targets are the parameters, defaults the last of them
  kBreak,
  kContinue,
};

struct Statement {
  StatementKind kind = StatementKind::kText;
  int line = 0;
  std::string text;
  std::string field;  // of kSet on a namespace: targets[0].field
  std::vector<std::string> targets;
  std::unique_ptr<Expression> expression, condition;
  std::vector<std::unique_ptr<Expression>> defaults;
  std::vector<std::unique_ptr<Statement>> body, otherwise;
};

using Body = std::vector<std::unique_ptr<Statement>>;

}  // namespace rlhf::artifact::chat
