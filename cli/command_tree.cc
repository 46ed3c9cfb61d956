#include "cli/command_tree.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/spec_loader.h"

namespace rlhf::cli {
namespace {

struct Entry {
  std::string path;  // "workers drain"; empty for the program
  const CLI::App* app;
};

void Walk(const CLI::App& app, const std::string& path, std::vector<Entry>* entries) {
  entries->push_back({path, &app});
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    Walk(*sub, path.empty() ? sub->get_name() : absl::StrCat(path, " ", sub->get_name()), entries);
  }
}

std::vector<Entry> EntriesOf(const CLI::App& app) {
  std::vector<Entry> entries;
  Walk(app, "", &entries);
  return entries;
}

std::vector<std::pair<std::string, std::string>> WordsOf(const CLI::App& app) {
  std::vector<std::pair<std::string, std::string>> words;  // word, what it is
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    words.emplace_back(sub->get_name(), sub->get_description());
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) words.emplace_back("--" + name, option->get_description());
  }
  return words;
}

std::string NamesOf(const CLI::App& app) {
  return absl::StrJoin(WordsOf(app), " ", [](std::string* out, const auto& word) { out->append(word.first); });
}

// How a shell goes from a command's path and the next word to the path of the next command.
std::string PathCases(const std::vector<Entry>& entries) {
  std::string text;
  for (const Entry& entry : entries) {
    if (entry.path.empty()) continue;
    const size_t space = entry.path.rfind(' ');
    const std::string parent = space == std::string::npos ? "" : entry.path.substr(0, space);
    const std::string name = space == std::string::npos ? entry.path : entry.path.substr(space + 1);
    absl::StrAppend(&text, "      \"", parent, " ", name, "\") path=\"", entry.path, "\" ;;\n");
  }
  return text;
}

// The words before the cursor that are commands make the path; after it come its commands and flags, or files.
std::string Bash(const std::vector<Entry>& entries) {
  std::string text =
      "# bash completion of rlhfctl: rlhfctl completion bash > /etc/bash_completion.d/rlhfctl\n"
      "_rlhfctl() {\n"
      "  local word path=\"\" current=\"${COMP_WORDS[COMP_CWORD]}\" index\n"
      "  for ((index = 1; index < COMP_CWORD; index++)); do\n"
      "    word=\"${COMP_WORDS[index]}\"\n"
      "    case \"$path $word\" in\n";
  text += PathCases(entries);
  text += "    esac\n  done\n  local words=\"\"\n  case \"$path\" in\n";
  for (const Entry& entry : entries)
    absl::StrAppend(&text, "    \"", entry.path, "\") words=\"", NamesOf(*entry.app), "\" ;;\n");
  text +=
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "  if [ ${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- \"$current\")); fi\n"
      "}\n"
      "complete -o filenames -F _rlhfctl rlhfctl\n";
  return text;
}

std::string Zsh(const std::vector<Entry>& entries) {
  std::string text =
      "#compdef rlhfctl\n"
      "# zsh completion of rlhfctl: rlhfctl completion zsh > a folder of $fpath, as _rlhfctl\n"
      "_rlhfctl() {\n"
      "  local path=\"\" word\n"
      "  for word in ${words[2,CURRENT-1]}; do\n"
      "    case \"$path $word\" in\n";
  text += PathCases(entries);
  text += "    esac\n  done\n  local -a choices\n  case \"$path\" in\n";
  for (const Entry& entry : entries) {
    absl::StrAppend(&text, "    \"", entry.path, "\") choices=(");
    for (const auto& [word, what] : WordsOf(*entry.app)) {
      absl::StrAppend(&text, " '", absl::StrReplaceAll(word, {{":", "\\:"}}), ":",
                      absl::StrReplaceAll(what, {{"'", "’"}, {":", "\\:"}}), "'");
    }
    text += " ) ;;\n";
  }
  text += "  esac\n  _describe rlhfctl choices || _files\n}\n_rlhfctl \"$@\"\n";
  return text;
}

