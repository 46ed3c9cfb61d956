// What a step was trained on, as one short text: learners, the coordinator and the checker compute it alike.
#pragma once

#include <string>
#include <vector>

#include "rlhf/v1/data.pb.h"

namespace rlhf::artifact {

// XXH3-128 over the prompt's and the response's token ids (little-endian, their counts first), hex.
std::string TokenDigest(const v1::Sample& sample);
// "STEP/ORDINAL/INDEX", as log lines name a sample.
std::string SampleName(const v1::SampleId& id);
// "STEP/ORDINAL/INDEX@ATTEMPT TOKENDIGEST": one sample of a batch.
std::string BatchLine(const v1::SampleId& id, int attempt, const std::string& token_digest);
std::string BatchLine(const v1::Sample& sample);
// XXH3-128 over the lines, each with its line end, in the batch's order.
std::string BatchDigest(const std::vector<std::string>& lines);

}  // namespace rlhf::artifact
