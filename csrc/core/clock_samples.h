// What can be believed of a set of clock samples: the first half of a fit (clock_fit.cpp). Pure,
// cold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/clock_map.h"

namespace pertoken {

// A rate, and how far it may be from the truth, relative to it; 1: it is a guess.
struct ClockRate {
  double ns_per_tick;
  double error;
};

// A sample as a point: at `ticks` the boot clock was within half_width_ns of boot_ns.
struct ClockPoint {
  uint64_t ticks;
  int64_t boot_ns;
  double half_width_ns;
  // The boot clock stepped against the ticks since the point before, by this much; 0: it did not.
  int64_t step_ns;
};

struct ClockPoints {
  std::vector<ClockPoint> points;  // strictly ascending in ticks
  double ns_per_tick;              // between most of them; or the known one
  double typical_half_width_ns;
};

// Sorts, leaves out what is not usable, and marks the steps. The known rate is used where there are
// too few samples to tell a step from a rate.
ClockPoints usable_points(std::span<const ClockSample> samples, ClockRate known);

// The rate at the last point, over the stretch before it that makes the error smallest: long
// against the width of the brackets, short against drift. The known one, if it is better, where
// all stretches since the last step are too short.
ClockRate recent_rate(const ClockPoints& usable, ClockRate known);

}  // namespace pertoken
