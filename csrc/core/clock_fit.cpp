// The second half of a fit: a polyline through the usable points of clock_samples.h. Pure, cold.
#include <algorithm>
#include <cmath>
#include <utility>

#include "core/clock_map.h"
#include "core/clock_samples.h"

namespace pertoken {
namespace {

// How much the rate of a segment is expected to differ from the median, relative: what holds it
// where the points are few and near, and their own rate would be noise.
constexpr double kExpectedSlew = 1e-4;
constexpr double kToleranceNs = 10.0;
// No segment is slower than this share of the rate.
constexpr double kSlowest = 0.5;
// How a difference is made up that is left beyond the last point: gently when it is small.
constexpr double kGentleCorrection = 1.0 / 1024;
constexpr double kLargestGentleNs = 1e6;
// Between its points a map can be off by about half of what it is off at them, by curvature.
constexpr double kBetweenPoints = 2.0;

int64_t saturated_ns(double ns) {
  return ns < 9e18 ? static_cast<int64_t>(std::ceil(ns)) : kClockErrorUnknown;
}

}  // namespace

// Appends segments to a map so that it follows the points. A segment goes on for as long as some
// rate takes it within the tolerance of every point; the next begins at its end.
class ClockMapBuilder {
 public:
  // A new map that begins at the first point.
  ClockMapBuilder(const ClockPoints& usable, ClockRate known)
      : usable_(usable), points_(usable.points), known_(known) {
    map_.segments_.clear();
    at_ticks_ = points_.front().ticks;
    at_ = to_fixed(points_.front().boot_ns);
    next_ = 1;
  }

  // A map that is kept up to from_ticks.
  ClockMapBuilder(const ClockMap& map, const ClockPoints& usable, ClockRate known,
                  uint64_t from_ticks)
      : map_(map), usable_(usable), points_(usable.points), known_(known) {
    at_ticks_ = from_ticks;
    at_ = map.fixed_at(from_ticks);
    next_ = first_after(from_ticks);
  }

  // Whether the map as it is passes by all points beyond from_ticks and meets their line.
  bool agrees(ClockRate recent) const {
    for (size_t i = next_; i < points_.size(); ++i) {
      const double off = from_fixed(to_fixed(points_[i].boot_ns) - map_.fixed_at(points_[i].ticks));
      if (std::abs(off) > tolerance_ns(points_[i])) return false;
    }
    return next_ < points_.size() || on_line(recent);
  }

  // In place of a new course, where the old one agrees.
  void confirm(ClockRate recent) {
    const double apart = std::abs(recent.ns_per_tick / known_.ns_per_tick - 1.0);
    map_.rate_error_ = std::min(1.0, recent.error + apart);
    double off = 0;
    for (size_t i = next_; i < points_.size(); ++i) off = std::max(off, off_ns(points_[i]));
    const int64_t error_ns = saturated_ns(kBetweenPoints * off);
    for (size_t k = 0; k < map_.segments_.size(); ++k) {
      const bool over =
          k + 1 < map_.segments_.size() && map_.segments_[k + 1].start_ticks <= at_ticks_;
      Segment& segment = map_.segments_[k];
      if (!over) segment.error_ns = std::max(segment.error_ns, error_ns);
    }
  }

  // Forgets the old course beyond from_ticks.
  void cut() {
    std::vector<Segment>& segments = map_.segments_;
    while (segments.size() > 1 && segments.back().start_ticks >= at_ticks_) segments.pop_back();
    if (segments.back().start_ticks > at_ticks_) {
      // from_ticks lies before the first segment, on its line continued backward.
      segments.back().start_ticks = at_ticks_;
      segments.back().start = at_;
    }
    old_segments_ = segments.size();
  }

  void follow_points() {
    while (next_ < points_.size()) {
      const size_t end = points_[next_].step_ns != 0 ? follow_step() : follow_run();
      advance_to(points_[end - 1].ticks);
      next_ = end;
    }
  }

  // The line of the recent rate through the last point, and the way to it.
  void follow_line(ClockRate recent) {
    map_.rate_error_ = recent.error;
    if (!on_line(recent)) {
      const double behind_ns = below_line_ns(recent);
      const double rate = correcting_rate(recent.ns_per_tick, behind_ns);
      const double length = std::ceil(behind_ns / (rate - recent.ns_per_tick));
      append(rate, false);
      if (!(length < static_cast<double>(UINT64_MAX - at_ticks_))) return;
      advance_to(at_ticks_ + static_cast<uint64_t>(length));
    }
    append(recent.ns_per_tick, false);
  }

