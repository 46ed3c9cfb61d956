// Precedence, from loosest: if, or, and, not, comparisons, + -, ~, * / // %, **, sign, then postfix, filters, tests.
// As Jinja's parser has it.
#include "artifact/chat/expression_parser.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace rlhf::artifact::chat {
namespace {

constexpr int kMaxDepth = 64;    // of recursion while parsing
constexpr int kMaxHeight = 200;  // of the tree

// Counts nesting while it lives.
class Deeper {
 public:
  explicit Deeper(int* depth) : depth_(depth) { ++*depth_; }
  ~Deeper() { --*depth_; }

 private:
  int* depth_;
};

}  // namespace

using Node = ExpressionParser::Node;

void ExpressionParser::Fail(absl::string_view problem) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat("line ", Peek().line, ": ", problem));
}

Token ExpressionParser::Next() {
  Token token = Peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

void ExpressionParser::Expect(TokenKind kind, absl::string_view name) {
  if (Peek().kind != kind) return Fail(absl::StrCat("expected \"", name, "\", found \"", Peek().text, "\""));
  Next();
}

std::string ExpressionParser::ExpectName() {
  if (Peek().kind != TokenKind::kName) {
    Fail(absl::StrCat("expected a name, found \"", Peek().text, "\""));
    return "";
  }
  return Next().text;
}

bool ExpressionParser::PeekOperator(absl::string_view text) const {
  return Peek().kind == TokenKind::kOperator && Peek().text == text;
}
bool ExpressionParser::PeekName(absl::string_view name) const {
  return Peek().kind == TokenKind::kName && Peek().text == name;
}
bool ExpressionParser::TakeOperator(absl::string_view text) {
  if (!ok() || !PeekOperator(text)) return false;
  Next();
  return true;
}
bool ExpressionParser::TakeName(absl::string_view name) {
  if (!ok() || !PeekName(name)) return false;
  Next();
  return true;
}
void ExpressionParser::ExpectOperator(absl::string_view text) {
  if (!TakeOperator(text)) Fail(absl::StrCat("expected \"", text, "\", found \"", Peek().text, "\""));
}

Node ExpressionParser::Make(ExpressionKind kind, std::string name) {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = Peek().line;
  node->name = std::move(name);
  return node;
}

void ExpressionParser::Adopt(Expression* parent, Node child) {
  if (child != nullptr) parent->height = std::max(parent->height, child->height + 1);
  if (parent->height > kMaxHeight) Fail("an expression of too many parts");
  parent->parts.push_back(std::move(child));
}

Node ExpressionParser::Binary(std::string name, Node left, Node right) {
  Node node = Make(ExpressionKind::kBinary, std::move(name));
  Adopt(node.get(), std::move(left));
  Adopt(node.get(), std::move(right));
  return node;
}

Node ExpressionParser::ParseWithTuple() {
  Node first = Parse();
  if (!PeekOperator(",")) return first;
  Node tuple = Make(ExpressionKind::kTuple);
  Adopt(tuple.get(), std::move(first));
  while (TakeOperator(",")) {
    if (Peek().kind == TokenKind::kTagEnd || Peek().kind == TokenKind::kPrintEnd || PeekOperator(")")) break;
    Adopt(tuple.get(), Parse());
  }
  return tuple;
}

Node ExpressionParser::Parse() {
  const Deeper deeper(&depth_);
  if (depth_ > kMaxDepth) Fail("an expression nested too deeply");
  if (!ok()) return Make(ExpressionKind::kLiteral);
  Node node = ParseOr();
  while (TakeName("if")) {
    Node choice = Make(ExpressionKind::kIf);
    Adopt(choice.get(), std::move(node));
    Adopt(choice.get(), ParseOr());
    if (TakeName("else")) Adopt(choice.get(), Parse());
    node = std::move(choice);
  }
  return node;
}

Node ExpressionParser::ParseWithoutCondition() {
  return ParseOr();
}

Node ExpressionParser::ParseOr() {
  Node node = ParseAnd();
  while (TakeName("or")) node = Binary("or", std::move(node), ParseAnd());
  return node;
}

Node ExpressionParser::ParseAnd() {
  Node node = ParseNot();
  while (TakeName("and")) node = Binary("and", std::move(node), ParseNot());
  return node;
}

Node ExpressionParser::ParseNot() {
  const Deeper deeper(&depth_);
  if (depth_ > kMaxDepth) Fail("an expression nested too deeply");
  if (!TakeName("not")) return ParseCompare();
  Node node = Make(ExpressionKind::kUnary, "not");
  Adopt(node.get(), ParseNot());
  return node;
}

Node ExpressionParser::ParseCompare() {
  Node first = ParseSum();
  Node node;
  while (ok()) {
    std::string name;
    for (const char* op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (name.empty() && TakeOperator(op)) name = op;
    }
    if (name.empty() && TakeName("in")) name = "in";
    if (name.empty() && PeekName("not") && Peek(1).kind == TokenKind::kName && Peek(1).text == "in") {
      Next();
      Next();
      name = "not in";
    }
    if (name.empty()) break;
    if (node == nullptr) {
      node = Make(ExpressionKind::kCompare);
      Adopt(node.get(), std::move(first));
    }
    node->names.push_back(name);
    Adopt(node.get(), ParseSum());
  }
  return node == nullptr ? std::move(first) : std::move(node);
}

Node ExpressionParser::ParseSum() {
  Node node = ParseConcat();
  while (ok() && (PeekOperator("+") || PeekOperator("-"))) {
    const std::string name = Next().text;
    node = Binary(name, std::move(node), ParseConcat());
  }
  return node;
}

Node ExpressionParser::ParseConcat() {
  Node node = ParseProduct();
  while (TakeOperator("~")) node = Binary("~", std::move(node), ParseProduct());
  return node;
}

Node ExpressionParser::ParseProduct() {
  Node node = ParsePower();
  while (ok() && (PeekOperator("*") || PeekOperator("/") || PeekOperator("//") || PeekOperator("%"))) {
    const std::string name = Next().text;
    node = Binary(name, std::move(node), ParsePower());
  }
  return node;
}

Node ExpressionParser::ParsePower() {
  Node node = ParseUnary(true);
  while (TakeOperator("**")) node = Binary("**", std::move(node), ParseUnary(true));
  return node;
}

Node ExpressionParser::ParseUnary(bool filters) {
  const Deeper deeper(&depth_);
  if (depth_ > kMaxDepth) Fail("an expression nested too deeply");
  if (!ok()) return Make(ExpressionKind::kLiteral);
  Node node;
  if (PeekOperator("-") || PeekOperator("+")) {
    node = Make(ExpressionKind::kUnary, Next().text);
    Adopt(node.get(), ParseUnary(false));
  } else {
    node = ParsePrimary();
  }
  node = ParsePostfix(std::move(node));
  return filters ? ParseFilters(std::move(node)) : std::move(node);
}

Node ExpressionParser::ParsePrimary() {
  Node node = Make(ExpressionKind::kLiteral);
  const Token token = Next();
  switch (token.kind) {
    case TokenKind::kName:
      if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
        node->value = Value::Data(token.text[0] == 't' || token.text[0] == 'T');
      } else if (token.text == "none" || token.text == "None") {
        node->value = Value::Nothing();
      } else {
        node->kind = ExpressionKind::kName;
        node->name = token.text;
      }
      return node;
    case TokenKind::kString: {
      std::string text = token.text;
      while (ok() && Peek().kind == TokenKind::kString) text += Next().text;
      node->value = Value::Text(std::move(text));
      return node;
    }
    case TokenKind::kInteger: {
      int64_t value = 0;
      if (!absl::SimpleAtoi(absl::StrReplaceAll(token.text, {{"_", ""}}), &value)) Fail("an integer that is too large");
      node->value = Value::Data(value);
      return node;
    }
    case TokenKind::kFloat: {
      double value = 0;
      if (!absl::SimpleAtod(absl::StrReplaceAll(token.text, {{"_", ""}}), &value)) Fail("a number that cannot be read");
      node->value = Value::Data(value);
      return node;
    }
    default:
      break;
  }
  if (token.kind == TokenKind::kOperator && token.text == "(") {
    if (TakeOperator(")")) {
      node->kind = ExpressionKind::kTuple;
      return node;
    }
    node = ParseWithTuple();
    ExpectOperator(")");
    return node;
  }
  const bool list = token.kind == TokenKind::kOperator && token.text == "[";
  const bool dict = token.kind == TokenKind::kOperator && token.text == "{";
  if (!list && !dict) {
    Fail(absl::StrCat("expected an expression, found \"", token.text, "\""));
    return node;
  }
  node->kind = list ? ExpressionKind::kList : ExpressionKind::kDict;
  const absl::string_view end = list ? "]" : "}";
  while (ok() && !TakeOperator(end)) {
    if (!node->parts.empty()) ExpectOperator(",");
    if (TakeOperator(end)) break;
    Adopt(node.get(), Parse());
    if (dict) {
      ExpectOperator(":");
      Adopt(node.get(), Parse());
    }
  }
  return node;
}

