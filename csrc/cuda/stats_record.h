// What the statistics kernel leaves in a slot of its ring: the filled slots of the table (see
// core/float_bits.h) and the moments, in tagged words (tagged_words.h).
#pragma once

#include <cstdint>

#include "core/float_bits.h"

namespace pertoken::cuda {

// Of the first words of a record. A double takes two words of 32 bits each, the upper half first.
enum class StatsWord : uint8_t {
  kLaunch,  // bits 0 to 31: the launch; 32 to 47: how many filled slots follow
  kReplay,  // bits 0 to 31: of a captured graph, 0 where there is none; 32 to 47: the row
  kSum,     // of the finite values, as are the next three
  kSumLow,
  kSumSq,
  kSumSqLow,
  kMin,  // as the bits of a float32, infinite where there is no finite value
  kMax,
  kFirstSlot,  // the number of a slot above 32 bits of its count
};

inline constexpr uint32_t kStatsHeaderWords = static_cast<uint32_t>(StatsWord::kFirstSlot);
inline constexpr uint32_t kStatsRecordWords = kStatsHeaderWords + kSlots;
static_assert(kSlots < (1 << 16), "a slot and a count are one word");

}  // namespace pertoken::cuda
