// When a process's certificates end, as rlhf_certificate_expiry_timestamp_seconds{certificate}.
#pragma once

#include <map>
#include <string>

#include "common/metrics.h"
#include "common/tls.h"

namespace rlhf {

// Sets it for each label: of the first certificate in its PEM file, 0 where there is none. Reads the files. Any thread.
void ExportCertificates(const std::map<std::string, std::string>& files, MetricsRegistry* metrics);

// The same before every exposition, for a member of the fleet: its own certificate (`fleet`) and its CA's (`ca`).
// Nothing with --insecure.
void ExportFleetCertificates(const TlsFiles& files, MetricsRegistry* metrics);

}  // namespace rlhf
