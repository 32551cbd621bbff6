// Reads the logits of one position in host memory: one pass over the vocabulary, with the
// processor's widest instructions. Any thread.
#pragma once

#include "core/softmax_sums.h"
#include "core/tensor_stats.h"
#include "core/tensor_view.h"

namespace pertoken {

// In any format and with any stride. Within 2e-6 of the reference, relative to numbers above 1:
// of formats up to 32 bits exponentials are float32, and so are sums of up to 64 of them; sums of
// those are float64. Throws as TensorBlocks does.
LogitStats logit_stats(const TensorView& logits, InstructionSet set = best_instruction_set());

// The same in float64, one logit after the other: what the fast ways are tested against, and what
// reads formats that they do not.
LogitStats reference_logit_stats(const TensorView& logits);

}  // namespace pertoken
