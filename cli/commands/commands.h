// The commands of rlhfctl. Each adds its subcommand to the app and sets *run to what the parsed command line asks for;
// run returns the exit code.
#pragma once

#include <functional>
#include <string>

#include <CLI/CLI.hpp>

#include "cli/connection.h"

namespace rlhf::cli {

using Run = std::function<int()>;

void AddJobCommands(CLI::App& app, ConnectionFlags& connection,
                    Run* run);  // submit validate list get watch cancel pause resume delete why
void AddLedgerCommand(CLI::App& app, ConnectionFlags& connection, Run* run);     // ledger
void AddSampleCommands(CLI::App& app, ConnectionFlags& connection, Run* run);    // samples
void AddReplayCommand(CLI::App& app, ConnectionFlags& connection, Run* run);     // replay
void AddReportCommand(CLI::App& app, ConnectionFlags& connection, Run* run);     // report
void AddArtifactCommands(CLI::App& app, ConnectionFlags& connection, Run* run);  // models data
void AddFleetCommands(CLI::App& app, ConnectionFlags& connection, Run* run);     // workers token
void AddUpCommand(CLI::App& app, Run* run);                                      // up

}  // namespace rlhf::cli
