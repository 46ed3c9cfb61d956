// What goes wrong on the machine that rlhfctl runs on: files, folders, and what is typed.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "cli/part_file.h"
#include "common/durable_file.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

CommandResult Errors(const std::string& arguments) {
  return RunCommand(absl::StrCat(BinDir(), "/rlhfctl ", arguments));
}
// Every write to the standard output fails, as on a full disk.
CommandResult Unprinted(const std::string& arguments) {
  return RunCommand(absl::StrCat("( ", BinDir(), "/rlhfctl ", arguments, " 1< /dev/null )"));
}

class LocalErrorsTest : public testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    EXPECT_TRUE(WriteFileDurably(dir_.File(name), text).ok());
    return dir_.File(name);
  }
  // A context whose address nobody listens at.
  std::string Context(const std::string& token) {
    Write("token", token);
    return "--context " +
           Write("client.json", R"({"address": "127.0.0.1:1", "insecure": true, "token_file": "token"})") + " ";
  }
  ScratchDir dir_;
};

TEST_F(LocalErrorsTest, WhatIsPrintedAndDoesNotArriveIsAFailure) {
  for (const char* arguments : {"completion bash", "man", "--help", "version --client", "token create --bootstrap"}) {
    const CommandResult result = Unprinted(arguments);
    EXPECT_EQ(result.code, 1) << arguments;
    EXPECT_THAT(result.output, HasSubstr("cannot write the standard output")) << arguments;
    EXPECT_THAT(result.output, Not(HasSubstr("is the coordinator running"))) << arguments;
  }
  EXPECT_EQ(Unprinted("completion csh").code, 2) << "the first failure's code stays";
  EXPECT_EQ(Errors("version --client").code, 0);
}

// As the pod of a job is at a drain: process 1 of its container, waiting for a coordinator.
TEST_F(LocalErrorsTest, AsAContainersFirstProcessItEndsOnSigterm) {
  const std::string apart = "unshare --user --map-root-user --pid --fork --kill-child ";
  if (RunCommand(apart + "true").code != 0) GTEST_SKIP() << "no namespaces may be made here";
  const int silent = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(at);
  ASSERT_EQ(bind(silent, reinterpret_cast<sockaddr*>(&at), size), 0);
  ASSERT_EQ(listen(silent, 8), 0);
  ASSERT_EQ(getsockname(silent, reinterpret_cast<sockaddr*>(&at), &size), 0);
  // Told again until it has a handler, at most five seconds; then killed.
  const CommandResult ended = RunCommand(absl::StrCat(
      apart, BinDir(), "/rlhfctl --insecure --address 127.0.0.1:", ntohs(at.sin_port), " list > ", dir_.File("out"),
      " 2>&1 & u=$!; c=; until [ -n \"$c\" ]; do c=$(cat /proc/$u/task/$u/children); done; ",
      "for i in $(seq 50); do kill -TERM $c 2> ", dir_.File("gone"), " || break; sleep 0.1; done; kill -KILL $c 2> ",
      dir_.File("gone"), "; wait $u; echo ended with $?"));
  EXPECT_THAT(ended.output, HasSubstr("ended with 143")) << ReadFile(dir_.File("out")).value_or("");
  close(silent);
}

TEST_F(LocalErrorsTest, AccountsForProgramsAreJson) {
  EXPECT_THAT(Errors("version --client --output json").output, HasSubstr("\"protocol\": "));
  EXPECT_THAT(Errors("--context " + dir_.File("none") + " --output json doctor").output,
              testing::AllOf(testing::StartsWith("[\n"), HasSubstr("\"what\": \"disk\"")));
  const std::string odd = Write("odd.json", R"({"address": "127.0.0.1:1", "insecure": "no", "ca_file": 7})");
  EXPECT_THAT(Errors("--context " + odd + " doctor").output, HasSubstr("ca_file: expected a text, found 7"));
  const CommandResult wrong =
      Errors("--output json audit verify --file " + Write("log.jsonl", "{\"sequence\": \"7\"}\n"));
  EXPECT_EQ(wrong.code, 1);
  EXPECT_THAT(wrong.output, HasSubstr("\"problem\": \"the audit log was tampered with at record"));
}

