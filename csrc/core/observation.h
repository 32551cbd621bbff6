// One observation: what one site put out in one step, or one row of it, as a histogram. Whoever
// reads the values, on the host or on a device, makes one of these.
#pragma once

#include <cstdint>

#include "core/exp_histogram.h"
#include "core/float_bits.h"
#include "core/record.h"

namespace pertoken {

inline constexpr int32_t kAllRows = -1;

struct Observation {
  uint32_t step;  // kNone32 outside steps
  uint8_t kind;   // StepKind, or kOutsideSteps
  int32_t row;    // of the step's batch, or kAllRows
  uint32_t site;
  FloatFormat format;
  double weight;  // 1 / the probability that its step was observed
  ExpHistogram values;
};

// The number of its step in 64 bits, kNoStep outside steps; `last_step` is one near to it.
inline int64_t widened(const Observation& observation, int64_t last_step) noexcept {
  return observation.step == kNone32 ? kNoStep : widen(last_step, observation.step);
}

}  // namespace pertoken
