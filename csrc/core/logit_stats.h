// What the logits of one position say of the token that is chosen from them: one pass over the
// vocabulary, with the processor's widest instructions. Any thread.
#pragma once

#include <limits>

#include "core/tensor_stats.h"
#include "core/tensor_view.h"

namespace pertoken {

// NaN throughout where a logit is NaN or plus infinity, or all are minus infinity, as a softmax is.
// A logit of minus infinity has the probability 0.
struct LogitStats {
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

  double top1_prob = kUnknown;  // of the most probable token
  double margin = kUnknown;     // less the probability of the second; 1 where there is none
  double entropy = kUnknown;    // of the distribution, in nats
  double log_sum = kUnknown;    // log of the sum of exponentials: a logit less this is its logprob
};

// In any format and with any stride. Within 2e-6 of the reference, relative to numbers above 1:
// of formats up to 32 bits exponentials are float32, and so are sums of up to 64 of them; sums of
// those are float64. Throws as TensorBlocks does.
LogitStats logit_stats(const TensorView& logits, InstructionSet set = best_instruction_set());

// The same in float64, one logit after the other: what the fast ways are tested against, and what
// reads formats that they do not.
LogitStats reference_logit_stats(const TensorView& logits);

}  // namespace pertoken
