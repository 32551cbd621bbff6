#include "cuda/device_clock.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace pertoken::cuda {

CUresult DeviceClock::set_up(double ns_per_tick) {
  // Ordered with no other stream, so that its work never waits for the model's.
  if (stream_ == nullptr) {
    const CUresult result = api_.cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING);
    if (result != CUDA_SUCCESS) return result;
  }
  return take_anchor(ns_per_tick);
}

CUresult DeviceClock::renew(double ns_per_tick) {
  const double age_ns =
      anchors_.empty() ? 1e18
                       : static_cast<double>(ticks_() - anchors_.back().ticks_after) * ns_per_tick;
  const int64_t due_ns = map_.has_value() ? kRenewalNs : kShortestNs;
  return age_ns < static_cast<double>(due_ns) ? CUDA_SUCCESS : take_anchor(ns_per_tick);
}

CUresult DeviceClock::new_event(CUevent& event) {
  if (free_events_.empty()) return api_.cuEventCreate(&event, CU_EVENT_DEFAULT);
  event = free_events_.back();
  free_events_.pop_back();
  return CUDA_SUCCESS;
}

CUresult DeviceClock::elapsed_ns(CUevent from, CUevent to, int64_t& ns) {
  float milliseconds = 0;
  const CUresult result = api_.cuEventElapsedTime(&milliseconds, from, to);
  if (result == CUDA_SUCCESS) ns = std::llround(static_cast<double>(milliseconds) * 1e6);
  return result;
}

// Half of the float's step at this distance: 24 bits of milliseconds.
void DeviceClock::note_distance(int64_t ns) noexcept {
  const double step_ns = std::ldexp(std::abs(static_cast<double>(ns)), -24);
  float_error_ns_ = std::max(float_error_ns_, static_cast<int64_t>(std::ceil(step_ns)));
}

// The narrowest of some tries. One that the device does not reach at once, since it is busy with
// what cannot be shared, is given up: its event is recorded again later.
CUresult DeviceClock::take_anchor(double ns_per_tick) {
  const auto longest = static_cast<uint64_t>(static_cast<double>(kLongestWaitNs) / ns_per_tick);
  const auto width = [](const Anchor& anchor) { return anchor.ticks_after - anchor.ticks_before; };
  Anchor best{};
  for (int i = 0; i < kTries; ++i) {
    Anchor anchor{};
    CUresult result = new_event(anchor.event);
    if (result != CUDA_SUCCESS) break;
    anchor.ticks_before = ticks_();
    result = api_.cuEventRecord(anchor.event, stream_);
    do {
      if (result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_READY) {
        result = api_.cuEventQuery(anchor.event);
      }
      anchor.ticks_after = ticks_();
    } while (result == CUDA_ERROR_NOT_READY && width(anchor) < longest);
    const bool narrower =
        result == CUDA_SUCCESS && (best.event == nullptr || width(anchor) < width(best));
    if (narrower) std::swap(best, anchor);
    if (anchor.event != nullptr) free_events_.push_back(anchor.event);
    if (result == CUDA_ERROR_NOT_READY) break;
    if (result != CUDA_SUCCESS) return result;
  }
  return best.event == nullptr ? CUDA_SUCCESS : keep(best, ns_per_tick);
}

CUresult DeviceClock::keep(Anchor anchor, double ns_per_tick) {
  anchor.device_ns = kOrigin;
  if (!anchors_.empty()) {
    int64_t distance_ns = 0;
    const CUresult result = elapsed_ns(anchors_.back().event, anchor.event, distance_ns);
    if (result != CUDA_SUCCESS) return result;
    anchor.device_ns = anchors_.back().device_ns + distance_ns;
  }
  anchors_.push_back(anchor);
  // As a sample of the host's ticks, of which the bracket is in the device's nanoseconds.
  const uint64_t width = anchor.ticks_after - anchor.ticks_before;
  const auto half_ns =
      static_cast<int64_t>(std::ceil(static_cast<double>(width) * ns_per_tick / 2));
  samples_.push_back({static_cast<uint64_t>(anchor.device_ns - half_ns),
                      static_cast<int64_t>(anchor.ticks_before + width / 2),
                      static_cast<uint64_t>(anchor.device_ns + half_ns)});
  if (samples_.size() > kSamples) samples_.erase(samples_.begin());
  if (map_.has_value()) {
    map_ = pertoken::trim(extend(*map_, samples_, settled_ns_), samples_.front().ticks_before);
  } else if (samples_.size() >= 2) {
    // Where one alone is narrow enough to be used, as when the thread was kept from the other,
    // there is no rate yet.
    ClockMap fitted = fit(samples_, 1.0 / ns_per_tick);
    if (fitted.error_bound_ns() != kClockErrorUnknown) map_ = std::move(fitted);
  }
  return CUDA_SUCCESS;
}

