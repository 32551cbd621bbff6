#include "core/clock_map.h"

#include <algorithm>
#include <cmath>

namespace pertoken {

ClockMap::ClockMap() : segments_{{0, uint64_t{1} << kFractionBits, 0, kClockErrorUnknown, false}} {}

const ClockMap::Segment& ClockMap::segment_of(uint64_t ticks) const noexcept {
  const auto after =
      std::upper_bound(segments_.begin(), segments_.end(), ticks,
                       [](uint64_t t, const Segment& segment) { return t < segment.start_ticks; });
  return after == segments_.begin() ? segments_.front() : *(after - 1);
}

// No overflow: starts are int64 nanoseconds (107 bits) plus what segments have added since; rates
// stay below 2^62 (kLargestRate) and all tick distances together below 2^64.
ClockMap::Fixed ClockMap::fixed_at(uint64_t ticks) const noexcept {
  const Segment& segment = segment_of(ticks);
  const Fixed distance = static_cast<Fixed>(ticks) - static_cast<Fixed>(segment.start_ticks);
  return segment.start + distance * static_cast<Fixed>(segment.rate);
}

int64_t ClockMap::to_ns(uint64_t ticks) const noexcept {
  const Fixed ns = fixed_at(ticks) >> kFractionBits;  // rounds down, negative values too
  constexpr Fixed kMin = std::numeric_limits<int64_t>::min();
  constexpr Fixed kMax = std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(std::clamp(ns, kMin, kMax));
}

int64_t ClockMap::error_bound_ns() const noexcept {
  int64_t largest = 0;
  for (const Segment& segment : segments_) largest = std::max(largest, segment.error_ns);
  return largest;
}

double ClockMap::ns_per_tick() const noexcept {
  return std::ldexp(static_cast<double>(segments_.back().rate), -kFractionBits);
}

ClockMap trim(const ClockMap& map, uint64_t oldest_ticks) {
  ClockMap trimmed = map;
  std::vector<ClockMap::Segment>& segments = trimmed.segments_;
  size_t dead = 0;
  while (dead + 1 < segments.size() && segments[dead + 1].start_ticks <= oldest_ticks) ++dead;
  segments.erase(segments.begin(), segments.begin() + static_cast<std::ptrdiff_t>(dead));
  return trimmed;
}

}  // namespace pertoken
