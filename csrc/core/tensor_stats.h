// The histogram and the moments of a tensor's values, in one pass. The processor's widest
// instructions are used, chosen when first needed. Every count, and every bit of the sums, is the
// same with all of them, and in every layout of the same memory. Any thread, one tensor a thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/exp_histogram.h"
#include "core/tensor_view.h"

namespace pertoken {

enum class InstructionSet : uint8_t { kPortable, kAvx2, kAvx512 };

inline constexpr int kInstructionSets = 3;

bool is_supported(InstructionSet set) noexcept;
InstructionSet best_instruction_set() noexcept;

// Throws std::invalid_argument for a scale out of range, and as TensorBlocks does.
ExpHistogram histogram_of(const TensorView& view, int scale,
                          InstructionSet set = best_instruction_set());

// The same counts, minimum and maximum, by recording one value after the other: what the fast ways
// are tested against. Its sums are plain ones, in the order of memory.
ExpHistogram reference_histogram_of(const TensorView& view, int scale);

}  // namespace pertoken
