#include "cuda/stamp_clock.h"

#include <algorithm>
#include <cmath>

namespace pertoken::cuda {

// Whole rounds of the 48 bits, of three days each, are known by the host's clock. Stamps may come a
// little out of order, so that the rest has a sign.
uint64_t StampClock::whole_ns(uint64_t content, double ns_per_tick) noexcept {
  constexpr int kUnused = 64 - kContentBits;
  const uint64_t now = ticks_();
  const auto passed_ns =
      static_cast<uint64_t>(static_cast<double>(now - last_seen_ticks_) * ns_per_tick);
  const uint64_t rest = content - last_content_ - passed_ns;
  const auto distance =
      static_cast<int64_t>(passed_ns) + (static_cast<int64_t>(rest << kUnused) >> kUnused);
  const uint64_t whole =
      last_whole_ns_ == 0 ? kOrigin : last_whole_ns_ + static_cast<uint64_t>(distance);
  if (last_whole_ns_ != 0 && distance != 0) {
    const auto size = static_cast<uint64_t>(std::abs(distance));
    step_ns_ = step_ns_ == 0 ? size : std::min(step_ns_, size);
  }
  last_content_ = content;
  last_seen_ticks_ = now;
  last_whole_ns_ = whole;
  return whole;
}

void StampClock::see(const StampPlace& place, uint64_t whole_ns) noexcept {
  if (is_under_way_ && place.replay == number_ && place.ordinal < 2) {
    anchor_ns_[place.ordinal] = whole_ns;
  }
}

CUresult StampClock::take(GraphStamps& stamps) {
  if (before_ == nullptr) {
    if (const CUresult result = api_.cuEventCreate(&before_, CU_EVENT_DEFAULT)) return result;
  }
  if (after_ == nullptr) {
    if (const CUresult result = api_.cuEventCreate(&after_, CU_EVENT_DEFAULT)) return result;
  }
  anchor_ns_[0] = anchor_ns_[1] = 0;
  before_ticks_ = ticks_();
  const CUresult result = stamps.stamp_between(before_, after_, number_);
  after_ticks_ = ticks_();
  is_under_way_ = result == CUDA_SUCCESS;
  return result;
}

// The stamps lie between the events, so the way from the first event to the first stamp, and that
// from the second stamp to the second event, are at least nothing: a bracket as wide as both.
CUresult StampClock::read(DeviceClock& device) {
  const CUresult state = api_.cuEventQuery(after_);
  if (state == CUDA_ERROR_NOT_READY) return CUDA_SUCCESS;
  if (state != CUDA_SUCCESS) return state;
  is_under_way_ = false;
  if (anchor_ns_[0] == 0 || anchor_ns_[1] < anchor_ns_[0]) return CUDA_SUCCESS;  // overwritten
  int64_t from = 0;
  int64_t to = 0;
  if (const CUresult result = device.locate(before_, before_ticks_, from)) return result;
  if (const CUresult result = device.locate(after_, after_ticks_, to)) return result;
  const auto between = static_cast<int64_t>(anchor_ns_[1] - anchor_ns_[0]);
  const int64_t width = std::max<int64_t>(to - from - between, 0);
  add(anchor_ns_[0], from + width / 2, width);
  return CUDA_SUCCESS;
}

// As a sample of the axis of events, of which the bracket is in the stamps' nanoseconds.
void StampClock::add(uint64_t stamp_ns, int64_t device_ns, int64_t width_ns) {
  if (step_ns_ == 0) return;  // how coarse the clock is is not known yet
  const uint64_t half = static_cast<uint64_t>(width_ns + 1) / 2 + step_ns_ + kEventNs;
  samples_.push_back({stamp_ns - half, device_ns, stamp_ns + half});
  if (samples_.size() > kSamples) samples_.erase(samples_.begin());
  if (map_.has_value()) {
    map_ = pertoken::trim(extend(*map_, samples_, settled_ns_), samples_.front().ticks_before);
  } else if (samples_.size() >= 3 &&
             samples_.back().ticks_before - samples_.front().ticks_before >= kBaseNs) {
    ClockMap fitted = fit(samples_, 1.0);
    if (fitted.error_bound_ns() != kClockErrorUnknown) map_ = std::move(fitted);
  }
}

CUresult StampClock::keep(GraphStamps& stamps, DeviceClock& device, double ns_per_tick) {
  if (!device.is_ready()) return CUDA_SUCCESS;
  if (is_under_way_) return read(device);
  const double age_ns = static_cast<double>(ticks_() - after_ticks_) * ns_per_tick;
  const int64_t due_ns = map_.has_value() ? kRenewalNs : kShortestNs;
  return age_ns < static_cast<double>(due_ns) ? CUDA_SUCCESS : take(stamps);
}

int64_t StampClock::device_ns(uint64_t whole_ns) {
  settled_ns_ = std::max(settled_ns_, whole_ns);
  return map_.has_value() ? map_->to_ns(whole_ns) : 0;  // the caller has looked
}

int64_t StampClock::error_ns(uint64_t whole_ns) const {
  if (!map_.has_value() || map_->error_bound_ns() == kClockErrorUnknown) return kClockErrorUnknown;
  const uint64_t first = samples_.front().ticks_before;
  const uint64_t last = samples_.back().ticks_after;
  const uint64_t outside_ns = whole_ns > last    ? whole_ns - last
                              : whole_ns < first ? first - whole_ns
                                                 : 0;
  const double drift_ns = static_cast<double>(outside_ns) * map_->rate_error();
  return map_->error_bound_ns() + static_cast<int64_t>(std::ceil(drift_ns)) +
         static_cast<int64_t>(step_ns_);
}

void StampClock::destroy() noexcept {
  if (before_ != nullptr) api_.cuEventDestroy_v2(before_);
  if (after_ != nullptr) api_.cuEventDestroy_v2(after_);
  before_ = after_ = nullptr;
}

}  // namespace pertoken::cuda
