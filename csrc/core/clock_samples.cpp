#include "core/clock_samples.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace pertoken {
namespace {

// A bracket this many times as wide as that of the best quarter holds a preemption.
constexpr uint64_t kPreemptedBracket = 4;
constexpr uint64_t kBracketSlackTicks = 64;
// A clock may be slewed by its discipline, by some hundred parts per million; more is a step.
constexpr double kLargestSlew = 1e-3;
constexpr double kSmallestStepNs = 1000.0;
// A point this far off the chord of its neighbours, relative to their distance, which fit each
// other, is wrong by itself: rates do not change and change back like that.
constexpr double kSpike = 2e-5;
// How fast the rate is expected to drift, by temperature: relative, per second.
constexpr double kDriftPerSecond = 1e-8;
// From this many points on, their own median rate is believed against the known one.
constexpr size_t kEnoughForRate = 5;
// Good enough to be preferred to an earlier one, which may be out of date.
constexpr double kGoodRateError = 1e-4;
constexpr double kSlowestNsPerTick = 1e-6;
constexpr double kFastestNsPerTick = 8192.0;

double distance_ticks(const ClockPoint& a, const ClockPoint& b) {
  return static_cast<double>(b.ticks - a.ticks);
}

// Subtracted as integers, so that values of any size lose nothing.
double distance_ns(const ClockPoint& a, const ClockPoint& b) {
  int64_t difference = 0;
  if (!__builtin_sub_overflow(b.boot_ns, a.boot_ns, &difference)) {
    return static_cast<double>(difference);
  }
  return static_cast<double>(b.boot_ns) - static_cast<double>(a.boot_ns);
}

double slope(const ClockPoint& a, const ClockPoint& b) {
  return distance_ns(a, b) / distance_ticks(a, b);
}

// The brackets' widths are still in ticks here.
std::vector<ClockPoint> narrow_points(std::span<const ClockSample> samples) {
  std::vector<uint64_t> widths;
  for (const ClockSample& sample : samples) {
    if (sample.ticks_after >= sample.ticks_before) {
      widths.push_back(sample.ticks_after - sample.ticks_before);
    }
  }
  std::vector<ClockPoint> points;
  if (widths.empty()) return points;
  const auto quartile = widths.begin() + static_cast<std::ptrdiff_t>(widths.size() / 4);
  std::nth_element(widths.begin(), quartile, widths.end());
  const uint64_t narrow = std::min(*quartile, UINT64_MAX / (2 * kPreemptedBracket));
  const uint64_t widest = narrow * kPreemptedBracket + kBracketSlackTicks;
  for (const ClockSample& sample : samples) {
    if (sample.ticks_after < sample.ticks_before) continue;
    const uint64_t width = sample.ticks_after - sample.ticks_before;
    if (width > widest) continue;
    points.push_back({sample.ticks_before + width / 2, sample.boot_ns,
                      std::ceil(static_cast<double>(width) / 2.0), 0});
  }
  std::sort(points.begin(), points.end(), [](const ClockPoint& a, const ClockPoint& b) {
    return a.ticks != b.ticks ? a.ticks < b.ticks : a.half_width_ns < b.half_width_ns;
  });
  const auto same_ticks = [](const ClockPoint& a, const ClockPoint& b) {
    return a.ticks == b.ticks;
  };
  points.erase(std::unique(points.begin(), points.end(), same_ticks), points.end());
  return points;
}

// The median of the slopes between neighbours, each counted by its length in ticks: no step and no
// short, noisy distance moves it.
double median_rate(const std::vector<ClockPoint>& points, double known) {
  struct Slope {
    double ns_per_tick;
    double weight;
  };
  std::vector<Slope> slopes;
  double total = 0;
  for (size_t i = 1; i < points.size(); ++i) {
    const double between = slope(points[i - 1], points[i]);
    if (!(between > 0)) continue;
    const double weight = distance_ticks(points[i - 1], points[i]);
    slopes.push_back({between, weight});
    total += weight;
  }
  if (slopes.empty()) return known;
  std::sort(slopes.begin(), slopes.end(),
            [](const Slope& a, const Slope& b) { return a.ns_per_tick < b.ns_per_tick; });
  double below = 0;
  for (const Slope& each : slopes) {
    below += each.weight;
    if (below * 2 >= total) return each.ns_per_tick;
  }
  return slopes.back().ns_per_tick;
}

bool is_spike(const ClockPoint& left, const ClockPoint& point, const ClockPoint& right,
              double ns_per_tick) {
  const double chord = slope(left, right);
  const double off = std::abs(distance_ns(left, point) - chord * distance_ticks(left, point));
  // Behind a step the neighbours do not fit each other either.
  const double apart = std::abs(chord - ns_per_tick) * distance_ticks(left, right);
  if (apart > off / 4) return false;
  const double widths = left.half_width_ns + point.half_width_ns + right.half_width_ns;
  return off > kSmallestStepNs + 4 * widths + kSpike * ns_per_tick * distance_ticks(left, right);
}

void drop_spikes(std::vector<ClockPoint>& points, double ns_per_tick) {
  std::vector<ClockPoint> kept;
  for (size_t i = 0; i < points.size(); ++i) {
    const bool inside = !kept.empty() && i + 1 < points.size();
    if (inside && is_spike(kept.back(), points[i], points[i + 1], ns_per_tick)) continue;
    kept.push_back(points[i]);
  }
  points.swap(kept);
}

int64_t step_between(const ClockPoint& a, const ClockPoint& b, double ns_per_tick) {
  const double expected = ns_per_tick * distance_ticks(a, b);
  const double off = distance_ns(a, b) - expected;
  const double explained =
      std::max(kLargestSlew * expected, kSmallestStepNs + 4 * (a.half_width_ns + b.half_width_ns));
  if (std::abs(off) <= explained) return 0;
  return static_cast<int64_t>(std::clamp(off, -9e18, 9e18));
}

}  // namespace

