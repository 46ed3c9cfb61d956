// What a client can take from a server and from its other clients: memory, by messages that are never ended or that
// become large when they are unpacked, and connections; and what a server can take from a client. It speaks HTTP/2 byte
// by byte, for gRPC's own client would be as large as what it sends.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/counter.h>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/connection_limit.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf {
namespace {

// What a sanitizer adds to resident memory: shadows, and what it keeps of the freed.
#if defined(_GLIBCXX_TSAN)
constexpr int64_t kShadow = 4;
#elif defined(__SANITIZE_ADDRESS__)
constexpr int64_t kShadow = 2;
#else
constexpr int64_t kShadow = 1;
#endif

int64_t ResidentMegabytes() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    int64_t kilobytes = 0;
    if (line.rfind("VmRSS:", 0) == 0 && absl::SimpleAtoi(line.substr(6, line.size() - 9), &kilobytes))
      return kilobytes / 1024;
  }
  return 0;
}

class Jobs final : public v1::JobService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context, const v1::GetJobRequest* request,
                                   v1::Job* job) override {
    job->set_id(request->job_id());
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

int ConnectTo(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(static_cast<uint16_t>(port));
  if (connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof(at)) == 0) return fd;
  close(fd);
  return -1;
}

// Many zeros in few bytes.
std::string Gzip(size_t megabytes) {
  const std::string zeros(1 << 20, '\0');
  std::string packed(megabytes * 8192, '\0');
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  for (size_t i = 1; i <= megabytes; ++i) {
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(zeros.data()));
    stream.avail_in = static_cast<uInt>(zeros.size());
    deflate(&stream, i == megabytes ? Z_FINISH : Z_NO_FLUSH);
    EXPECT_EQ(stream.avail_in, 0u);
  }
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// One connection whose calls each announce a message and send all of it but the last byte, or a packed one to its end,
// as fast as they may.
class HalfSender {
 public:
  explicit HalfSender(int port) : fd_(ConnectTo(port)) {
    Send(std::string(kPreface) + Frame(kSettings, 0, 0, ""));
    Read(absl::Milliseconds(200));
  }
  // The server's end of a connection, of whose client one call is taken.
  struct AsServer {};
  HalfSender(AsServer, int fd) : fd_(fd), preface_(sizeof(kPreface) - 1) {
    Send(Frame(kSettings, 0, 0, ""));
    while (!asked_ && !closed_) Read(absl::Milliseconds(200));
  }
  ~HalfSender() { close(fd_); }
  HalfSender(const HalfSender&) = delete;

