// Times the work of a model's threads on their devices by events: the source of device spans for a
// recorder. A thread that records has a lane on each device it uses; the collector reads them all.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "core/clock.h"
#include "core/device_source.h"
#include "core/thread_buffer.h"
#include "cuda/event_lane.h"

namespace pertoken {

// What a thread finds its lanes by.
struct DeviceThread {
  std::array<cuda::EventLane*, kMaxDevices> lanes{};
};

namespace cuda {

class EventTimer final : public DeviceSource {
 public:
  static constexpr uint32_t kMaxEvents = 8192;  // a thread and device
  static constexpr int kLockTries = 20;
  static constexpr std::chrono::microseconds kLockPause{100};

  // The table must outlive the timer. `ticks` is the host's clock, for tests to replace.
  explicit EventTimer(const DriverApi& api, HostTicks ticks = now_ticks,
                      uint32_t max_events = kMaxEvents)
      : api_(api), ticks_(ticks), max_events_(max_events) {}
  ~EventTimer() override;
  EventTimer(const EventTimer&) = delete;
  EventTimer& operator=(const EventTimer&) = delete;

  // Hot: the calling thread's lane on a device; nullptr when there is none to be had (counted).
  EventLane* lane(ThreadBuffer& buffer, int device) noexcept {
    DeviceThread* thread = buffer.device_thread;
    if (thread != nullptr) [[likely]] {
      EventLane* found = thread->lanes[static_cast<size_t>(device)];
      if (found != nullptr) [[likely]]
        return found;
    }
    return attach(buffer, device);
  }

  // The collector only: a device that some thread has used here, else nullptr.
  TimedDevice* device(int index);

  void collect(double ns_per_tick, std::vector<DeviceSpan>& spans) override;
  bool is_pending() override;
  void give_up() noexcept override;
  void release(DeviceThread& thread) noexcept override;
  DeviceLosses losses() override;

 private:
  // Nothing can be launched in so short a time.
  static constexpr double kShareNs = 1000.0;

  EventLane* attach(ThreadBuffer& buffer, int device) noexcept;
  TimedDevice* device_of(int index);
  void keep_clock(TimedDevice& device, bool is_active, double ns_per_tick) noexcept;
  void destroy_lane(EventLane& lane) noexcept;

  const DriverApi& api_;
  const HostTicks ticks_;
  const uint32_t max_events_;
  std::atomic<uint64_t> unattached_{0};  // a statistic

  // Of what follows; taken on the model's threads only where one attaches. The collector holds it
  // while it asks the driver, which may not answer: so they do not wait for long.
  std::mutex mutex_;
  std::array<std::unique_ptr<TimedDevice>, kMaxDevices> devices_;
  std::vector<std::unique_ptr<DeviceThread>> threads_;
  std::vector<std::unique_ptr<EventLane>> lanes_;
  std::vector<EventLane*> leaving_;  // their thread has ended
  DeviceLosses gone_;                // of lanes that are no more
};

}  // namespace cuda
}  // namespace pertoken
