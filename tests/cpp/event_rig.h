// A timer on the fake driver, for the tests of it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/event_timer.h"
#include "fake_driver.h"

namespace pertoken::testing {

using namespace pertoken::cuda;

inline constexpr double kNsPerTick = 1.0 / FakeDriver::kTicksPerNs;
inline constexpr double kSharedNs = 3000;  // boundaries that are one event, and calls between them

inline double boot_ns(uint64_t ticks) { return static_cast<double>(ticks) * kNsPerTick; }

inline uint64_t lost(const DeviceLosses& losses) {
  return losses.no_event + losses.in_capture + losses.stream_changed + losses.late + losses.failed;
}

// A timer with threads that are only their buffers, and our own events beside its own.
struct Rig {
  FakeDriver fake;
  std::unique_ptr<EventTimer> timer;
  std::vector<std::unique_ptr<ThreadBuffer>> buffers;
  std::vector<DeviceSpan> spans;
  uint32_t next_seq = 1;

  explicit Rig(int devices = 1, uint32_t max_events = EventTimer::kMaxEvents) : fake(devices) {
    timer = std::make_unique<EventTimer>(*fake.api(), &FakeDriver::ticks, max_events);
    add_thread();
  }

  ThreadBuffer& add_thread() {
    const auto track = static_cast<int32_t>(buffers.size());
    buffers.push_back(std::make_unique<ThreadBuffer>(size_t{16}, track, int64_t{track}, "thread"));
    return *buffers.back();
  }
  CUstream stream(int device = 0) {
    fake.set_current(device);
    CUstream made = nullptr;
    fake.api()->cuStreamCreate(&made, CU_STREAM_NON_BLOCKING);
    return made;
  }
  CUevent event(CUstream on) {
    CUevent made = nullptr;
    fake.api()->cuEventCreate(&made, CU_EVENT_DEFAULT);
    fake.api()->cuEventRecord(made, on);
    return made;
  }
  EventLane& lane(int device = 0, size_t thread = 0) {
    return *timer->lane(*buffers[thread], device);
  }
  void collect() { timer->collect(kNsPerTick, spans); }
  // Lets the device get to everything, and reads it.
  void settle() {
    for (int i = 0; i < 4; ++i) {
      fake.advance(20'000'000);
      collect();
    }
  }
  SpanLabels label(bool is_step = false) { return {7, next_seq++, 0, 3, is_step}; }
};

}  // namespace pertoken::testing
