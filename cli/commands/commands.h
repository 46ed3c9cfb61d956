// The commands of rlhfctl. Each adds its subcommand to the app and sets *run to what the parsed command line asks for;
// run returns the exit code.
#pragma once

#include <functional>
#include <string>

#include <CLI/CLI.hpp>

#include "cli/connection.h"

namespace rlhf::cli {

using Run = std::function<int()>;

// A group of subcommands that several files add to.
CLI::App* Subcommand(CLI::App& app, const std::string& name, const std::string& description);

void AddJobCommands(CLI::App& app, ConnectionFlags& connection,
                    Run* run);  // submit validate list get watch cancel pause resume delete why
void AddLedgerCommand(CLI::App& app, ConnectionFlags& connection, Run* run);     // ledger
void AddSampleCommands(CLI::App& app, ConnectionFlags& connection, Run* run);    // samples
void AddReplayCommand(CLI::App& app, ConnectionFlags& connection, Run* run);     // replay
void AddReportCommand(CLI::App& app, ConnectionFlags& connection, Run* run);     // report
void AddTraceCommand(CLI::App& app, ConnectionFlags& connection, Run* run);      // trace
void AddArtifactCommands(CLI::App& app, ConnectionFlags& connection, Run* run);  // models data
void AddFleetCommands(CLI::App& app, ConnectionFlags& connection, Run* run);     // workers token
void AddFeedbackCommands(CLI::App& app, ConnectionFlags& connection, Run* run);  // feedback
void AddServiceCommands(CLI::App& app, ConnectionFlags& connection, Run* run);   // service
void AddOversightCommands(CLI::App& app, ConnectionFlags& connection,
                          Run* run);                                          // gate audit, service halt|resume|state
void AddQuotaCommands(CLI::App& app, ConnectionFlags& connection, Run* run);  // quota
void AddUpCommand(CLI::App& app, Run* run);                                   // up

void AddPkiCommands(CLI::App& app, Run* run);                                 // pki
void AddRanksCommand(CLI::App& app, Run* run);                                // ranks
void AddToolCommands(CLI::App& app, ConnectionFlags& connection, Run* run);   // completion man plan logs
void AddDoctorCommand(CLI::App& app, ConnectionFlags& connection, Run* run);  // doctor

}  // namespace rlhf::cli
