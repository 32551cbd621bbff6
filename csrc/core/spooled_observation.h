// Observations as frames of a spool, written and read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/observation.h"
#include "core/spool_frame.h"

namespace pertoken {

// `number`: its place among all that were pushed, those that were dropped included. `last_step`:
// what its step is to be widened against. Throws std::bad_alloc.
void add_observation(FrameText& frames, uint64_t number, int64_t last_step,
                     const Observation& observation);

struct SpooledObservation {
  int64_t last_step;
  Observation observation;
};

// What the payload of a frame says; none where no recording writes such. Throws std::bad_alloc.
std::optional<SpooledObservation> read_observation(std::span<const std::byte> payload);

}  // namespace pertoken