  void Begin(uint32_t stream, uint32_t size) {
    Send(Frame(kHeaders, 4, stream, RequestHeaders()));
    Announce(stream, '\0', size);
    streams_[stream] = {initial_ - 5, static_cast<int64_t>(size) - 1, nullptr};
  }
  // `packed` has to outlive Run.
  void BeginPacked(uint32_t stream, const std::string& packed) {
    Send(Frame(kHeaders, 4, stream, RequestHeaders() + kGzipHeader));
    Announce(stream, '\1', static_cast<uint32_t>(packed.size()));
    streams_[stream] = {initial_ - 5, static_cast<int64_t>(packed.size()), &packed};
  }
  void AnswerPacked(const std::string& packed) {
    Send(Frame(kHeaders, 4, 1, "\x88" + ContentType() + kGzipHeader));
    Announce(1, '\1', static_cast<uint32_t>(packed.size()));
    streams_[1] = {initial_ - 5, static_cast<int64_t>(packed.size()), &packed};
  }
  // Sends what the server lets it, until it has not for a while or the connection is closed. As fast as a network would
  // bring it, some 1 Gbit/s a connection with ten calls: gRPC ends calls one after the other when its quota is passed,
  // and what comes meanwhile comes on top of it. By itself this process sends gigabytes a second, and how many of them
  // arrive before all calls are ended is then for the scheduler to say.
  void Run() {
    const std::string piece(16'384, 'x');
    while (!closed_) {
      bool sent = false;
      for (auto& [id, stream] : streams_) {
        const int64_t size = std::min({static_cast<int64_t>(piece.size()), stream.window, window_, stream.left});
        if (size <= 0) continue;
        sent = true;
        const std::string bytes =
            stream.packed == nullptr
                ? piece.substr(0, static_cast<size_t>(size))
                : stream.packed->substr(stream.packed->size() - static_cast<size_t>(stream.left), size);
        const bool last = stream.packed != nullptr && size == stream.left;
        Send(Frame(kData, last ? 1 : 0, id, bytes));
        stream.window -= size;
        stream.left -= size;
        window_ -= size;
      }
      if (sent) absl::SleepFor(kBetweenRounds);
      if (!Read(sent ? absl::ZeroDuration() : absl::Seconds(1)) && !sent) return;
    }
  }
  int ended() const { return ended_; }  // calls that the server has ended
  bool closed() const { return closed_; }

 private:
  enum Type : uint8_t { kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kWindowUpdate = 8 };
  struct Stream {
    int64_t window, left;
    const std::string* packed;
  };
  static constexpr absl::Duration kBetweenRounds = absl::Milliseconds(1);
  static constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  static inline const std::string kGzipHeader = std::string("\0\x0dgrpc-encoding\x04gzip", 20);

  static std::string ContentType() {
    const std::string type = "application/grpc";
    return "\x0f\x10" + std::string(1, static_cast<char>(type.size())) + type;
  }
  static std::string RequestHeaders() {
    const std::string path = "/rlhf.v1.JobService/GetJob";
    std::string headers = "\x83\x86\x04";  // POST, http, and a path as it is
    headers += static_cast<char>(path.size()) + path;
    headers += std::string("\x01\x01x", 3) + ContentType();  // authority
    return headers + std::string("\0\x02te\x08trailers", 13);
  }
  void Announce(uint32_t stream, char packed, uint32_t size) {
    Send(Frame(kData, 0, stream, std::string(1, packed) + BigEndian(size)));
    window_ -= 5;
  }
  static std::string BigEndian(uint32_t value) {
    std::string bytes;
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
    return bytes;
  }
  static uint32_t Number(const std::string& bytes, size_t at, size_t size) {
    uint32_t value = 0;
    for (size_t i = at; i < at + size; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
    return value;
  }
  static std::string Frame(Type type, uint8_t flags, uint32_t stream, const std::string& payload) {
    return BigEndian(static_cast<uint32_t>(payload.size())).substr(1) + static_cast<char>(type) +
           static_cast<char>(flags) + BigEndian(stream) + payload;
  }
  void Send(const std::string& bytes) {
    for (size_t done = 0; done < bytes.size() && !closed_;) {
      const ssize_t sent = send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      closed_ = sent <= 0;
      done += static_cast<size_t>(std::max<ssize_t>(sent, 0));
    }
  }
  // Whether anything came.
  bool Read(absl::Duration patience) {
    pollfd ready{fd_, POLLIN, 0};
    bool any = false;
    while (!closed_ && poll(&ready, 1, static_cast<int>(absl::ToInt64Milliseconds(patience))) > 0) {
      char bytes[65'536];
      const ssize_t got = recv(fd_, bytes, sizeof(bytes), MSG_DONTWAIT);
      closed_ = got <= 0;
      in_.append(bytes, static_cast<size_t>(std::max<ssize_t>(got, 0)));
      any = true;
      patience = absl::ZeroDuration();
    }
    if (in_.size() < preface_) return any;
    in_.erase(0, std::exchange(preface_, 0));
    while (in_.size() >= 9 && in_.size() >= 9 + Number(in_, 0, 3)) {
      const size_t size = Number(in_, 0, 3);
      Take(static_cast<uint8_t>(in_[3]), (in_[4] & 1) != 0, Number(in_, 5, 4) & 0x7fffffff, in_.substr(9, size));
      in_.erase(0, 9 + size);
    }
    return any;
  }
  void Take(uint8_t type, bool acknowledges, uint32_t stream, const std::string& payload) {
    if (type == kWindowUpdate && stream == 0) window_ += Number(payload, 0, 4);
    if (type == kWindowUpdate && streams_.count(stream) > 0) streams_[stream].window += Number(payload, 0, 4);
    if (type == kPing && !acknowledges) Send(Frame(kPing, 1, 0, payload));
    asked_ = asked_ || type == kHeaders;
    if (type == kHeaders || type == kReset) ended_ += static_cast<int>(streams_.erase(stream));
    if (type != kSettings || acknowledges) return;
    for (size_t i = 0; i + 6 <= payload.size(); i += 6) {
      if (Number(payload, i, 2) != 4) continue;  // a stream's first window
      const int64_t before = std::exchange(initial_, Number(payload, i + 2, 4));
      for (auto& [id, open] : streams_) open.window += initial_ - before;
    }
    Send(Frame(kSettings, 1, 0, ""));
  }

  const int fd_;
  size_t preface_ = 0;  // bytes of it that are to come
  bool asked_ = false;
  std::string in_;
  std::map<uint32_t, Stream> streams_;
  int64_t window_ = 65'535, initial_ = 65'535;
  int ended_ = 0;
  bool closed_ = false;
};

class RpcServerLimits : public testing::Test {
 protected:
  void Start(std::shared_ptr<grpc::ResourceQuota> memory = nullptr) {
    RpcServerOptions options;
    options.address = "127.0.0.1:0";
    options.tls.insecure = true;
    options.services = {&service_};
    options.receive_memory = std::move(memory);
    options.metrics = &metrics_;
    auto server = RpcServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::shared_ptr<grpc::Channel> Connect() {
    client::ChannelOptions options;
    options.address = absl::StrCat("127.0.0.1:", server_->port());
    options.tls.insecure = true;
    auto channel = client::MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return channel.ok() ? *channel : nullptr;
  }
  static absl::Status Ask(const std::shared_ptr<grpc::Channel>& channel) {
    const auto context = client::MakeContext(absl::Seconds(5));
    v1::Job job;
    return FromGrpc(v1::JobService::NewStub(channel)->GetJob(context.get(), {}, &job));
  }

  // As the next scrape has it.
  double RefusedAsExported() {
    EXPECT_THAT(metrics_.Text(), testing::HasSubstr("\nrlhf_connections_refused_total "));
    return metrics_.Counter("rlhf_connections_refused_total", "").Value();
  }

  Jobs service_;
  MetricsRegistry metrics_{"test"};
  std::unique_ptr<RpcServer> server_;
};

TEST_F(RpcServerLimits, MessagesThatAreNeverEndedCostBoundedMemory) {
  constexpr int kSenders = 3, kStreams = 10;
  constexpr uint32_t kSize = 60 << 20;  // 1.8 GB in all
  Start(MakeReceiveMemory(128));
  const auto honest = Connect();
  ASSERT_TRUE(Ask(honest).ok());
  const int64_t before = ResidentMegabytes();
  std::atomic<int> running{kSenders}, ended{0}, closed{0};
  std::vector<std::thread> senders;
  for (int i = 0; i < kSenders; ++i) {
    senders.emplace_back([&] {
      HalfSender sender(server_->port());
      for (uint32_t stream = 0; stream < kStreams; ++stream) sender.Begin(2 * stream + 1, kSize);
      sender.Run();
      ended += sender.ended();
      closed += sender.closed() ? 1 : 0;
      --running;
    });
  }
  int64_t most = 0;
  int asked = 0, answered = 0;
  while (running > 0) {
    most = std::max(most, ResidentMegabytes() - before);
    answered += Ask(honest).ok() ? 1 : 0;
    ++asked;
    absl::SleepFor(absl::Milliseconds(5));
  }
  for (std::thread& sender : senders) sender.join();
  // Twice the quota and what allocation wastes; half of what was sent would be far more.
  EXPECT_LT(most, kShadow * 500);
  EXPECT_GT(ended + closed, 0) << "nobody was stopped";
  // One of the others' calls may be among those that are ended for it, seldom.
  EXPECT_GE(answered, asked * 9 / 10) << "of " << asked;
  EXPECT_TRUE(Ask(Connect()).ok());
}

// How much larger this process was at most while `what` ran.
int64_t MegabytesFor(const std::function<void()>& what) {
  const int64_t before = ResidentMegabytes();
  std::atomic<bool> running{true};
  std::thread runs([&] {
    what();
    running = false;
  });
  int64_t most = 0;
  while (running) {
    most = std::max(most, ResidentMegabytes() - before);
    absl::SleepFor(absl::Milliseconds(1));
  }
  runs.join();
  return most;
}

TEST_F(RpcServerLimits, WhatComesPackedIsRefusedAndNotUnpacked) {
  Start();
  const auto honest = Connect();
  ASSERT_TRUE(Ask(honest).ok());
  const std::string bomb = Gzip(1024);
  ASSERT_LT(bomb.size(), 8u << 20) << "less than a message may have";
  EXPECT_LT(MegabytesFor([&] {
              HalfSender sender(server_->port());
              sender.BeginPacked(1, bomb);
              sender.Run();
              EXPECT_GT(sender.ended() + (sender.closed() ? 1 : 0), 0);
            }),
            kShadow * 200);
  EXPECT_TRUE(Ask(honest).ok());
  // A client that means well is told.
  const auto packs =
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials());
  const auto context = client::MakeContext(absl::Seconds(5));
  context->set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::GetJobRequest request;
  request.set_job_id(std::string(10'000, 'x'));
  v1::Job job;
  const grpc::Status refused = v1::JobService::NewStub(packs)->GetJob(context.get(), request, &job);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNIMPLEMENTED) << refused.error_message();
  EXPECT_THAT(refused.error_message(), testing::HasSubstr("gzip"));
}

TEST(Channels, WhatAServerSendsPackedIsNotUnpacked) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(at);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&at), size), 0);
  ASSERT_EQ(listen(listener, 4), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&at), &size), 0);
  const std::string bomb = Gzip(1024);
  std::thread server([&] {
    HalfSender sender(HalfSender::AsServer(), accept(listener, nullptr, nullptr));
    sender.AnswerPacked(bomb);
    sender.Run();
  });
  client::ChannelOptions options;
  options.address = absl::StrCat("127.0.0.1:", ntohs(at.sin_port));
  options.tls.insecure = true;
  const auto channel = client::MakeChannel(options);
  ASSERT_TRUE(channel.ok()) << channel.status();
  absl::Status status;
  EXPECT_LT(MegabytesFor([&] {
              const auto context = client::MakeContext(absl::Seconds(20));
              v1::Job job;
              status = FromGrpc(v1::JobService::NewStub(*channel)->GetJob(context.get(), {}, &job));
            }),
            kShadow * 200);
  EXPECT_FALSE(status.ok());
  EXPECT_FALSE(absl::IsDeadlineExceeded(status)) << status;
  shutdown(listener, SHUT_RDWR);
  server.join();
  close(listener);
}

