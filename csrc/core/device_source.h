// What times work on devices, as the collector knows it: things that yield spans when they are
// asked in a drain round. How they were measured is their own affair.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pertoken {

inline constexpr int kMaxDevices = 16;
inline constexpr uint32_t kNoSite = 0x00FFFFFFu;  // of a step that is no call: only its times count

// What a graph does beside the stream that it is replayed on has numbers of its own, above all of
// the driver's: this and the branch's, from 1 on.
inline constexpr uint64_t kFirstBranch = uint64_t{1} << 32;

// What a source keeps for one of the model's threads; defined by the source.
struct DeviceThread;

// What the calls of a recording are timed with; defined by the bindings.
struct DeviceCalls;

// One interval on a device, placed on the host's ticks. Numbers are as in a kSpan record of the
// call that enqueued the work.
struct DeviceSpan {
  uint64_t start_ticks;
  uint64_t end_ticks;
  uint32_t site;
  uint32_t seq;
  uint32_t parent_seq;  // of the span that encloses it on the same stream; 0: none
  uint32_t step;
  uint64_t stream;      // the driver's number of the stream, or that of a graph's branch
  uint64_t idle_ticks;  // of a step: for how long the device may have waited for the host
  int32_t track;        // of the thread that enqueued it
  int16_t device;
  bool is_step;  // the root's call
};

// Spans that were begun and did not come out, by reason, and how far the others may be misplaced.
struct DeviceLosses {
  uint64_t no_event = 0;        // no free event, or no room to remember the span
  uint64_t in_capture = 0;      // the stream was being captured, where nothing runs
  uint64_t stream_changed = 0;  // it ended on another stream than it began on
  uint64_t late = 0;            // the device did not get there in time
  uint64_t failed = 0;          // the device or its context had failed
  uint64_t overwritten = 0;     // in a replay whose stamps were gone before they were read
  uint64_t pending = 0;         // not lost: the device has not come to them, or they are not read
  uint64_t bare_replays = 0;    // no spans: replays of graphs that were captured without stamps
  int64_t clock_error_ns = 0;   // of the placement on the host's axis, the largest; 0: no spans
  std::string failure;          // the first error, for people; empty without one
  std::string no_stamps;        // why nothing can be timed inside graphs; empty where it can

  void add(const DeviceLosses& other);
};

class DeviceSource {
 public:
  virtual ~DeviceSource() = default;

  // All of these are called by one thread at a time, under the recorder's mutex. Appends what is
  // known by now, behind what earlier sources have found in this round; never waits for a device.
  virtual void collect(double ns_per_tick, std::vector<DeviceSpan>& spans) = 0;
  // Whether there is something that a later call may yield.
  virtual bool is_pending() = 0;
  // Counts everything that is pending as late.
  virtual void give_up() noexcept = 0;
  // The thread has ended, and what it recorded was collected, but for what is pending.
  virtual void release(DeviceThread&) noexcept {}
  virtual DeviceLosses losses() = 0;
};

}  // namespace pertoken