CUresult DeviceClock::locate(CUevent event, uint64_t record_ticks, int64_t& device_ns) {
  // The last anchor that the device had passed when the event was recorded; else the first one.
  const auto later = std::upper_bound(
      anchors_.begin(), anchors_.end(), record_ticks,
      [](uint64_t ticks, const Anchor& anchor) { return ticks < anchor.ticks_after; });
  auto anchor = later == anchors_.begin() ? later : later - 1;
  const bool passed = later != anchors_.begin();
  int64_t distance_ns = 0;
  CUresult result = passed ? elapsed_ns(anchor->event, event, distance_ns)
                           : elapsed_ns(event, anchor->event, distance_ns);
  if (result != CUDA_SUCCESS) return result;
  device_ns = anchor->device_ns + (passed ? distance_ns : -distance_ns);
  // Where the stream was long in getting there, or nothing was recorded before, another is nearer.
  auto nearest = anchor;
  for (auto other = anchors_.begin(); other != anchors_.end(); ++other) {
    const int64_t gained =
        std::abs(device_ns - nearest->device_ns) - std::abs(device_ns - other->device_ns);
    if (gained > 0 && std::abs(device_ns - nearest->device_ns) > kNearNs) nearest = other;
  }
  if (nearest != anchor) {
    const bool before = nearest->device_ns <= device_ns;
    result = before ? elapsed_ns(nearest->event, event, distance_ns)
                    : elapsed_ns(event, nearest->event, distance_ns);
    if (result != CUDA_SUCCESS) return result;
    device_ns = nearest->device_ns + (before ? distance_ns : -distance_ns);
  }
  note_distance(distance_ns);
  return CUDA_SUCCESS;
}

uint64_t DeviceClock::to_ticks(int64_t device_ns) {
  const auto at = static_cast<uint64_t>(std::max<int64_t>(device_ns, 0));
  settled_ns_ = std::max(settled_ns_, at);
  if (!map_.has_value()) return 0;  // the caller has looked
  return static_cast<uint64_t>(std::max<int64_t>(map_->to_ns(at), 0));
}

int64_t DeviceClock::error_ns(int64_t device_ns, double ns_per_tick) const {
  if (!map_.has_value() || map_->error_bound_ns() == kClockErrorUnknown) return kClockErrorUnknown;
  const int64_t outside_ns = std::max(
      {int64_t{0}, device_ns - anchors_.back().device_ns, anchors_.front().device_ns - device_ns});
  const double map_ns = static_cast<double>(map_->error_bound_ns()) * ns_per_tick;
  const double drift_ns = static_cast<double>(outside_ns) * map_->rate_error();
  return static_cast<int64_t>(std::ceil(map_ns + drift_ns)) + kResolutionNs + float_error_ns_;
}

void DeviceClock::trim(uint64_t oldest_record_ticks) {
  while (anchors_.size() > 2 &&
         (anchors_[1].ticks_after < oldest_record_ticks || anchors_.size() > kMaxAnchors)) {
    free_events_.push_back(anchors_.front().event);
    anchors_.pop_front();
  }
}

void DeviceClock::destroy() noexcept {
  for (const Anchor& anchor : anchors_) api_.cuEventDestroy_v2(anchor.event);
  for (CUevent event : free_events_) api_.cuEventDestroy_v2(event);
  if (stream_ != nullptr) api_.cuStreamDestroy_v2(stream_);
  anchors_.clear();
  free_events_.clear();
  stream_ = nullptr;
}

}  // namespace pertoken::cuda