TEST_F(LocalErrorsTest, AnAuditLogWithoutRecordsIsNotVerified) {
  const CommandResult none = Errors("audit verify --file " + Write("empty.jsonl", ""));
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.output, HasSubstr("empty.jsonl: expected audit records"));
}

TEST_F(LocalErrorsTest, ATokenFileIsCheckedAndNeverShown) {
  for (const std::string secret : {"s3cr\xe9t-token", "# mine\ns3cret-token", "s3cret token", "s3cret\x01token"}) {
    const CommandResult refused = Errors(Context(secret) + "list");
    EXPECT_EQ(refused.code, 2) << refused.output;
    EXPECT_THAT(refused.output, HasSubstr("token: expected a token on one line and nothing else"));
    EXPECT_THAT(refused.output, Not(HasSubstr("s3cr")));
  }
  EXPECT_THAT(Errors(Context(" \n") + "list").output, HasSubstr("found nothing"));
  // With a byte order mark, or with spaces around it, it is one: nobody listens is the error.
  for (const std::string token : {"\xef\xbb\xbfrlhf_a_b\r\n", "  rlhf_a_b", "a.b-c~d+e/f=="})
    EXPECT_EQ(Errors(Context(token) + "list").code, 6) << token;
}

TEST_F(LocalErrorsTest, TextThatIsNotUtf8IsRefusedBeforeItIsSent) {
  const std::string context = Context("a");
  for (const std::string arguments :
       {"get 'a\xff'", "cancel 'a\xff'", "samples 'a\xff'", "logs 'a\xff'", "models alias 'a\xff'",
        "token create --role viewer --subject 'a\xff'", "token create --role viewer '--subject=a\xff'"}) {
    const CommandResult refused = Errors(context + arguments);
    EXPECT_EQ(refused.code, 2) << arguments;
    EXPECT_THAT(refused.output, HasSubstr("of the command line: expected UTF-8, found the byte 0xff")) << arguments;
    EXPECT_THAT(refused.output, Not(HasSubstr("libprotobuf"))) << arguments;
  }
  const std::string job = Write("job.yaml", "name: a\nsft:\n  model: caf\xe9\n");
  const CommandResult refused = Errors("submit --dry-run " + job);
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.output, HasSubstr("job.yaml:3: expected UTF-8, found the byte 0xe9"));
  // What names a file may be any bytes; what is in an artifact may not.
  Write("caf\xe9.yaml", "name: a\nsft: {model: m, data: d}\n");
  Write("a=caf\xe9.yaml", "name: a\nsft: {model: m, data: d}\n");
  for (const char* file : {"caf\xe9.yaml", "a=caf\xe9.yaml"})
    EXPECT_EQ(Errors("submit --dry-run '" + dir_.File(file) + "'").code, 0);
  EXPECT_THAT(Errors("--address 127.0.0.1:1 '--ca=" + dir_.File("caf\xe9.yaml") + "' list").output,
              Not(HasSubstr("of the command line")));
  ASSERT_TRUE(MakeDirs(dir_.File("data")).ok());
  Write("data/caf\xe9.jsonl", "{}\n");
  EXPECT_THAT(Errors(context + "data push " + dir_.File("data")).output, HasSubstr("expected names of files in UTF-8"));
}

TEST_F(LocalErrorsTest, AdviceAboutTheServiceIsForCallsOnly) {
  const std::string context = Context("a"), folder = dir_.File("none");
  const std::string job = Write("job.yaml", "name: a\nsft: {model: \"file:none\", data: d}\n");
  for (const std::string& arguments : std::vector<std::string>{
           "submit " + folder + "/job.yaml", "submit " + job, "data push " + folder, "audit verify --file " + folder,
           "plan " + folder, "--token-file " + folder + " list", "--ca " + folder + " --address 127.0.0.1:1 list",
           "feedback export --set s --out " + folder + "/out", "feedback import --set s " + folder,
           "service restore --from " + folder + " --data-dir " + dir_.File("data"),
           "pki issue --dir " + folder + " --role learner --instance x"}) {
    const CommandResult result = Errors(context + arguments);
    EXPECT_THAT(result.code, testing::AnyOf(1, 2)) << arguments << result.output;
    EXPECT_THAT(result.output, HasSubstr("rlhfctl: error: ")) << arguments;
    for (const char* advice : {"`rlhfctl list` shows", "use a token", "is the coordinator running"})
      EXPECT_THAT(result.output, Not(HasSubstr(advice))) << arguments;
  }
  EXPECT_EQ(Errors(context + "list").code, 6);
  EXPECT_THAT(Errors(context + "list").output, HasSubstr("is the coordinator running there?"));
}