Node ExpressionParser::ParsePostfix(Node node) {
  while (ok()) {
    if (TakeOperator(".")) {
      Node attribute = Make(ExpressionKind::kAttribute);
      if (Peek().kind == TokenKind::kInteger) {
        attribute->kind = ExpressionKind::kItem;
        Adopt(attribute.get(), std::move(node));
        Adopt(attribute.get(), ParsePrimary());
      } else {
        attribute->name = ExpectName();
        Adopt(attribute.get(), std::move(node));
      }
      node = std::move(attribute);
    } else if (TakeOperator("[")) {
      node = ParseSubscript(std::move(node));
    } else if (PeekOperator("(")) {
      node = ParseCall(std::move(node));
    } else {
      break;
    }
  }
  return node;
}

Node ExpressionParser::ParseCall(Node callee) {
  Node call = Make(ExpressionKind::kCall);
  Adopt(call.get(), std::move(callee));
  ParseArguments(call.get());
  return call;
}

Node ExpressionParser::ParseSubscript(Node node) {
  Node first, out = Make(ExpressionKind::kItem);
  Adopt(out.get(), std::move(node));
  if (!PeekOperator(":")) first = Parse();
  if (!PeekOperator(":")) {
    Adopt(out.get(), std::move(first));
    ExpectOperator("]");
    return out;
  }
  out->kind = ExpressionKind::kSlice;
  Adopt(out.get(), std::move(first));
  while (out->parts.size() < 4 && TakeOperator(":"))
    Adopt(out.get(), PeekOperator(":") || PeekOperator("]") ? nullptr : Parse());
  out->parts.resize(4);
  ExpectOperator("]");
  return out;
}

