// Expressions, and the tokens they are read from. The first error stays; after it every call returns at once.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "artifact/chat/ast.h"
#include "artifact/chat/lexer.h"

namespace rlhf::artifact::chat {

class ExpressionParser {
 public:
  using Node = std::unique_ptr<Expression>;
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  bool ok() const { return status_.ok(); }
  absl::Status status() const { return status_; }
  void Fail(absl::string_view problem);

  const Token& Peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token Next();
  void Expect(TokenKind kind, absl::string_view name);
  std::string ExpectName();
  void ExpectOperator(absl::string_view text);
  bool TakeOperator(absl::string_view text);
  bool TakeName(absl::string_view name);
  bool PeekName(absl::string_view name) const;
  bool PeekOperator(absl::string_view text) const;

  // Never null while ok().
  Node Parse();                  // a if b else c
  Node ParseWithoutCondition();  // or-expressions and what binds closer
  Node ParseWithTuple();         // a, b

 private:
  Node Make(ExpressionKind kind, std::string name = "");
  void Adopt(Expression* parent, Node child);  // as its next part
  Node Binary(std::string name, Node left, Node right);
  Node ParseOr();
  Node ParseAnd();
  Node ParseNot();
  Node ParseCompare();
  Node ParseSum();
  Node ParseConcat();
  Node ParseProduct();
  Node ParsePower();
  Node ParseUnary(bool filters);
  Node ParsePrimary();
  Node ParsePostfix(Node node);
  Node ParseFilters(Node node);
  Node ParseTest(Node node);
  Node ParseCall(Node callee);
  Node ParseSubscript(Node node);
  void ParseArguments(Expression* call);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  absl::Status status_;
};

}  // namespace rlhf::artifact::chat