TEST_F(LocalErrorsTest, AnotherAddressKeepsTheContextsCaAndToken) {
  Write("token", "one two");
  Write("ca.pem", "none");
  const std::string context =
      "--context " + Write("client.json", R"({"address": "127.0.0.1:1", "ca_file": "ca.pem", "token_file": "token"})") +
      " ";
  EXPECT_THAT(Errors(context + "--address 127.0.0.1:2 list").output, HasSubstr("token: expected a token on one line"));
  Write("token", "one");
  EXPECT_THAT(Errors(context + "--address 127.0.0.1:2 list").output, HasSubstr("ca.pem"));
  // To whom another CA vouches for, and in plaintext, the context's token does not go.
  Write("token", "one two");
  EXPECT_THAT(Errors(context + "--address 127.0.0.1:2 --ca " + dir_.File("token") + " list").output,
              Not(HasSubstr("expected a token")));
  EXPECT_EQ(Errors(context + "--address 127.0.0.1:2 --insecure list").code, 6);
  // Without a context file an address is enough; what it names may lie anywhere.
  EXPECT_EQ(Errors("--context " + dir_.File("none.json") + " --address 127.0.0.1:1 --insecure list").code, 6);
  EXPECT_THAT(Errors("--context " + dir_.File("none.json") + " --address 127.0.0.1:1 list").output,
              Not(HasSubstr("no coordinator is named")));
  Write("client.json", R"({"address": "127.0.0.1:1", "insecure": true, "token_file": ")" + dir_.File("token") + "\"}");
  EXPECT_THAT(Errors(context + "list").output, HasSubstr("token: expected a token on one line"));
  Write("client.json", R"({"address": 7})");
  EXPECT_EQ(Errors(context + "list").code, 2);
}

TEST_F(LocalErrorsTest, WhatIsTypedWrongIsNamed) {
  const auto says = [](const std::string& arguments, const std::string& text) {
    const CommandResult result = Errors(arguments);
    EXPECT_EQ(result.code, 2) << arguments;
    EXPECT_THAT(result.output, HasSubstr(text)) << arguments;
  };
  says("lits", "no command \"lits\" (did you mean \"list\"?); `rlhfctl --help` lists them");
  says("--project p models lst", "no command \"models lst\" (did you mean \"models list\"?)");
  says("frobnicate", "no command \"frobnicate\"; ");
  says("models", "subcommand is required");
  says("feedback export", "expected --job or --set, found neither");
  says("feedback agreement", "expected --job or --set, found neither");
  says("feedback submit t --job j --skip --prefer first", "--prefer excludes --skip");
  says("samples job --step -1", "--step");
}

TEST_F(LocalErrorsTest, APartFileHasItsNameOnlyOnceItIsWhole) {
  const std::string path = Write("out", "before");
  {
    auto file = PartFile::Create(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE((*file)->Write("half").ok());
    EXPECT_EQ(ReadFile(path).value(), "before");
  }
  EXPECT_EQ(ReadFile(path).value(), "before");
  std::filesystem::create_symlink(path, dir_.File("link"));
  auto file = PartFile::Create(dir_.File("link"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->Write("whole").ok());
  EXPECT_TRUE((*file)->Finish().ok());
  EXPECT_EQ(ReadFile(path).value(), "whole");
  EXPECT_TRUE(std::filesystem::is_symlink(dir_.File("link")));
  const auto entries = std::distance(std::filesystem::directory_iterator(dir_.path()), {});
  EXPECT_EQ(entries, 2) << "nothing is left beside them";
  // What is no file stays what it is.
  const std::string pipe = dir_.File("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  EXPECT_TRUE(WriteWhole(pipe, "through").ok());
  char read_back[16] = {};
  EXPECT_EQ(read(reader, read_back, sizeof(read_back)), 7);
  EXPECT_STREQ(read_back, "through");
  close(reader);
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  EXPECT_FALSE(WriteWhole("/dev/full", "lost").ok()) << "what is lost when the file is closed is said";
}

}  // namespace
}  // namespace rlhf::cli
