// From the counts of slots (float_bits.h), which kernels on processors and GPUs make, to those of a
// histogram. Any thread.
#pragma once

#include <cstdint>

#include "core/exp_histogram.h"

namespace pertoken {

// Adds what was counted in a slot to where it belongs; parts.scale is at most kSlotScale. Quickest
// for ascending slots, those of subnormals first: buckets then grow upwards.
void add_slot(HistogramParts& parts, int slot, uint64_t n);

}  // namespace pertoken