  void find_errors() {
    for (size_t k = old_segments_; k < map_.segments_.size(); ++k) {
      map_.segments_[k].error_ns =
          points_.size() < 2 && old_segments_ == 0 ? kClockErrorUnknown : saturated_ns(error_of(k));
    }
  }

  ClockMap take() { return std::move(map_); }

 private:
  using Fixed = ClockMap::Fixed;
  using Segment = ClockMap::Segment;

  static Fixed to_fixed(int64_t ns) {
    return static_cast<Fixed>(ns) * (Fixed{1} << ClockMap::kFractionBits);
  }

  static double from_fixed(Fixed ns) {
    return std::ldexp(static_cast<double>(ns), -ClockMap::kFractionBits);
  }

  static double largest_rate() {
    return std::ldexp(static_cast<double>(ClockMap::kLargestRate), -ClockMap::kFractionBits);
  }

  size_t first_after(uint64_t ticks) const {
    const auto after =
        std::upper_bound(points_.begin(), points_.end(), ticks,
                         [](uint64_t t, const ClockPoint& point) { return t < point.ticks; });
    return static_cast<size_t>(after - points_.begin());
  }

  double tolerance_ns(const ClockPoint& point) const {
    return point.half_width_ns + usable_.typical_half_width_ns + kToleranceNs;
  }

  // How far a boot time lies above the end of the map so far.
  double above(int64_t boot_ns) const { return from_fixed(to_fixed(boot_ns) - at_); }

  // How far the line of the recent rate through the last point passes above the end of the map.
  double below_line_ns(ClockRate recent) const {
    return above(points_.back().boot_ns) + recent.ns_per_tick * past_points();
  }

  bool on_line(ClockRate recent) const {
    const double allowed =
        tolerance_ns(points_.back()) + recent.error * recent.ns_per_tick * past_points();
    return std::abs(below_line_ns(recent)) <= allowed;
  }

  double past_points() const { return static_cast<double>(at_ticks_ - points_.back().ticks); }

  double clamped(double rate) const {
    return std::clamp(rate, usable_.ns_per_tick * kSlowest, largest_rate());
  }

  // A step takes the whole gap between its two points, since where in it is not known.
  size_t follow_step() {
    const ClockPoint& point = points_[next_];
    const double ticks = static_cast<double>(point.ticks - at_ticks_);
    append(clamped(above(point.boot_ns) / ticks), true);
    ++map_.steps_;
    const int64_t size = point.step_ns < 0 ? -point.step_ns : point.step_ns;
    map_.largest_step_ns_ = std::max(map_.largest_step_ns_, size);
    return next_ + 1;
  }

  // One segment; returns the end of the points it takes in.
  size_t follow_run() {
    double slowest = usable_.ns_per_tick * kSlowest;
    double fastest = largest_rate();
    // Least squares, weighted by the brackets, with the median rate as one more observation.
    const double spread = kExpectedSlew * usable_.ns_per_tick;
    double products = usable_.ns_per_tick / (spread * spread);
    double squares = 1.0 / (spread * spread);
    size_t end = next_;
    for (; end < points_.size() && points_[end].step_ns == 0; ++end) {
      const ClockPoint& point = points_[end];
      const double ticks = static_cast<double>(point.ticks - at_ticks_);
      const double ns = above(point.boot_ns);
      const double tolerance = tolerance_ns(point);
      const double above_lowest = std::max(slowest, (ns - tolerance) / ticks);
      const double below_highest = std::min(fastest, (ns + tolerance) / ticks);
      if (above_lowest > below_highest) break;
      slowest = above_lowest;
      fastest = below_highest;
      const double weight = 1.0 / (point.half_width_ns * point.half_width_ns);
      products += weight * ticks * ns;
      squares += weight * ticks * ticks;
    }
    if (end > next_) {
      append(std::clamp(products / squares, slowest, fastest), false);
      return end;
    }
    // No allowed rate reaches it: as near as possible.
    const ClockPoint& point = points_[next_];
    append(clamped(above(point.boot_ns) / static_cast<double>(point.ticks - at_ticks_)), false);
    return next_ + 1;
  }

  double correcting_rate(double rate, double behind_ns) const {
    if (std::abs(behind_ns) <= kLargestGentleNs) {
      return rate * (1.0 + std::copysign(kGentleCorrection, behind_ns));
    }
    return behind_ns < 0 ? rate * kSlowest : largest_rate();
  }