ClockPoints usable_points(std::span<const ClockSample> samples, ClockRate known) {
  ClockPoints usable{narrow_points(samples), known.ns_per_tick, 0.0};
  std::vector<ClockPoint>& points = usable.points;
  if (points.size() >= kEnoughForRate || known.error > kLargestSlew) {
    usable.ns_per_tick = median_rate(points, known.ns_per_tick);
  }
  usable.ns_per_tick = std::clamp(usable.ns_per_tick, kSlowestNsPerTick, kFastestNsPerTick);
  std::vector<double> half_widths;
  for (ClockPoint& point : points) {
    // One more for the boot clock's own rounding.
    point.half_width_ns = point.half_width_ns * usable.ns_per_tick + 1;
    half_widths.push_back(point.half_width_ns);
  }
  drop_spikes(points, usable.ns_per_tick);
  for (size_t i = 1; i < points.size(); ++i) {
    points[i].step_ns = step_between(points[i - 1], points[i], usable.ns_per_tick);
  }
  if (!half_widths.empty()) {
    const auto middle = half_widths.begin() + static_cast<std::ptrdiff_t>(half_widths.size() / 2);
    std::nth_element(half_widths.begin(), middle, half_widths.end());
    usable.typical_half_width_ns = *middle;
  }
  return usable;
}

ClockRate recent_rate(const ClockPoints& usable, ClockRate known) {
  const std::vector<ClockPoint>& points = usable.points;
  ClockRate best{usable.ns_per_tick, 1.0};
  if (points.size() < 2) return known;
  const ClockPoint& last = points.back();
  for (size_t i = points.size() - 1; i > 0 && points[i].step_ns == 0; --i) {
    const ClockPoint& first = points[i - 1];
    const double rate = slope(first, last);
    if (!(rate > 0)) continue;
    const double length_ns = usable.ns_per_tick * distance_ticks(first, last);
    const double error =
        (first.half_width_ns + last.half_width_ns) / length_ns + kDriftPerSecond * length_ns * 1e-9;
    if (error < best.error) best = {rate, error};
  }
  return best.error <= kGoodRateError || best.error <= known.error ? best : known;
}

}  // namespace pertoken
