// The inner loops for every processor.
#include <algorithm>

#include "core/float_value.h"
#include "core/slot_kernels.h"

namespace pertoken {
namespace {

template <FloatFormat Format>
void slots_and_moments(const std::byte* values, size_t count, uint16_t* slots,
                       LaneMoments& moments) noexcept {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits =
        float32_bits_at<Format>(values + i * static_cast<size_t>(bytes_of(Format)));
    slots[i] = static_cast<uint16_t>(slot_of(bits, kSlotCarries));
    if ((bits & kFloat32Infinity) == kFloat32Infinity) continue;
    const double value = double_of(bits);
    moments.sum[i % kLanes] += value;
    moments.sum_sq[i % kLanes] += value * value;
    moments.min = std::min(moments.min, value);
    moments.max = std::max(moments.max, value);
  }
}

}  // namespace

const SlotKernels kPortableSlotKernels = {
    slots_and_moments<FloatFormat::kFloat32>,
    slots_and_moments<FloatFormat::kFloat16>,
    slots_and_moments<FloatFormat::kBFloat16>,
};

}  // namespace pertoken
