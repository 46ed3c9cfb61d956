// What is made from the tree of commands itself: shell completion and the man page, so that neither can fall behind.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "absl/status/statusor.h"

namespace rlhf::cli {

// A completion script for "bash", "zsh" or "fish". InvalidArgument for another shell.
absl::StatusOr<std::string> CompletionScript(const CLI::App& app, const std::string& shell);
// Of a command line that was not understood, when a word of it stands where a command was expected: 'no command "lits"
// (did you mean "list"?); …'. Else empty.
std::string UnknownCommand(const CLI::App& app);
// rlhfctl(1), as troff.
std::string ManPage(const CLI::App& app, const std::string& version);

}  // namespace rlhf::cli
