// The map from ticks to boot-clock nanoseconds, and the pure functions that make one from samples
// of both clocks. Nothing here reads a clock: the arguments are all there is. Cold; any thread.
//
// Truth is assumed to advance at a nearly constant rate, with slow drift and rare steps (the boot
// clock counts a suspend, the ticks do not). A map is a polyline. It is continuous and never
// decreases, also across refits: order among ticks survives the conversion, so that a child never
// ends after its parent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace pertoken {

// The boot clock was read at some moment between the two tick reads.
struct ClockSample {
  uint64_t ticks_before;
  int64_t boot_ns;
  uint64_t ticks_after;
};

inline constexpr int64_t kClockErrorUnknown = std::numeric_limits<int64_t>::max();

// Immutable. A default-constructed map is the identity, with an unknown error.
class ClockMap {
 public:
  ClockMap();

  // Boot-clock nanoseconds, rounded down, in exact integer arithmetic; a <= b in ticks implies
  // to_ns(a) <= to_ns(b). Before the first and after the last segment their lines go on. Results
  // beyond int64 saturate.
  int64_t to_ns(uint64_t ticks) const noexcept;

  // How far to_ns may be from the boot clock, for ticks between the first and the last sample that
  // the map was made from, except inside a gap between two samples that held a step (see
  // steps()). kClockErrorUnknown with fewer than two usable samples.
  int64_t error_bound_ns() const noexcept;

  // What extrapolation adds to the error: nanoseconds for each nanosecond past the last sample.
  double rate_error() const noexcept { return rate_error_; }

  // The current rate, that of the last segment.
  double ns_per_tick() const noexcept;
  double ticks_per_second() const noexcept { return 1e9 / ns_per_tick(); }

  size_t segments() const noexcept { return segments_.size(); }

  // Steps of the boot clock against the ticks that the map has followed, trimmed ones included,
  // and the largest. An interval that holds a step is longer by it; where in the gap between two
  // samples the step happened is not known.
  uint64_t steps() const noexcept { return steps_; }
  int64_t largest_step_ns() const noexcept { return largest_step_ns_; }

 private:
  friend class ClockMapBuilder;
  friend ClockMap trim(const ClockMap& map, uint64_t oldest_ticks);

  // Nanoseconds are held in units of 2^-kFractionBits, so that no fraction is lost at a border.
  __extension__ typedef __int128 Fixed;
  static constexpr int kFractionBits = 44;
  static constexpr uint64_t kLargestRate = uint64_t{1} << 62;

  struct Segment {
    uint64_t start_ticks;
    uint64_t rate;  // Fixed per tick
    Fixed start;
    int64_t error_ns;
    bool step;  // the boot clock stepped while it lasts
  };

  const Segment& segment_of(uint64_t ticks) const noexcept;
  Fixed fixed_at(uint64_t ticks) const noexcept;

  std::vector<Segment> segments_;  // never empty, ascending in start_ticks
  double rate_error_ = 1.0;
  uint64_t steps_ = 0;
  int64_t largest_step_ns_ = 0;
};

// The map of a set of samples, in any order. Samples whose two tick reads are far apart (the
// thread was preempted between them) and single samples that their neighbours contradict are left
// out. Without a usable sample: the identity. With one: a line through it at
// nominal_ns_per_tick. Both have an unknown error.
ClockMap fit(std::span<const ClockSample> samples, double nominal_ns_per_tick = 1.0);

// The map, unchanged for ticks <= from_ticks and continuous there; beyond, it follows the samples
// that lie there, then goes over to the line of the recent samples. It never runs at less than
// half the rate and so never backward: a boot clock that fell behind is met again by running
// slower, one that stepped ahead by a short steep segment. A map that the samples do not
// contradict keeps its course, and so does one without a usable sample.
ClockMap extend(const ClockMap& map, std::span<const ClockSample> samples, uint64_t from_ticks);

// The map without the segments that lie wholly before oldest_ticks; unchanged at and after it.
ClockMap trim(const ClockMap& map, uint64_t oldest_ticks);

}  // namespace pertoken