std::string Fish(const std::vector<Entry>& entries) {
  std::string text =
      "# fish completion of rlhfctl: rlhfctl completion fish > ~/.config/fish/completions/rlhfctl.fish\n";
  for (const Entry& entry : entries) {
    std::string condition = "__fish_use_subcommand";
    if (!entry.path.empty())
      condition = absl::StrCat("__fish_seen_subcommand_from ",
                               absl::StrReplaceAll(entry.path, {{" ", "; and __fish_seen_subcommand_from "}}));
    for (const auto& [word, what] : WordsOf(*entry.app)) {
      const std::string about = absl::StrReplaceAll(what, {{"'", "’"}});
      if (word.rfind("--", 0) == 0) {
        absl::StrAppend(&text, "complete -c rlhfctl -n '", condition, "' -l ", word.substr(2), " -d '", about, "'\n");
      } else {
        absl::StrAppend(&text, "complete -c rlhfctl -n '", condition, "' -f -a ", word, " -d '", about, "'\n");
      }
    }
  }
  return text;
}

std::string Troff(const std::string& text) {
  return absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}, {"\n.", "\n\\&."}});
}

void ManOptions(const CLI::App& app, std::string* text) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() && !option->get_positional()) continue;
    const std::string name = option->get_positional() ? absl::AsciiStrToUpper(option->get_single_name())
                                                      : "--" + option->get_lnames().front();
    absl::StrAppend(text, ".TP\n\\fB", Troff(name), "\\fR");
    if (!option->get_positional() && option->get_expected_max() > 0) absl::StrAppend(text, " \\fIVALUE\\fR");
    absl::StrAppend(text, "\n", Troff(option->get_description()));
    if (option->get_required()) absl::StrAppend(text, " (required)");
    if (!option->get_default_str().empty()) absl::StrAppend(text, " [", Troff(option->get_default_str()), "]");
    absl::StrAppend(text, "\n");
  }
}

}  // namespace

absl::StatusOr<std::string> CompletionScript(const CLI::App& app, const std::string& shell) {
  const std::vector<Entry> entries = EntriesOf(app);
  if (shell == "bash") return Bash(entries);
  if (shell == "zsh") return Zsh(entries);
  if (shell == "fish") return Fish(entries);
  return absl::InvalidArgumentError(absl::StrCat("shell: expected bash, zsh or fish, found \"", shell, "\""));
}

std::string UnknownCommand(const CLI::App& app) {
  const CLI::App* at = &app;
  std::string path;
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    absl::StrAppend(&path, at->get_name(), " ");
  }
  std::vector<std::string> names;
  for (const CLI::App* sub : at->get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(sub->get_name());
  if (names.empty()) return "";
  for (const std::string& word : app.remaining(/*recurse=*/true)) {
    if (absl::StartsWith(word, "-")) continue;
    const std::string near = NearestName(word, names);
    return absl::StrCat("no command \"", path, word, "\"",
                        near.empty() ? "" : absl::StrCat(" (did you mean \"", path, near, "\"?)"), "; `rlhfctl ", path,
                        "--help` lists them");
  }
  return "";
}

std::string ManPage(const CLI::App& app, const std::string& version) {
  std::string text = absl::StrCat(".TH RLHFCTL 1 \"\" \"rlhf ", version, "\" \"RLHF service\"\n.SH NAME\nrlhfctl \\- ",
                                  Troff(app.get_description()),
                                  "\n.SH SYNOPSIS\n.B rlhfctl\n[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]\n"
                                  ".SH OPTIONS\n");
  ManOptions(app, &text);
  text += ".SH COMMANDS\n";
  for (const Entry& entry : EntriesOf(app)) {
    if (entry.path.empty()) continue;
    absl::StrAppend(&text, ".SS ", Troff(entry.path), "\n", Troff(entry.app->get_description()), "\n");
    ManOptions(*entry.app, &text);
  }
  text +=
      ".SH EXIT STATUS\n"
      ".TP\n0\nDone; with \\-\\-follow and watch: the job succeeded\n"
      ".TP\n1\nThe call failed\n.TP\n2\nUsage, or a specification that does not validate\n.TP\n3\nThe job failed\n"
      ".TP\n4\nThe job was cancelled\n.TP\n5\nA gate stayed closed\n.TP\n6\nNo coordinator there\n"
      ".TP\n7\nThe token or its role does not allow it\n"
      ".SH FILES\n.TP\n.I .rlhf/client.json\nContext: address, CA file, token file, as rlhfctl up writes it\n";
  return text;
}

}  // namespace rlhf::cli
