#include "artifact/chat/parser.h"

#include "absl/strings/str_cat.h"
#include "artifact/chat/expression_parser.h"
#include "artifact/chat/lexer.h"

namespace rlhf::artifact::chat {
namespace {

constexpr int kMaxDepth = 64;

// Statements; expressions are ExpressionParser's. The first error stays in it.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : in_(std::move(tokens)) {}

  absl::StatusOr<Body> Run() {
    Body body = ParseBody({});
    if (!in_.status().ok()) return in_.status();
    return body;
  }

 private:
  using Ends = std::vector<absl::string_view>;

  // Up to a tag of one of the names, which is left to be read (after its "{%").
  Body ParseBody(const Ends& ends) {
    Body body;
    if (++depth_ > kMaxDepth) in_.Fail("nested too deeply");
    while (in_.ok()) {
      const Token& token = in_.Peek();
      if (token.kind == TokenKind::kEnd) {
        if (!ends.empty()) in_.Fail(absl::StrCat("expected {% ", ends.back(), " %}, found the end of the template"));
        break;
      }
      if (token.kind == TokenKind::kText) {
        Add(&body, StatementKind::kText)->text = in_.Next().text;
      } else if (token.kind == TokenKind::kPrintBegin) {
        in_.Next();
        Statement* print = Add(&body, StatementKind::kPrint);
        print->expression = in_.ParseWithTuple();
        in_.Expect(TokenKind::kPrintEnd, "}}");
      } else {
        in_.Next();
        const std::string name = in_.Peek().text;
        bool ended = false;
        for (const absl::string_view end : ends) ended = ended || name == end;
        if (ended) break;
        ParseTag(&body);
      }
    }
    --depth_;
    return body;
  }

  Statement* Add(Body* body, StatementKind kind) {
    body->push_back(std::make_unique<Statement>());
    body->back()->kind = kind;
    body->back()->line = in_.Peek().line;
    return body->back().get();
  }

  void EndTag() { in_.Expect(TokenKind::kTagEnd, "%}"); }
  // The name of the tag that ParseBody stopped at.
  std::string TakeName() { return in_.Next().text; }

  void ParseTag(Body* body) {
    const std::string name = in_.ExpectName();
    if (name == "if") return ParseIf(Add(body, StatementKind::kIf));
    if (name == "for") return ParseFor(Add(body, StatementKind::kFor));
    if (name == "set") return ParseSet(Add(body, StatementKind::kSet));
    if (name == "macro") return ParseMacro(Add(body, StatementKind::kMacro));
    if (name == "break" || name == "continue") {
      if (loops_ == 0) return in_.Fail(absl::StrCat("{% ", name, " %} outside of a loop"));
      Add(body, name == "break" ? StatementKind::kBreak : StatementKind::kContinue);
      return EndTag();
    }
    if (name == "generation") {
      // Marks what the assistant says for training masks; its text is like any other.
      EndTag();
      Body inner = ParseBody({"endgeneration"});
      TakeName();
      EndTag();
      for (auto& statement : inner) body->push_back(std::move(statement));
      return;
    }
    in_.Fail(
        absl::StrCat("{% ", name, " %} is not supported; supported: if, for, set, macro, break, continue, generation"));
  }

  void ParseIf(Statement* statement) {
    statement->expression = in_.Parse();
    EndTag();
    statement->body = ParseBody({"elif", "else", "endif"});
    if (!in_.ok()) return;
    const std::string name = TakeName();
    if (name == "elif") {
      if (++depth_ > kMaxDepth) return in_.Fail("nested too deeply");
      ParseIf(Add(&statement->otherwise, StatementKind::kIf));
      --depth_;
      return;
    }
    EndTag();
    if (name == "endif") return;
    statement->otherwise = ParseBody({"endif"});
    TakeName();
    EndTag();
  }

  void ParseTargets(Statement* statement) {
    const bool bracket = in_.TakeOperator("(");
    do {
      statement->targets.push_back(in_.ExpectName());
    } while (in_.TakeOperator(","));
    if (bracket) in_.ExpectOperator(")");
  }

  void ParseFor(Statement* statement) {
    ParseTargets(statement);
    if (in_.ExpectName() != "in") in_.Fail("expected \"in\" in a for");
    // The part before "if" is no conditional expression.
    statement->expression = in_.ParseWithoutCondition();
    if (in_.TakeName("if")) statement->condition = in_.Parse();
    if (in_.PeekName("recursive")) in_.Fail("a recursive for is not supported");
    EndTag();
    ++loops_;
    statement->body = ParseBody({"else", "endfor"});
    --loops_;
    if (in_.ok() && TakeName() == "else") {
      EndTag();
      statement->otherwise = ParseBody({"endfor"});
      TakeName();
    }
    EndTag();
  }

  void ParseSet(Statement* statement) {
    ParseTargets(statement);
    if (in_.TakeOperator(".")) statement->field = in_.ExpectName();
    if (in_.TakeOperator("=")) {
      statement->expression = in_.ParseWithTuple();
      return EndTag();
    }
    if (!statement->field.empty() || statement->targets.size() != 1) return in_.Fail("expected \"=\" in a set");
    statement->kind = StatementKind::kSetBlock;
    EndTag();
    statement->body = ParseBody({"endset"});
    TakeName();
    EndTag();
  }

  void ParseMacro(Statement* statement) {
    statement->text = in_.ExpectName();
    in_.ExpectOperator("(");
    while (in_.ok() && !in_.TakeOperator(")")) {
      if (!statement->targets.empty()) in_.ExpectOperator(",");
      statement->targets.push_back(in_.ExpectName());
      if (in_.TakeOperator("=")) {
        statement->defaults.push_back(in_.Parse());
      } else if (!statement->defaults.empty()) {
        in_.Fail("a parameter without a default after one with");
      }
    }
    EndTag();
    const int loops = loops_;
    loops_ = 0;
    statement->body = ParseBody({"endmacro"});
    loops_ = loops;
    TakeName();
    EndTag();
  }

  ExpressionParser in_;
  int depth_ = 0, loops_ = 0;
};

}  // namespace

absl::StatusOr<Body> ParseTemplate(absl::string_view source) {
  auto tokens = Tokenize(source);
  if (!tokens.ok()) return tokens.status();
  return Parser(*std::move(tokens)).Run();
}

}  // namespace rlhf::artifact::chat
