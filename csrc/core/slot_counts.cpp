#include "core/slot_counts.h"

#include "core/float_bits.h"

namespace pertoken {

void add_slot(HistogramParts& parts, int slot, uint64_t n) {
  const int shift = kSlotScale - parts.scale;
  if (slot >= kSubnormalSlots) {
    const int mantissa_slot = slot - kSubnormalSlots;
    const bool is_negative = mantissa_slot >= kSubnormalSlotsOfSign;
    const int index = mantissa_slot - (is_negative ? kSubnormalSlotsOfSign : 0) +
                      kLowestMantissaSlot - kSlotOfBucketZero - kSubnormalBuckets;
    (is_negative ? parts.negative : parts.positive).add(index >> shift, n);
    return;
  }
  switch (slot) {
    case kNanSlot:
      parts.nans += n;
      return;
    case kPosInfSlot:
      parts.pos_infs += n;
      return;
    case kNegInfSlot:
      parts.neg_infs += n;
      return;
    case kPosZeroSlot:
    case kNegZeroSlot:
      parts.zeros += n;
      return;
    default:
      break;
  }
  const bool is_negative = slot >= kNegativeSlots;
  const int index = slot - (is_negative ? kNegativeSlots : 0) - kSlotOfBucketZero;
  (is_negative ? parts.negative : parts.positive).add(index >> shift, n);
}

}  // namespace pertoken