  void append(double rate, bool step) {
    const double fixed = std::ldexp(rate, ClockMap::kFractionBits);
    const double largest = static_cast<double>(ClockMap::kLargestRate);
    const auto rounded = static_cast<uint64_t>(std::clamp(fixed + 0.5, 1.0, largest));
    map_.segments_.push_back({at_ticks_, rounded, at_, 0, step});
  }

  void advance_to(uint64_t ticks) {
    at_ += static_cast<Fixed>(ticks - at_ticks_) * static_cast<Fixed>(map_.segments_.back().rate);
    at_ticks_ = ticks;
  }

  double off_ns(const ClockPoint& point) const {
    return std::abs(from_fixed(to_fixed(point.boot_ns) - map_.fixed_at(point.ticks))) +
           point.half_width_ns;
  }

  uint64_t end_ticks(size_t k) const {
    const bool is_last = k + 1 == map_.segments_.size();
    return is_last ? UINT64_MAX : map_.segments_[k + 1].start_ticks;
  }

  // Over the points in the segment and the ones next to it.
  double largest_off_ns(size_t k) const {
    const size_t after_start = first_after(map_.segments_[k].start_ticks);
    const size_t last = std::min(points_.size() - 1, first_after(end_ticks(k) - 1));
    double off = 0;
    for (size_t i = after_start == 0 ? 0 : after_start - 1; i <= last; ++i) {
      off = std::max(off, off_ns(points_[i]));
    }
    return off;
  }

  // How far the rate of a segment may be from that of the truth over the segment.
  double rate_doubt(size_t k) const {
    if (k < old_segments_) return known_.error * known_.ns_per_tick;
    const double length = static_cast<double>(end_ticks(k) - map_.segments_[k].start_ticks);
    return 2 * largest_off_ns(k) / length;
  }

  // Where a segment begins with another rate, the truth may have changed anywhere in the gap
  // before its first point, and all at once.
  double unseen_ns(size_t k, size_t gap_end) const {
    if (map_.segments_[k - 1].step || map_.segments_[k].step) return 0;
    const double before = static_cast<double>(map_.segments_[k - 1].rate);
    const double after = static_cast<double>(map_.segments_[k].rate);
    const double change = std::ldexp(std::abs(after - before), -ClockMap::kFractionBits);
    const double certain = change - rate_doubt(k - 1) - rate_doubt(k);
    const uint64_t gap = points_[gap_end].ticks - points_[gap_end - 1].ticks;
    return std::max(0.0, certain) * static_cast<double>(gap);
  }

  double error_of(size_t k) const {
    const double off = largest_off_ns(k);
    if (map_.segments_[k].step) return off;
    double unseen = 0;
    const size_t gap_end = first_after(map_.segments_[k].start_ticks);
    if (k > 0 && gap_end > 0 && gap_end < points_.size()) unseen = unseen_ns(k, gap_end);
    return kBetweenPoints * off + unseen;
  }

  ClockMap map_;
  const ClockPoints& usable_;
  const std::vector<ClockPoint>& points_;
  ClockRate known_;
  uint64_t at_ticks_;  // the end of the map so far, and its value there
  Fixed at_;
  size_t next_;  // the first point that is not followed yet
  size_t old_segments_ = 0;
};

ClockMap fit(std::span<const ClockSample> samples, double nominal_ns_per_tick) {
  const ClockRate nominal{nominal_ns_per_tick, 1.0};
  const ClockPoints usable = usable_points(samples, nominal);
  if (usable.points.empty()) return ClockMap();
  ClockMapBuilder builder(usable, nominal);
  builder.follow_points();
  builder.follow_line(recent_rate(usable, nominal));
  builder.find_errors();
  return builder.take();
}

ClockMap extend(const ClockMap& map, std::span<const ClockSample> samples, uint64_t from_ticks) {
  const ClockRate known{map.ns_per_tick(), map.rate_error()};
  const ClockPoints usable = usable_points(samples, known);
  if (usable.points.empty()) return map;
  const ClockRate recent = recent_rate(usable, known);
  ClockMapBuilder builder(map, usable, known, from_ticks);
  if (builder.agrees(recent)) {
    builder.confirm(recent);
  } else {
    builder.cut();
    builder.follow_points();
    builder.follow_line(recent);
    builder.find_errors();
  }
  return builder.take();
}

}  // namespace pertoken
