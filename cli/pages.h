// Listings of the API, page by page.
#pragma once

#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/connection.h"
#include "common/status_util.h"

namespace rlhf::cli {

// Calls `take`, bool(Response&), with each page until it says false or there is no further one; the request's page_size
// stands. Blocks; `timeout` is a page's.
template <typename Stub, typename Request, typename Response, typename Take>
absl::Status EachPage(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                      Request request, const Take& take, absl::Duration timeout = absl::Seconds(30)) {
  do {
    Response page;
    const auto context = CallContext(timeout);
    RLHF_RETURN_IF_ERROR(FromGrpc((stub.*method)(context.get(), request, &page)));
    if (!take(page)) return absl::OkStatus();
    request.mutable_page()->set_page_token(page.next_page_token());
  } while (!request.page().page_token().empty());
  return absl::OkStatus();
}

// All that the pages list: `items` gives one page's.
template <typename Item, typename Stub, typename Request, typename Response, typename Items>
absl::StatusOr<std::vector<Item>> AllPages(
    Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*), const Request& request,
    const Items& items, absl::Duration timeout = absl::Seconds(30)) {
  std::vector<Item> all;
  RLHF_RETURN_IF_ERROR(EachPage(
      stub, method, request,
      [&](const Response& page) {
        const auto& listed = items(page);
        all.insert(all.end(), listed.begin(), listed.end());
        return true;
      },
      timeout));
  return all;
}

}  // namespace rlhf::cli
