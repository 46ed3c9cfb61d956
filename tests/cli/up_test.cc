// rlhfctl up with programs that only pretend: what it starts them with, how it waits for the coordinator, what it
// keeps.
#include <sys/stat.h>

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/cluster/local_pki.h"
#include "common/durable_file.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

// Writes what a ready coordinator writes: its ports, and the first tokens.
constexpr char kReady[] = R"(
echo "$*" > $(dirname $0)/coordinator.started
while [ $# -gt 0 ]; do
  case $1 in
    --ports-file) ports=$2;;
    --bootstrap-tokens) tokens=$2;;
  esac
  shift
done
echo '{"admin": "a", "submitter": "s", "overseer": "o", "rater": "r"}' > $tokens
echo '{"fleet": 1, "api": 1, "http": 1, "web": 1}' > $ports
exec sleep 60
)";
// Notes its arguments; the last one stops the whole once all have noted theirs.
constexpr char kRole[] = R"(
name=$(echo "$*" | sed 's/.*--instance \([^ ]*\).*/\1/')
env > $(dirname $0)/$name.environment
echo "$*" > $0.tmp.$name && mv $0.tmp.$name $(dirname $0)/$name.arguments
[ $name != learner-1 ] || while :; do
  set -- $(dirname $0)/*.arguments
  [ $# -lt 5 ] || { kill -TERM $PPID; break; }
  sleep 0.05
done
exec sleep 60
)";

class UpTest : public testing::Test {
 protected:
  UpTest() {
    Program("rlhf-coordinator", kReady);
    for (const char* role : {"rlhf-rollout-worker", "rlhf-reward-server", "rlhf-learner"}) Program(role, kRole);
  }
  void Program(const std::string& name, const std::string& script) {
    const std::string path = dir_.File(name);
    ASSERT_TRUE(WriteFileDurably(path, "#!/bin/sh\n" + script).ok());
    ASSERT_EQ(chmod(path.c_str(), 0755), 0);
  }
  CommandResult Up(const std::string& flags = "") {
    return RunCommand(
        absl::StrCat(BinDir(), "/rlhfctl up --dir ", dir_.File("up"), " --bin-dir ", dir_.path(), " ", flags));
  }
  std::string Read(const std::string& file) { return ReadFile(dir_.File(file)).value_or("no file " + file); }
  ScratchDir dir_;
};

TEST_F(UpTest, RolesServeMetricsAtPortsAfterEachOther) {
  const CommandResult result = Up("--role-http-address 0.0.0.0:9101");
  EXPECT_EQ(result.code, 0) << result.output;
  int port = 9101;
  for (const std::string name : {"reward-0", "rollout-0", "rollout-1", "learner-0", "learner-1"})
    EXPECT_THAT(Read(name + ".arguments"), HasSubstr(absl::StrCat("--http-address 0.0.0.0:", port++)));
}

TEST_F(UpTest, WithoutAnAddressEveryRoleChoosesItsOwn) {
  EXPECT_EQ(Up().code, 0);
  EXPECT_THAT(Read("learner-1.arguments"), Not(HasSubstr("--http-address")));
}

TEST_F(UpTest, WhatIsAskedReachesWhomItConcerns) {
  const CommandResult result =
      Up("--heartbeat-ms 700 --traces --via learner-0=10.0.0.9:1 --fleet-address 0.0.0.0:7123");
  ASSERT_EQ(result.code, 0) << result.output;
  const std::string traces = "--trace-dir " + dir_.File("up/traces");
  for (const std::string& flag : {std::string("--heartbeat-ms 700 "), std::string("--lease-ms 2100 "),
                                  std::string("--fleet-address 0.0.0.0:7123 "), traces})
    EXPECT_THAT(Read("coordinator.started"), HasSubstr(flag));
  // Where the listener is every address of this machine, one of them.
  EXPECT_THAT(Read("learner-0.arguments"), HasSubstr("--coordinator 10.0.0.9:1 "));
  EXPECT_THAT(Read("learner-1.arguments"), HasSubstr("--coordinator 127.0.0.1:1 "));
  for (const char* name : {"reward-0", "rollout-1", "learner-1"}) {
    EXPECT_THAT(Read(absl::StrCat(name, ".arguments")), HasSubstr(traces));
    EXPECT_THAT(Read(absl::StrCat(name, ".environment")), HasSubstr("GOMP_SPINCOUNT=2000\n"));
    EXPECT_THAT(Read(absl::StrCat(name, ".arguments")), Not(HasSubstr("--share-gpu-weights")));
  }
  for (const char* reads : {"admin", "overseer"})
    EXPECT_THAT(Read(absl::StrCat("up/", reads, ".json")), HasSubstr("pki/audit.key.pub"));
  for (const char* not_allowed : {"client", "rater"})
    EXPECT_THAT(Read(absl::StrCat("up/", not_allowed, ".json")), Not(HasSubstr("audit")));
}

TEST_F(UpTest, OnAGpuIsOneLearnerThatSharesItsWeights) {
  Program("rlhf-learner", "echo \"$*\" > $(dirname $0)/learner.arguments\nkill -TERM $PPID\nexec sleep 60\n");
  const CommandResult result = Up("--device cuda:0");
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("1 learners"));
  EXPECT_THAT(Read("learner.arguments"), HasSubstr("--share-gpu-weights"));
}

TEST_F(UpTest, TheLastStartsPortsAreNotTakenForThisOnes) {
  ASSERT_EQ(Up().code, 0);
  std::string later = absl::StrCat("sleep 0.3\n", kReady);
  const size_t at = later.find("\"fleet\": 1");
  ASSERT_NE(at, std::string::npos);
  Program("rlhf-coordinator", later.replace(at, 10, "\"fleet\": 2"));
  for (const char* name : {"reward-0", "rollout-0", "rollout-1", "learner-0", "learner-1"})
    std::filesystem::remove(dir_.File(absl::StrCat(name, ".arguments")));
  ASSERT_EQ(Up().code, 0);
  EXPECT_THAT(Read("learner-1.arguments"), HasSubstr("--coordinator 127.0.0.1:2 "));
}

TEST_F(UpTest, LinesGoToStdoutBehindTheirNamesWhereThatIsWanted) {
  Program("rlhf-rollout-worker", absl::StrCat("echo to stdout\necho to stderr >&2\n", kRole));
  const CommandResult result = Up("--log-to-stdout");
  EXPECT_EQ(result.code, 0) << result.output;
  for (const char* line : {"\nrollout-0 | to stdout\n", "\nrollout-1 | to stderr\n"})
    EXPECT_THAT(result.output, HasSubstr(line));
  EXPECT_TRUE(std::filesystem::is_empty(dir_.File("up/logs")));
  ASSERT_EQ(Up().code, 0);
  EXPECT_THAT(Read("up/logs/rollout-0.log"), HasSubstr("to stdout\nto stderr\n"));
}

TEST_F(UpTest, AddressesThatHaveNoRoomForEveryRoleAreRefused) {
  for (const char* address : {"0.0.0.0", "0.0.0.0:0", "0.0.0.0:65532", "0.0.0.0:x"}) {
    const CommandResult result = Up(absl::StrCat("--role-http-address ", address));
    EXPECT_EQ(result.code, 2) << address;
    EXPECT_THAT(result.output, HasSubstr(absl::StrCat("with 4 ports after it, found \"", address, "\"")));
  }
}

TEST_F(UpTest, TheCaStaysAndCertificatesAreMadeAnewAtEveryStart) {
  ASSERT_EQ(Up().code, 0);
  const std::string ca = Read("up/pki/ca.pem"), coordinator = Read("up/pki/coordinator.pem");
  EXPECT_THAT(ca, HasSubstr("BEGIN CERTIFICATE"));
  struct stat info {};
  ASSERT_EQ(stat(dir_.File("up/pki/ca.key").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_EQ(stat(dir_.File("up").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u) << "tokens and answers are in it";
  ASSERT_EQ(Up().code, 0);
  EXPECT_EQ(Read("up/pki/ca.pem"), ca);
  EXPECT_NE(Read("up/pki/coordinator.pem"), coordinator);
}

TEST_F(UpTest, ACoordinatorThatEndsIsReportedAtOnce) {
  Program("rlhf-coordinator", "exit 3\n");
  const CommandResult result = Up();
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.output, HasSubstr("the coordinator ended (exit code 3) before it was ready; see "));
}

TEST_F(UpTest, ACoordinatorThatSaysTryAgainIsStartedAgain) {
  Program("rlhf-coordinator", absl::StrCat("[ -e $0.tried ] || { touch $0.tried; exit 75; }\n", kReady));
  const CommandResult result = Up("--restart-seconds 0.05");
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_THAT(Read("learner-1.arguments"), HasSubstr("--coordinator"));
}

TEST_F(UpTest, ASignalEndsTheWaitForTheCoordinator) {
  Program("rlhf-coordinator", "kill -TERM $PPID\nexec sleep 60\n");
  const CommandResult result = Up();
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.output, HasSubstr("signal 15, stopping"));
}

TEST_F(UpTest, AFolderInUseIsLeftAlone) {
  Program("rlhf-coordinator", kReady);
  const std::string command = absl::StrCat(BinDir(), "/rlhfctl up --dir ", dir_.File("up"), " --bin-dir ", dir_.path(),
                                           " --rollout-workers 0 --reward-servers 0 --learners 0");
  const CommandResult first = RunCommand(absl::StrCat("sh -c '", command, " > ", dir_.File("first.log"),
                                                      " 2>&1 & echo $!; for i in $(seq 400); do [ -e ",
                                                      dir_.File("up/client.json"), " ] && break; sleep 0.05; done'"));
  ASSERT_EQ(first.code, 0) << first.output;
  const std::string pid = first.output.substr(0, first.output.find('\n'));
  const std::string certificate = Read("up/pki/coordinator.pem"), context = Read("up/client.json");
  EXPECT_THAT(context, HasSubstr("address"));
  const CommandResult second = RunCommand("timeout 20 " + command);
  EXPECT_EQ(second.code, 1);
  EXPECT_THAT(second.output, HasSubstr("is in use by another `rlhfctl up` (process " + pid + ")"));
  EXPECT_EQ(Read("up/pki/coordinator.pem"), certificate);
  EXPECT_EQ(Read("up/client.json"), context);
  EXPECT_EQ(RunCommand("kill -TERM " + pid + " && for i in $(seq 400); do kill -0 " + pid +
                       " || break; sleep 0.05; done 2> /dev/null")
                .code,
            0);
}

TEST_F(UpTest, AProcessWhoseCommandIsWrongEndsTheWholeAndSaysWhy) {
  for (const int code : {2, 127}) {
    Program("rlhf-learner", absl::StrCat("echo starting\necho 'no flag --colour' >&2\nexit ", code, "\n"));
    const CommandResult result = Up();
    EXPECT_EQ(result.code, 1);
    // Whichever of the two ended first.
    EXPECT_THAT(result.output,
                testing::ContainsRegex(absl::StrCat("learner-[01] ended \\(exit code ", code,
                                                    "\\): no flag --colour; see .*logs/learner-[01].log")));
    EXPECT_THAT(result.output, Not(HasSubstr("starting it again")));
  }
  Program("rlhf-coordinator", "echo 'no flag --size'\nexit 2\n");
  EXPECT_THAT(Up().output, HasSubstr("coordinator ended (exit code 2): no flag --size; see "));
  const CommandResult ranks =
      RunCommand(BinDir() + "/rlhfctl ranks --count 2 --instance l -- " + dir_.File("no-such-learner"));
  EXPECT_EQ(ranks.code, 1);
  EXPECT_THAT(ranks.output,
              testing::AllOf(HasSubstr("no-such-learner: cannot be run\n"), HasSubstr("ended (exit code 127)")));
}

TEST(LocalPkiTest, PairsAreRenewedBeforeTheyEnd) {
  ScratchDir dir;
  LocalPki pki(dir.File("pki"), {{"learner", "learner-0", {}}});
  const absl::Time start = absl::Now();
  ASSERT_TRUE(pki.Issue(start).ok());
  const auto read = [&dir](const char* file) { return ReadFile(dir.File(std::string("pki/") + file)).value(); };
  const std::string ca = read("ca.pem"), first = read("learner-0.pem"), first_key = read("learner-0.key");
  ASSERT_TRUE(pki.RenewWhenDue(start + absl::Hours(24 * 19)).ok());
  EXPECT_EQ(read("learner-0.pem"), first);
  ASSERT_TRUE(pki.RenewWhenDue(start + absl::Hours(24 * 21)).ok());
  const std::string second = read("learner-0.pem");
  EXPECT_NE(second, first);
  EXPECT_NE(read("learner-0.key"), first_key);
  EXPECT_EQ(read("ca.pem"), ca);
  ASSERT_TRUE(pki.RenewWhenDue(start + absl::Hours(24 * 22)).ok());
  EXPECT_EQ(read("learner-0.pem"), second);
}

}  // namespace
}  // namespace rlhf::cli