// A child takes all connections that it can get, and lets them go when it is told to.
class Flooder {
 public:
  explicit Flooder(int connections) {
    EXPECT_EQ(pipe2(go_, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(done_, O_CLOEXEC), 0);
    child_ = fork();
    if (child_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int port = 0;
    if (read(go_[0], &port, sizeof(port)) != sizeof(port)) _exit(1);
    for (int i = 0; i < connections; ++i) ConnectTo(port);
    char done = 1;
    if (write(done_[1], &done, 1) != 1) _exit(1);
    pause();
  }
  ~Flooder() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
    for (const int fd : {go_[0], go_[1], done_[0], done_[1]}) close(fd);
  }
  Flooder(const Flooder&) = delete;
  void Flood(int port) {
    char done = 0;
    ASSERT_EQ(write(go_[1], &port, sizeof(port)), static_cast<ssize_t>(sizeof(port)));
    ASSERT_EQ(read(done_[0], &done, 1), 1);
  }

 private:
  int go_[2], done_[2];
  pid_t child_ = -1;
};

TEST_F(RpcServerLimits, ConnectionsOnWhichNobodyCallsDelayNoStop) {
  Start();
  const std::string preface("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
  std::vector<int> idle;
  for (int i = 0; i < 40; ++i) {
    idle.push_back(ConnectTo(server_->port()));
    ASSERT_GE(idle.back(), 0);
    // Half of them speak HTTP/2, and do not do what they are told.
    if (i % 2 == 0) {
      ASSERT_EQ(send(idle.back(), preface.data(), preface.size(), MSG_NOSIGNAL), static_cast<ssize_t>(preface.size()));
    }
  }
  const auto honest = Connect();
  ASSERT_TRUE(Ask(honest).ok());
  const absl::Time began = absl::Now();
  server_->Shutdown(absl::Seconds(30));
  EXPECT_LT(absl::Now() - began, absl::Seconds(10));
  for (const int fd : idle) close(fd);
}

TEST_F(RpcServerLimits, WhoTakesAllConnectionsEndsNeitherTheListenerNorThoseOfOthers) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  {
    Flooder flooder(/*connections=*/1000);
    rlimit few = before;
    few.rlim_cur = 400;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    Start();
    const auto honest = Connect();
    ASSERT_TRUE(Ask(honest).ok());
    const int64_t refused = ConnectionsRefused();
    EXPECT_EQ(RefusedAsExported(), static_cast<double>(refused)) << "there before the first is refused";
    flooder.Flood(server_->port());
    const absl::Time patience = absl::Now() + absl::Seconds(20);
    while (ConnectionsRefused() - refused < 600 && absl::Now() < patience) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_GE(ConnectionsRefused() - refused, 600);
    EXPECT_GE(RefusedAsExported() - static_cast<double>(refused), 600);
    EXPECT_TRUE(Ask(honest).ok()) << "it was there before";
    const int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT_GE(file, 0) << "none is left for files";
    close(file);
  }
  // The flood is over.
  absl::Status again;
  for (int i = 0; i < 20; ++i) {
    again = Ask(Connect());
    if (again.ok()) break;
    absl::SleepFor(absl::Milliseconds(250));
  }
  EXPECT_TRUE(again.ok()) << again;
  ExportConnectionsRefused(&metrics_);  // as a second listener of the process does
  EXPECT_EQ(RefusedAsExported(), static_cast<double>(ConnectionsRefused()));
  server_.reset();
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  LimitConnections();
}

}  // namespace
}  // namespace rlhf
