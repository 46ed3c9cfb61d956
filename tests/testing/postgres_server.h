// A PostgreSQL server of a test's own: a cluster in a temporary folder, on a loopback port. As root it runs as the user
// postgres, since it refuses to be root. Ends with the test, also with one that is killed.
#pragma once

#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/free_port.h"

namespace rlhf {

class PostgresServer {
 public:
  // Why there is none on this machine; empty when there is one.
  static std::string Missing() {
    if (BinDirOfServer().empty()) return "PostgreSQL is not installed (/usr/lib/postgresql/*/bin/postgres)";
    if (getuid() == 0 && getpwnam("postgres") == nullptr) return "there is no user postgres to run the server as";
    return "";
  }

  PostgresServer() : port_(FreeLoopbackPort().value_or(0)) {
    EXPECT_GT(port_, 0);
    dir_ = "/tmp/rlhf-postgres-XXXXXX";  // a short name: a socket's path has 107 bytes
    if (mkdtemp(dir_.data()) == nullptr) {
      ADD_FAILURE() << "cannot make " << dir_;
      return;
    }
    if (getuid() == 0) {
      const passwd* user = getpwnam("postgres");
      EXPECT_EQ(chown(dir_.c_str(), user->pw_uid, user->pw_gid), 0);
    }
    int status = -1;
    const pid_t made =
        Spawn({"initdb", "-D", dir_ + "/data", "-U", "rlhf", "-A", "trust", "-E", "UTF8", "--no-locale"});
    EXPECT_EQ(waitpid(made, &status, 0), made);
    EXPECT_EQ(status, 0) << "initdb failed; see its output above";
    if (status != 0) return;
    Start();
  }
  ~PostgresServer() {
    Stop();
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  // As it is from the beginning, and after Stop; returns when it answers.
  void Start() {
    pid_ = Spawn({"postgres", "-D", dir_ + "/data", "-k", dir_, "-p", absl::StrCat(port_), "-c",
                  "listen_addresses=127.0.0.1", "-c", "max_connections=60", "-c", "log_min_messages=fatal"});
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (PQping(Uri().c_str()) != PQPING_OK) {
      if (absl::Now() > deadline) {
        ADD_FAILURE() << "the PostgreSQL server does not answer";
        return;
      }
      absl::SleepFor(absl::Milliseconds(50));  // another process: there is nothing to wait on but its answers
    }
  }
  void Stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGQUIT);  // at once
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  std::string Uri() const { return absl::StrCat("postgresql://rlhf@127.0.0.1:", port_, "/postgres"); }
  // The first value of what the statement returns, over a connection of its own; empty without rows.
  std::string Sql(const std::string& statement) const {
    const std::unique_ptr<PGconn, decltype(&PQfinish)> connection(PQconnectdb(Uri().c_str()), PQfinish);
    const std::unique_ptr<PGresult, decltype(&PQclear)> result(PQexec(connection.get(), statement.c_str()), PQclear);
    const ExecStatusType status = PQresultStatus(result.get());
    EXPECT_TRUE(status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK) << PQerrorMessage(connection.get());
    return PQntuples(result.get()) > 0 ? PQgetvalue(result.get(), 0, 0) : "";
  }

 private:
  static std::string BinDirOfServer() {
    std::error_code ignored;
    std::filesystem::path newest;
    for (const auto& version : std::filesystem::directory_iterator("/usr/lib/postgresql", ignored)) {
      const std::filesystem::path bin = version.path() / "bin";
      if (std::filesystem::exists(bin / "postgres") && std::filesystem::exists(bin / "initdb") &&
          (newest.empty() ||
           std::atoi(version.path().filename().c_str()) > std::atoi(newest.parent_path().filename().c_str())))
        newest = bin;
    }
    return newest.string();
  }
  pid_t Spawn(std::vector<std::string> words) const {
    const std::string program = BinDirOfServer() + "/" + words[0];
    const passwd* user = getuid() == 0 ? getpwnam("postgres") : nullptr;
    std::vector<gid_t> groups(64);
    int in_groups = static_cast<int>(groups.size());
    if (user != nullptr && getgrouplist("postgres", user->pw_gid, groups.data(), &in_groups) < 0) return -1;
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    // Behind this no memory is taken: a coordinator's threads may have held an allocator's lock.
    const pid_t pid = fork();
    if (pid != 0) return pid;
    if (user != nullptr && (setgroups(static_cast<size_t>(in_groups), groups.data()) != 0 ||
                            setgid(user->pw_gid) != 0 || setuid(user->pw_uid) != 0))
      _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGQUIT);  // after setuid, which would clear it
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    if (chdir(dir_.c_str()) != 0) _exit(126);
    dup2(2, 1);
    execv(program.c_str(), argv.data());
    _exit(127);
  }

  const int port_;
  std::string dir_;
  pid_t pid_ = -1;
};

}  // namespace rlhf
