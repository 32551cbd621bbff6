// The spans inside the replays of captured graphs: a source of device spans for a recorder. While a
// graph is captured, the model's threads say which stamps begin and end a call; before each replay
// that is to have spans, that it comes. The collector puts the stamps that come in and the calls
// together, once the replay's own span is known, and places them inside it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/device_source.h"
#include "cuda/announced_replays.h"
#include "cuda/event_timer.h"
#include "cuda/stamp_clock.h"
#include "cuda/stamp_devices.h"

namespace pertoken::cuda {

class StampReader final : public DeviceSource {
 public:
  // The timer is that of the same recorder, and asked before this one.
  StampReader(std::shared_ptr<EventTimer> timer, std::shared_ptr<StampDevices> devices,
              HostTicks ticks = now_ticks);
  ~StampReader() override;
  StampReader(const StampReader&) = delete;
  StampReader& operator=(const StampReader&) = delete;

  // In a capture, on its thread, with the device's context current; cold. None where the stream
  // cannot be stamped, which the caller counts.
  CapturedCall begin(int device, CUstream stream, CapturedCall outer) noexcept;
  // False where the end cannot be stamped: the call has no times.
  bool end(int device, CapturedCall call, CUstream stream, const SpanLabels& labels) noexcept;
  // How many calls of this recording are in a graph; 0 where there are none but those of roots.
  uint32_t calls_of(int device, uint32_t graph);
  // Hot.
  GraphStamps* stamps(int device) const noexcept { return devices_->find(device); }

  // Hot, under the GIL, before the launch: so a stamp that is there is of a replay that is known.
  void await(const StampedReplay& replay) noexcept {
    if (!replays_.try_push(replay)) no_room_.fetch_add(replay.calls, std::memory_order_relaxed);
  }
  // Where the launch came to nothing. Without room for it the replay counts as late in the end.
  void withdraw(StampedReplay replay) noexcept {
    replay.is_withdrawn = true;
    static_cast<void>(replays_.try_push(replay));
  }
  // A replay that was to be announced and could not be.
  void count_refused(uint32_t calls) noexcept {
    no_room_.fetch_add(calls, std::memory_order_relaxed);
  }
  // Likewise, since the replay before it was on another stream.
  void count_other_stream(uint32_t calls) noexcept {
    other_stream_.fetch_add(calls, std::memory_order_relaxed);
  }
  // A replay of a graph in which nothing was stamped here.
  void count_bare_replay() noexcept { bare_replays_.fetch_add(1, std::memory_order_relaxed); }

  void collect(double ns_per_tick, std::vector<DeviceSpan>& spans) override;
  bool is_pending() override;
  void give_up() noexcept override;
  DeviceLosses losses() override;

 private:
  static constexpr size_t kMaxAwaited = 4096;
  static constexpr int64_t kLateNs = 10'000'000'000;

  struct Call {
    uint32_t start;  // stamps
    uint32_t end;
    uint32_t parent;  // a call before it, kNone32: none
    uint32_t site;
    uint32_t left_out;
    CUstream stream;  // of the capture
    uint64_t branch;  // by its stream; 0 on that of the first call, whose work runs on the replay's
    bool is_whole;
    bool is_root;
  };
  struct Graph {
    uint32_t number = 0;
    std::vector<Call> calls;
  };
  struct Awaited {
    StampedReplay replay;
    uint64_t index;                  // of the recording's replays
    std::vector<uint64_t> times_ns;  // by stamp; 0: not there yet
    uint64_t latest_ns;              // of them
    uint32_t missing;
    bool is_spoilt;  // a stamp came twice
    bool is_passed;  // a later replay of the graph is whole
    bool has_span;
    DeviceSpan span;  // the replay's own
  };
  struct Device {
    StampInbox inbox;
    std::unique_ptr<StampClock> clock;
    std::deque<Awaited> awaited;
  };

  static uint64_t branch_of(std::span<const Call> calls, CUstream stream) noexcept;
  const Graph* find_graph(int device, uint32_t number) const noexcept;
  std::span<const Call> calls_in(const StampedReplay& replay) const noexcept;
  void read_replays();
  void settle_replays() noexcept;
  void take_replay(const StampedReplay& replay, uint64_t index);
  void start_device(int index, GraphStamps& stamps);
  void collect_device(int index, Device& device, GraphStamps& stamps, double ns_per_tick,
                      std::vector<DeviceSpan>& spans);
  void take_stamp(Device& device, const StampPlace& place, uint64_t whole_ns);
  static void find_spans(Device& device, std::vector<DeviceSpan>& spans);
  bool settle(Device& device, Awaited& awaited, TimedDevice& timed, double ns_per_tick,
              std::vector<DeviceSpan>& spans);
  uint64_t place(Device& device, uint64_t whole_ns, const DeviceSpan& replay, TimedDevice& timed,
                 double ns_per_tick);
  void add_spans(Device& device, const Awaited& awaited, TimedDevice& timed, double ns_per_tick,
                 std::vector<DeviceSpan>& spans);
  uint64_t expected(const StampedReplay& replay) const;
  uint64_t drop_awaited(Device& device);

  const std::shared_ptr<EventTimer> timer_;
  const std::shared_ptr<StampDevices> devices_;
  const HostTicks ticks_;
  AnnouncedReplays replays_;
  std::atomic<uint64_t> no_room_{0};  // a statistic, as are the next
  std::atomic<uint64_t> other_stream_{0};
  std::atomic<uint64_t> bare_replays_{0};

  std::mutex mutex_;  // of what follows; taken on the model's threads only while they capture
  // By device and word: when a word serves another graph, nothing is awaited of the one before.
  std::map<std::pair<int, uint32_t>, Graph> graphs_;
  std::array<Device, kMaxDevices> held_;
  std::vector<StampInbox::Stamp> stamps_;  // of one round
  std::string no_stamps_;
  uint64_t late_ = 0;
  uint64_t failed_ = 0;
  uint64_t overwritten_ = 0;
  int64_t clock_error_ns_ = 0;
};

}  // namespace pertoken::cuda
