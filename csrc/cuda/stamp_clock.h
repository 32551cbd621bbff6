// The clock of stamps, %globaltimer, on the axis that the device's events lie on. Both are the
// device's, but whether they are one is nowhere said, and %globaltimer may be read in steps of a
// microsecond. So anchors are taken now and then: two stamps on an idle stream, between two events.
// Their bracket is of the device alone, and nobody waits for it.
//
// The collector only, with the device's context current and in relaxed capture mode.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/clock_map.h"
#include "cuda/device_clock.h"
#include "cuda/graph_stamps.h"

namespace pertoken::cuda {

class StampClock {
 public:
  StampClock(const DriverApi& api, HostTicks ticks) : api_(api), ticks_(ticks) {}

  // A stamp's whole time, from its 48 bits; in the order in which they come, however long the
  // device was idle before.
  uint64_t whole_ns(uint64_t content, double ns_per_tick) noexcept;
  // A stamp of an anchor.
  void see(const StampPlace& place, uint64_t whole_ns) noexcept;
  // Reads an anchor that the device has come to, and takes a new one where the last is too old.
  CUresult keep(GraphStamps& stamps, DeviceClock& device, double ns_per_tick);

  bool is_ready() const noexcept { return map_.has_value(); }
  // Whether an anchor is near enough, so that it would be no better for waiting for the next.
  bool can_place(uint64_t whole_ns) const noexcept {
    return is_ready() && whole_ns <= samples_.back().ticks_after + kNearNs;
  }
  // On the axis of the device's events. Monotone, and what was converted keeps its value.
  int64_t device_ns(uint64_t whole_ns);
  // How far that may be off, as against events, in nanoseconds.
  int64_t error_ns(uint64_t whole_ns) const;

  void destroy() noexcept;

 private:
  static constexpr int64_t kRenewalNs = 100'000'000;
  static constexpr int64_t kShortestNs = 5'000'000;  // between the first anchors
  // From the first to the last before anything is placed: over less, the rate is not known.
  static constexpr uint64_t kBaseNs = 20'000'000;
  static constexpr uint64_t kNearNs = 50'000'000;
  static constexpr uint64_t kEventNs = 500;  // resolution of an event's time, as documented
  static constexpr size_t kSamples = 32;
  static constexpr uint64_t kOrigin = uint64_t{1} << 50;

  CUresult take(GraphStamps& stamps);
  CUresult read(DeviceClock& device);
  void add(uint64_t stamp_ns, int64_t device_ns, int64_t width_ns);

  const DriverApi& api_;
  const HostTicks ticks_;
  uint64_t last_content_ = 0;
  uint64_t last_whole_ns_ = 0;    // 0: none yet
  uint64_t last_seen_ticks_ = 0;  // the host's, when that came
  // The shortest distance of two stamps that differ: no step of the clock is longer.
  uint64_t step_ns_ = 0;

  // The anchor that the device is to come to.
  CUevent before_ = nullptr;
  CUevent after_ = nullptr;
  uint64_t before_ticks_ = 0;  // the host's, when they were recorded
  uint64_t after_ticks_ = 0;
  uint32_t number_ = 0;
  uint64_t anchor_ns_[2] = {};  // of its stamps, 0: not there yet
  bool is_under_way_ = false;

  std::vector<ClockSample> samples_;
  std::optional<ClockMap> map_;
  uint64_t settled_ns_ = 0;  // up to here conversions are fixed
};

}  // namespace pertoken::cuda
