// How far raters agree with each other and with known answers. Pure functions.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "rlhf/v1/feedback_service.pb.h"

namespace rlhf::coordinator {

// One item's judgements: rater to value.
using Judgements = std::map<std::string, double>;

enum class MeasurementLevel { kNominal, kInterval };

// Krippendorff's α = 1 − D_observed / D_expected over all pairable values ("Content Analysis", 3rd ed., ch. 12): values
// of items with a single judgement are left out; every item's pairs weigh 1/(m − 1). NaN where nothing varies or
// nothing can be paired.
double KrippendorffAlpha(const std::vector<Judgements>& items, MeasurementLevel level);

// Cohen's κ = (p_o − p_e) / (1 − p_e) of two raters over common items (1960), unweighted. NaN without a common item, or
// when both always say the same one thing.
double CohenKappa(const std::vector<std::pair<double, double>>& both);

// The exact two-sided binomial test of `heads` in `n` throws of a fair coin: how often chance alone is as far from a
// half.
double FairCoinP(int64_t heads, int64_t n);

// Everything about a set of judgements. The same pair of answers to the same prompt is one item, whichever was shown
// first; ratings are of single answers. Planted questions are no items. A rater is flagged when the upper end of the 95
// % interval of their agreement with others (at least 10 common items), or of their planted questions (at least 5),
// lies more than 0.1 below the raters' median; or when more than 0.7 of their preferences (at least 20) are for the
// answer shown first, or for the one shown second, and chance does that less than once in a thousand (FairCoinP).
v1::AgreementReport MeasureAgreement(const std::vector<v1::Comparison>& judgements);

}  // namespace rlhf::coordinator
