#include "cuda/event_timer.h"

#include <algorithm>
#include <thread>

#include "cuda/driver_scope.h"

namespace pertoken::cuda {

EventTimer::~EventTimer() {
  const RelaxedCapture relaxed(api_);
  for (const auto& lane : lanes_) destroy_lane(*lane);
  for (const auto& device : devices_) {
    if (device == nullptr || device->context == nullptr) continue;
    {
      const CurrentContext current(api_, device->context);
      if (current.result() == CUDA_SUCCESS) device->clock.destroy();
    }
    api_.cuDevicePrimaryCtxRelease_v2(device->index);
  }
}

// Of a context that is gone the events went with it.
void EventTimer::destroy_lane(EventLane& lane) noexcept {
  const CurrentContext current(api_, lane.device().context);
  if (current.result() == CUDA_SUCCESS) lane.destroy();
}

// The device, of whose context torch is the maker: none is made here. nullptr where there is none.
TimedDevice* EventTimer::device_of(int index) {
  auto& device = devices_[static_cast<size_t>(index)];
  if (device != nullptr) return device.get();
  CUdevice handle = 0;
  unsigned flags = 0;
  int active = 0;
  if (api_.cuDeviceGet(&handle, index) != CUDA_SUCCESS ||
      api_.cuDevicePrimaryCtxGetState(handle, &flags, &active) != CUDA_SUCCESS || active == 0) {
    return nullptr;
  }
  auto made = std::make_unique<TimedDevice>(api_, ticks_, index);
  if (api_.cuDevicePrimaryCtxRetain(&made->context, handle) != CUDA_SUCCESS) return nullptr;
  device = std::move(made);
  return device.get();
}

EventLane* EventTimer::attach(ThreadBuffer& buffer, int device) noexcept {
  if (device < 0 || device >= kMaxDevices) {
    unattached_.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
  try {
    std::unique_lock lock(mutex_, std::try_to_lock);
    for (int i = 0; i < kLockTries && !lock.owns_lock(); ++i) {
      std::this_thread::sleep_for(kLockPause);
      static_cast<void>(lock.try_lock());
    }
    if (!lock.owns_lock()) {
      unattached_.fetch_add(1, std::memory_order_relaxed);
      return nullptr;
    }
    const RelaxedCapture relaxed(api_);
    TimedDevice* timed = device_of(device);
    if (timed == nullptr || !timed->is_alive.load(std::memory_order_relaxed)) {
      unattached_.fetch_add(1, std::memory_order_relaxed);
      return nullptr;
    }
    const CurrentContext current(api_, timed->context);
    if (current.result() != CUDA_SUCCESS) {
      timed->fail(current.result());
      unattached_.fetch_add(1, std::memory_order_relaxed);
      return nullptr;
    }
    lanes_.reserve(lanes_.size() + 1);
    leaving_.reserve(lanes_.size() + 1);
    if (buffer.device_thread == nullptr) {
      threads_.push_back(std::make_unique<DeviceThread>());
      buffer.device_thread = threads_.back().get();
    }
    auto lane = std::make_unique<EventLane>(*timed, ticks_, buffer.track, max_events_);
    // With no memory for events the lane counts what it cannot record, and asks again later.
    static_cast<void>(lane->pool().grow(api_, EventPool::kFirstEvents));
    lanes_.push_back(std::move(lane));
    buffer.device_thread->lanes[static_cast<size_t>(device)] = lanes_.back().get();
    return lanes_.back().get();
  } catch (...) {
    unattached_.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
}

// Anchors only where something is recorded: an idle device is left alone.
void EventTimer::keep_clock(TimedDevice& device, bool is_active, double ns_per_tick) noexcept {
  if (!is_active || !device.is_alive.load(std::memory_order_relaxed)) return;
  CUresult result = CUDA_SUCCESS;
  try {
    if (!device.clock_is_set_up) {
      result = device.clock.set_up(ns_per_tick);
      device.clock_is_set_up = result == CUDA_SUCCESS;
    } else {
      result = device.clock.renew(ns_per_tick);
    }
  } catch (...) {
    return;  // no memory for an anchor: the next round tries again
  }
  // Without memory it is only later: the next round tries again.
  if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY) device.fail(result);
}

TimedDevice* EventTimer::device(int index) {
  const std::lock_guard lock(mutex_);
  return devices_[static_cast<size_t>(index)].get();
}

void EventTimer::collect(double ns_per_tick, std::vector<DeviceSpan>& spans) {
  const std::lock_guard lock(mutex_);
  if (lanes_.empty()) return;
  const RelaxedCapture relaxed(api_);
  for (const auto& device : devices_) {
    if (device == nullptr) continue;
    device->share_ticks.store(static_cast<uint64_t>(kShareNs / ns_per_tick),
                              std::memory_order_relaxed);
    const CurrentContext current(api_, device->context);
    if (current.result() != CUDA_SUCCESS) device->fail(current.result());
    const bool is_active = !device->clock_is_set_up ||
                           std::any_of(lanes_.begin(), lanes_.end(), [&](const auto& lane) {
                             return &lane->device() == device.get() && lane->is_pending();
                           });
    keep_clock(*device, is_active, ns_per_tick);
    uint64_t oldest = ticks_();
    for (const auto& lane : lanes_) {
      if (&lane->device() != device.get()) continue;
      lane->collect(ns_per_tick, spans);
      oldest = lane->oldest_record_ticks(oldest);
      if (device->is_alive.load(std::memory_order_relaxed) && lane->pool().runs_low()) {
        const uint32_t more = std::max(lane->pool().made(), EventPool::kFirstEvents);
        static_cast<void>(lane->pool().grow(api_, more));
      }
    }
    device->clock.trim(oldest);
  }
  std::erase_if(leaving_, [&](EventLane* lane) {
    if (lane->is_pending()) return false;
    destroy_lane(*lane);
    lane->add_losses(gone_);
    std::erase_if(lanes_, [&](const auto& held) { return held.get() == lane; });
    return true;
  });
}

bool EventTimer::is_pending() {
  const std::lock_guard lock(mutex_);
  return std::any_of(lanes_.begin(), lanes_.end(),
                     [](const auto& lane) { return lane->is_pending(); });
}

void EventTimer::give_up() noexcept {
  const std::lock_guard lock(mutex_);
  for (const auto& lane : lanes_) lane->give_up();
}

void EventTimer::release(DeviceThread& thread) noexcept {
  const std::lock_guard lock(mutex_);
  for (EventLane* lane : thread.lanes) {
    if (lane != nullptr) leaving_.push_back(lane);  // there is room: see attach()
  }
  std::erase_if(threads_, [&](const auto& held) { return held.get() == &thread; });
}

DeviceLosses EventTimer::losses() {
  const std::lock_guard lock(mutex_);
  DeviceLosses losses = gone_;
  losses.failed += unattached_.load(std::memory_order_relaxed);
  for (const auto& lane : lanes_) lane->add_losses(losses);
  for (const auto& device : devices_) {
    if (device == nullptr) continue;
    losses.clock_error_ns = std::max(losses.clock_error_ns, device->clock_error_ns);
    const CUresult failure = device->failure.load(std::memory_order_relaxed);
    if (failure != CUDA_SUCCESS && losses.failure.empty()) {
      losses.failure = error_text(api_, failure);
    }
  }
  return losses;
}

}  // namespace pertoken::cuda
