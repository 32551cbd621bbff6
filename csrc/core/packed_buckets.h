// The buckets of a histogram as bytes, where many are held or written: counts of a byte or two each
// (base 128, the low digits first; the top bit of a byte says that another follows).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/exp_histogram.h"

namespace pertoken {

// Appends the offset, how many counts there are, and these. Throws std::bad_alloc.
void pack(const Buckets& side, std::vector<uint8_t>& bytes);

// Takes one side off the front of `bytes`. False, with nothing promised of either, where that is
// not what pack() makes. Throws std::bad_alloc.
bool unpack(std::span<const uint8_t>& bytes, Buckets& side);

}  // namespace pertoken
