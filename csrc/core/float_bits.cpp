#include "core/float_bits.h"

namespace pertoken {

const SlotCarries kSlotCarries = make_slot_carries(kOctave);

}  // namespace pertoken
