// One thread's timing of one device. The thread records a boundary where a call begins and where
// it ends, and says which two make a span; the collector reads the events later and turns spans
// into intervals. Between two boundaries that follow each other at once nothing can have been
// enqueued, so that they are one event: N regions in a row need N + 1.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "core/device_source.h"
#include "core/record.h"
#include "cuda/device_clock.h"
#include "cuda/driver_api.h"
#include "cuda/event_pool.h"

namespace pertoken::cuda {

// One device, for all threads. `is_alive` is written by whoever sees it fail, and read on the hot
// path; relaxed, since a call more or less on a failed device is harmless.
struct TimedDevice {
  TimedDevice(const DriverApi& driver, HostTicks host_ticks, int number)
      : api(driver), clock(driver, host_ticks), index(number) {}

  void fail(CUresult result) noexcept {
    CUresult none = CUDA_SUCCESS;
    failure.compare_exchange_strong(none, result, std::memory_order_relaxed);
    is_alive.store(false, std::memory_order_relaxed);
  }

  const DriverApi& api;
  CUcontext context = nullptr;
  std::atomic<bool> is_alive{true};
  std::atomic<CUresult> failure{CUDA_SUCCESS};
  std::atomic<uint64_t> share_ticks{0};  // see EventLane::mark(); written by the collector
  DeviceClock clock;                     // the collector's
  bool clock_is_set_up = false;
  int64_t clock_error_ns = 0;
  const int index;
};

// What the spans of a lane belong to.
struct SpanLabels {
  uint32_t site;
  uint32_t seq;
  uint32_t parent_seq;
  uint32_t step;
  bool is_step;
  uint32_t left_out = 0;  // a bit of ThreadBuffer::open_detail: steps that have no such spans
};

// A call that was captured, by the number of its graph and among those of the recording in it.
struct CapturedCall {
  uint32_t graph = 0;  // 0: none
  uint32_t call = 0;

  explicit operator bool() const noexcept { return graph != 0; }
};

class EventLane {
 public:
  // Throws std::bad_alloc.
  EventLane(TimedDevice& device, HostTicks ticks, int32_t track, uint32_t max_events);

  // Hot, the thread only. The boundary holds a reference; end() takes it. What is not begun is
  // counted, but for a stream that is being captured: there it may be stamped instead.
  Boundary begin(CUstream stream) noexcept;
  void end(Boundary start, CUstream stream, const SpanLabels& labels) noexcept;
  void count_in_capture() noexcept { count(in_capture_); }
  // Something was launched, in however short a time: the next boundary is another one.
  void note_launch() noexcept { latest_done_ticks_ = 0; }

  // The collector only, with the context current.
  void collect(double ns_per_tick, std::vector<DeviceSpan>& spans);
  bool is_pending() noexcept { return !pending_.empty() || !ring_.readable().empty(); }
  void give_up() noexcept;
  void add_losses(DeviceLosses& losses) const noexcept;
  void destroy() noexcept;
  // The earliest host tick at which something still pending was recorded; `otherwise` if nothing.
  uint64_t oldest_record_ticks(uint64_t otherwise) noexcept;
  EventPool& pool() noexcept { return pool_; }
  TimedDevice& device() noexcept { return device_; }

  // The thread's: the innermost open span that is timed here, 0 none, and its stream; the innermost
  // one that is stamped into a capture.
  uint32_t open_seq = 0;
  CUstream open_stream = nullptr;
  CapturedCall open_captured;

 private:
  // A boundary that was recorded, so that boundaries are read in their order, or a span.
  struct Message {
    Boundary start;  // none: `end` is all there is
    Boundary end;
    uint32_t tag;  // site, and 1 << 24 for a step
    uint32_t seq;
    uint32_t parent_seq;
    uint32_t step;
  };
  static_assert(sizeof(Message) == 32);

  // One stream, as the collector follows it.
  struct Stream {
    CUstream stream;
    uint64_t number;  // another stream may have the handle of one that is gone
    int64_t last_ns;  // of the last boundary read: time does not run backward
  };
  // A boundary of the step that runs, for what the device waited.
  struct Reached {
    int64_t device_ns;
    uint64_t device_ticks;
    CUstream stream;
    bool has_caught_up;
  };

  static constexpr uint32_t kStepBit = 1u << 24;
  static constexpr size_t kMaxPending = size_t{1} << 16;
  static constexpr size_t kMaxReached = size_t{1} << 14;
  static constexpr size_t kMaxStreams = 256;  // that are followed at a time
  static constexpr int64_t kLateNs = 10'000'000'000;
  static constexpr int64_t kCaughtUpNs = 20'000;
  static constexpr int64_t kOrderNs = 1'000;  // twice the resolution of an event's time

  Boundary mark(CUstream stream) noexcept;
  bool may_record(CUstream stream, Boundary& refused) noexcept;
  uint64_t number_of(CUstream stream) noexcept;
  void count_failure(CUresult result) noexcept;
  void count(std::atomic<uint64_t>& counter) noexcept {
    counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  void read_ring();
  bool resolve(EventSlot& slot, double ns_per_tick);
  DeviceSpan span_of(const Message& message);
  uint64_t idle_ticks(const EventSlot& start, const EventSlot& end);
  Stream& stream_state(const EventSlot& slot);
  void drop(const Message& message) noexcept {
    if (message.start) pool_.drop_collected(message.start.slot);
    pool_.drop_collected(message.end.slot);
  }
  // Gives up what is pending; returns how many spans that were.
  uint64_t drop_pending() noexcept;
  // Whether this message is done with; `now` and what it was waited for are the round's.
  bool take(const Message& message, uint64_t now, double ns_per_tick,
            std::vector<DeviceSpan>& spans);
  bool is_reached(const EventSlot& slot);

  TimedDevice& device_;
  const HostTicks ticks_;
  const int32_t track_;
  EventPool pool_;
  SpscRing<Message> ring_;

  // The thread's.
  Boundary latest_;  // the last one recorded, which the next may share
  uint64_t latest_done_ticks_ = 0;
  CUstream numbered_stream_ = nullptr;
  uint64_t stream_number_ = 0;  // of that; 0: not known

  // Written by the thread, read by the collector; statistics, so relaxed on both sides.
  std::atomic<uint64_t> no_event_{0};
  std::atomic<uint64_t> in_capture_{0};
  std::atomic<uint64_t> stream_changed_{0};
  std::atomic<uint64_t> failed_on_thread_{0};

  // The collector's.
  std::deque<Message> pending_;  // as they ended
  std::vector<Stream> streams_;
  std::vector<CUstream> waiting_;  // streams that a round has found unready
  std::vector<Reached> reached_;
  uint64_t late_ = 0;
  uint64_t failed_ = 0;
  uint64_t unfit_ = 0;  // no room to remember
};

}  // namespace pertoken::cuda