void ExpressionParser::ParseArguments(Expression* call) {
  ExpectOperator("(");
  bool first = true;
  while (ok() && !TakeOperator(")")) {
    if (!first) ExpectOperator(",");
    first = false;
    if (TakeOperator(")")) break;
    if (PeekOperator("*") || PeekOperator("**")) return Fail("\"*\" arguments are not supported");
    if (Peek().kind == TokenKind::kName && Peek(1).kind == TokenKind::kOperator && Peek(1).text == "=") {
      std::string name = Next().text;
      Next();
      Node value = Parse();
      call->height = std::max(call->height, value->height + 1);
      call->named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call->named.empty()) return Fail("a positional argument after a named one");
      Adopt(call, Parse());
    }
  }
}

Node ExpressionParser::ParseFilters(Node node) {
  while (ok()) {
    if (TakeOperator("|")) {
      Node filter = Make(ExpressionKind::kFilter, ExpectName());
      Adopt(filter.get(), std::move(node));
      if (PeekOperator("(")) ParseArguments(filter.get());
      node = std::move(filter);
    } else if (TakeName("is")) {
      node = ParseTest(std::move(node));
    } else if (PeekOperator("(")) {
      node = ParseCall(std::move(node));
    } else {
      break;
    }
  }
  return node;
}

Node ExpressionParser::ParseTest(Node node) {
  const bool negated = TakeName("not");
  Node test = Make(ExpressionKind::kTest);
  // "in" and names of values may be tests.
  test->name = ExpectName();
  Adopt(test.get(), std::move(node));
  const Token& next = Peek();
  const bool word = next.kind == TokenKind::kName && next.text != "else" && next.text != "or" && next.text != "and" &&
                    next.text != "if" && next.text != "is" && next.text != "in" && next.text != "not";
  if (PeekOperator("(")) {
    ParseArguments(test.get());
  } else if (word || next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
             next.kind == TokenKind::kFloat || PeekOperator("[") || PeekOperator("{")) {
    Adopt(test.get(), ParsePostfix(ParsePrimary()));
  }
  if (!negated) return test;
  Node out = Make(ExpressionKind::kUnary, "not");
  Adopt(out.get(), std::move(test));
  return out;
}

}  // namespace rlhf::artifact::chat
