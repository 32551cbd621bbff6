// Captured graphs with stamps on the fake driver, for the tests of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "cuda/stamp_reader.h"
#include "emulated_stamp.h"
#include "event_rig.h"

namespace pertoken::testing {

inline constexpr uint32_t kReplaySite = 3;
inline constexpr std::byte kImage[16] = {};

// A graph of calls with a kernel in each, as its capture left it.
struct CapturedGraph {
  uint32_t number = 0;  // 0: without stamps
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
};

struct StampRig : Rig {
  using When = std::map<std::tuple<uint32_t, uint32_t, uint32_t>, int64_t>;

  std::shared_ptr<StampDevices> devices;
  std::shared_ptr<EventTimer> shared_timer;
  std::unique_ptr<StampReader> reader;
  CUfunction work = nullptr;
  When when;                 // graph, replay, ordinal: on the virtual clock
  bool was_awaited = false;  // the last replay
  int device = 0;            // of what follows

  explicit StampRig(uint32_t ring_log2 = GraphStamps::kRingLog2, int device_count = 1)
      : Rig(device_count),
        devices(std::make_shared<StampDevices>(*fake.api(), kImage, ring_log2)),
        shared_timer(std::move(timer)) {
    add_stamp_kernel(fake, [this](const StampPlace& place, int64_t start_ns) {
      when[{place.graph, place.replay, place.ordinal}] = start_ns;
    });
    fake.add_kernel("work", {{}, 40'000, nullptr});
    CUmodule module = nullptr;
    fake.api()->cuModuleLoadData(&module, kImage);
    fake.api()->cuModuleGetFunction(&work, module, "work");
    reader = std::make_unique<StampReader>(shared_timer, devices, &FakeDriver::ticks);
  }
  ~StampRig() {
    reader.reset();
    shared_timer.reset();
  }

  EventLane& lane(size_t thread = 0) { return *shared_timer->lane(*buffers[thread], device); }
  GraphStamps& stamps() { return *devices->find(device); }
  void use_device(int number) {
    device = number;
    fake.set_current(number);
  }
  void run_work(CUstream stream) {
    fake.api()->cuLaunchKernel(work, 1, 1, 1, 32, 1, 1, 0, stream, nullptr, nullptr);
  }
  void collect_from(StampReader& from, std::vector<DeviceSpan>& into) {
    shared_timer->collect(kNsPerTick, into);
    from.collect(kNsPerTick, into);
  }
  void collect() { collect_from(*reader, spans); }
  void settle() {
    for (int i = 0; i < 12; ++i) {
      fake.advance(20'000'000);
      collect();
    }
  }
  DeviceLosses losses() {
    DeviceLosses all = shared_timer->losses();
    all.add(reader->losses());
    return all;
  }

  template <typename Body>
  CapturedGraph capture(CUstream stream, Body&& body) {
    CapturedGraph made;
    fake.api()->cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
    body();
    made.number = devices->find(device) == nullptr ? 0 : stamps().graph_of(stream);
    fake.api()->cuStreamEndCapture(stream, &made.graph);
    if (made.graph != nullptr) {
      fake.api()->cuGraphInstantiateWithFlags(&made.exec, made.graph, 0);
    }
    return made;
  }

  // One call in a capture, with what `inside` captures in it.
  template <typename Inside>
  void call(CUstream stream, CapturedCall outer, uint32_t site, Inside&& inside,
            uint32_t left_out = 0) {
    const CapturedCall made = reader->begin(device, stream, outer);
    inside(made);
    if (made) reader->end(device, made, stream, {site, 0, 0, 0, false, left_out});
  }

  // As the wrapper of a replay. Returns the number of the replay, 0 where it was not announced.
  StampedReplay replay(const CapturedGraph& graph, CUstream stream, uint32_t left_out = 0,
                       size_t thread = 0) {
    StampedReplay replay{};
    bool opened = false;
    replay.number = stamps().open_replay(graph.number, stream, opened);
    replay.ticks = FakeDriver::ticks();
    replay.graph = graph.number;
    replay.seq = next_seq++;
    replay.calls = reader->calls_of(device, graph.number);
    replay.device = static_cast<int16_t>(device);
    replay.first_seq = next_seq;
    next_seq += replay.calls;
    replay.step = 3;
    replay.left_out = left_out;
    replay.track = buffers[thread]->track;
    EventLane& on = lane(thread);
    const Boundary start = on.begin(stream);
    was_awaited = replay.number != 0 && start;
    if (was_awaited) reader->await(replay);
    const CUresult launched = fake.api()->cuGraphLaunch(graph.exec, stream);
    on.note_launch();
    if (was_awaited && launched != CUDA_SUCCESS) reader->withdraw(replay);
    on.end(start, stream, {kReplaySite, replay.seq, 0, 3, false});
    if (opened) stamps().close_replay(graph.number, stream);
    return replay;
  }

  std::vector<DeviceSpan> of_site(uint32_t site) const {
    std::vector<DeviceSpan> found;
    for (const DeviceSpan& span : spans) {
      if (span.site == site) found.push_back(span);
    }
    return found;
  }
};

}  // namespace pertoken::testing
