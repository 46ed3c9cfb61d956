// The certificates of a local service: FOLDER/ca.pem and ca.key, NAME.pem and NAME.key of every process.
//
// The CA stays in the folder, so that whoever trusts it still can after a restart. The pairs are made anew at every
// start and before they end; processes read changed files within ten seconds. Not thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace rlhf::cli {

class LocalPki {
 public:
  struct Member {
    std::string role, name;
    std::vector<std::string> hosts;  // more names that clients use
  };
  LocalPki(std::string folder, std::vector<Member> members)
      : folder_(std::move(folder)), members_(std::move(members)) {}
  // Makes every pair, by the folder's CA or a new one. Errors are those of files, and of a CA that cannot be read.
  absl::Status Issue(absl::Time now);
  // The same when less than a third of the pairs' life is left; else does nothing.
  absl::Status RenewWhenDue(absl::Time now);

 private:
  const std::string folder_;
  const std::vector<Member> members_;
  absl::Time issued_ = absl::InfinitePast();
};

}  // namespace rlhf::cli
