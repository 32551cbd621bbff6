// One device's clock on the host's. Events tell only how far they are apart, in a float of
// milliseconds that is exact to some nanoseconds over a short distance and useless over a long one.
// So anchors are recorded now and then, on a stream of our own that is always idle: events whose
// moment the host knows between two reads of its ticks. Each is chained to the one before it in
// integer nanoseconds, which makes an axis of the device; a ClockMap takes that to the host's
// ticks.
//
// The collector only, with the device's context current and in relaxed capture mode.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "core/clock_map.h"
#include "cuda/driver_api.h"

namespace pertoken::cuda {

using HostTicks = uint64_t (*)();

class DeviceClock {
 public:
  DeviceClock(const DriverApi& api, HostTicks ticks) : api_(api), ticks_(ticks) {}

  // Makes the stream and the first anchors; again, where that failed. Not ready before it has two
  // that lie apart.
  CUresult set_up(double ns_per_tick);
  // A new anchor when the last one has got too old, so that none is further from an event than
  // kRenewalNs while events are recorded.
  CUresult renew(double ns_per_tick);
  bool is_ready() const noexcept { return map_.has_value(); }

  // Where a completed event lies on the device's axis. `record_ticks`: the host's, when it was
  // recorded, before which it cannot have been reached.
  CUresult locate(CUevent event, uint64_t record_ticks, int64_t& device_ns);
  // The host's ticks at a moment of the device's axis. Monotone, and what was once converted keeps
  // its value.
  uint64_t to_ticks(int64_t device_ns);
  // How far this moment, converted now, may be off, in nanoseconds.
  int64_t error_ns(int64_t device_ns, double ns_per_tick) const;

  // Anchors that only events recorded before this could need are let go.
  void trim(uint64_t oldest_record_ticks);
  void destroy() noexcept;

 private:
  struct Anchor {
    CUevent event;
    int64_t device_ns;
    uint64_t ticks_before;
    uint64_t ticks_after;
  };

  // A float of milliseconds is good to 16 ns at a quarter of a second.
  static constexpr int64_t kRenewalNs = 100'000'000;
  static constexpr int64_t kNearNs = 250'000'000;
  static constexpr int64_t kShortestNs = 2'000'000;  // between the first two anchors
  static constexpr int64_t kLongestWaitNs = 100'000;
  static constexpr int64_t kResolutionNs = 500;  // of an event's time, as documented
  static constexpr int kTries = 3;
  static constexpr size_t kSamples = 32;
  static constexpr size_t kMaxAnchors = 64;
  static constexpr int64_t kOrigin = int64_t{1} << 40;

  CUresult take_anchor(double ns_per_tick);
  CUresult keep(Anchor anchor, double ns_per_tick);
  CUresult new_event(CUevent& event);
  CUresult elapsed_ns(CUevent from, CUevent to, int64_t& ns);
  void note_distance(int64_t ns) noexcept;

  const DriverApi& api_;
  const HostTicks ticks_;
  CUstream stream_ = nullptr;
  std::deque<Anchor> anchors_;  // oldest first
  std::vector<CUevent> free_events_;
  std::vector<ClockSample> samples_;
  std::optional<ClockMap> map_;
  uint64_t settled_ns_ = 0;  // up to here conversions are fixed
  int64_t float_error_ns_ = 0;
};

}  // namespace pertoken::cuda
