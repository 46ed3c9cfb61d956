#include "artifact/chat/chat_template.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/chat/evaluator.h"
#include "artifact/chat/parser.h"
#include "artifact/tokenizer/byte_trie.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kMaxMessages = 1000;
constexpr size_t kMaxSourceBytes = 1 << 20;

// A noncharacter that occurs nowhere: it marks special tokens in messages while the template runs.
absl::StatusOr<std::string> FreeMark(absl::Span<const ChatMessage> messages, absl::string_view source) {
  for (char32_t code = 0xFDD0; code <= 0xFDEF; ++code) {
    std::string mark;
    AppendUtf8(code, &mark);
    bool used = absl::StrContains(source, mark);
    for (const ChatMessage& message : messages)
      used = used || absl::StrContains(message.content, mark) || absl::StrContains(message.role, mark);
    if (!used) return mark;
  }
  return absl::InvalidArgumentError("a message holds every one of the noncharacters U+FDD0 to U+FDEF");
}

// Puts the mark behind the first character of each special token, so that none is whole.
std::string Marked(absl::string_view text, const ByteTrie& special_tokens, const std::string& mark) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const absl::string_view rest = text.substr(at);
    int32_t which = 0;
    const bool special = special_tokens.Begins(rest[0]) && special_tokens.Longest(rest, &which) > 0;
    const size_t length = std::max<size_t>(1, Utf8Length(rest));
    out.append(rest.data(), length);
    if (special) out += mark;
    at += length;
  }
  return out;
}

RenderedChat WithoutMarks(const std::string& text, const std::string& mark) {
  RenderedChat out;
  size_t done = 0;
  for (size_t at; (at = text.find(mark, done)) != std::string::npos; done = at + mark.size()) {
    out.text.append(text, done, at - done);
    out.plain_at.push_back(out.text.size());
  }
  out.text.append(text, done, std::string::npos);
  return out;
}

}  // namespace

struct ChatTemplate::Program {
  std::string name, source;
  std::map<std::string, std::string> variables;
  chat::Body body;
};

ChatTemplate::ChatTemplate() = default;
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(absl::string_view source, const std::string& name,
                                                                  std::map<std::string, std::string> variables) {
  if (source.size() > kMaxSourceBytes || !IsValidUtf8(source)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected UTF-8 of at most ", kMaxSourceBytes, " bytes, found ", source.size(), " bytes"));
  }
  auto body = chat::ParseTemplate(source);
  if (!body.ok()) return absl::Status(body.status().code(), absl::StrCat(name, ": ", body.status().message()));
  auto program = std::make_unique<Program>();
  program->name = name;
  program->source = std::string(source);
  program->variables = std::move(variables);
  program->body = *std::move(body);
  std::unique_ptr<ChatTemplate> out(new ChatTemplate());
  out->program_ = std::move(program);
  return out;
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(absl::Span<const ChatMessage> messages,
                                                  absl::Span<const std::string> special_tokens,
                                                  const ChatOptions& options) const {
  using chat::Value;
  if (messages.empty() || messages.size() > kMaxMessages)
    return absl::InvalidArgumentError(
        absl::StrCat("messages: expected 1 to ", kMaxMessages, ", found ", messages.size()));
  auto mark = FreeMark(messages, program_->source);
  if (!mark.ok()) return mark.status();
  std::vector<std::pair<std::string, int32_t>> specials;
  for (const std::string& token : special_tokens) specials.emplace_back(token, 0);
  const ByteTrie special_trie(std::move(specials));
  std::vector<Value> list;
  for (const ChatMessage& message : messages) {
    const auto text = [&](const std::string& raw) {
      return Value::Text(Marked(ReplaceInvalidUtf8(raw), special_trie, *mark));
    };
    list.push_back(Value::Of(
        std::vector<std::pair<std::string, Value>>{{"role", text(message.role)}, {"content", text(message.content)}}));
  }
  std::vector<std::pair<std::string, Value>> globals;
  for (const auto& [name, value] : program_->variables) globals.emplace_back(name, Value::Text(value));
  globals.emplace_back("messages", Value::Of(std::move(list)));
  globals.emplace_back("tools", Value::Nothing());
  globals.emplace_back("documents", Value::Nothing());
  globals.emplace_back("add_generation_prompt", Value::Data(options.add_generation_prompt));
  chat::Context context;
  context.now = options.now;
  auto text = chat::Evaluator(std::move(globals), std::move(context)).Run(program_->body);
  if (!text.ok())
    return absl::Status(text.status().code(), absl::StrCat(program_->name, ": ", text.status().message()));
  return WithoutMarks(*text, *mark);
}

}  // namespace rlhf::artifact
