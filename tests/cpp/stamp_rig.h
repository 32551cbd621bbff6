// Captured graphs with stamps on the fake driver, for the tests of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "check.h"
#include "cuda/stamp_reader.h"
#include "emulated_stamp.h"
#include "event_rig.h"

namespace pertoken::testing {

inline constexpr uint32_t kReplaySite = 3;
inline constexpr int64_t kMarkNs = 100;
inline constexpr std::byte kImage[16] = {};

// A graph of calls with a kernel in each, as its capture left it.
struct CapturedGraph {
  uint32_t number = 0;  // 0: without stamps
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  bool is_held = false;  // its executable: the stamps' nodes are switched
};

struct StampRig : Rig {
  using When = std::map<std::tuple<uint32_t, uint32_t, uint32_t>, int64_t>;

  std::shared_ptr<StampDevices> devices;
  std::shared_ptr<EventTimer> shared_timer;
  std::unique_ptr<StampReader> reader;
  CUfunction work = nullptr;
  CUfunction mark = nullptr;
  When when;  // of stamps, by what they say of graph, replay and ordinal: on the virtual clock
  std::map<uint32_t, std::vector<int64_t>> marks;  // of mark_at(), by number: likewise
  bool was_awaited = false;                        // the last replay
  bool was_launched = false;
  CUresult open_result = CUDA_SUCCESS;
  int64_t behind_ns = 0;  // what else a replay's own span has in it, behind the launch
  int device = 0;         // of what follows
  bool stays_on = false;  // replays are closed so

  explicit StampRig(uint32_t ring_log2 = GraphStamps::kRingLog2, int device_count = 1,
                    uint32_t graphs = GraphStamps::kGraphs)
      : Rig(device_count),
        devices(std::make_shared<StampDevices>(*fake.api(), kImage, ring_log2, graphs)),
        shared_timer(std::move(timer)) {
    add_stamp_kernel(fake, [this](const StampPlace& place, int64_t start_ns) {
      when[{place.graph, place.replay, place.ordinal}] = start_ns;
    });
    fake.add_kernel("work", {{}, 40'000, nullptr});
    fake.add_kernel("mark", {{sizeof(uint32_t)}, kMarkNs, [this](const FakeLaunch& run) {
                               marks[run.parameter<uint32_t>(0)].push_back(run.start_ns);
                             }});
    CUmodule module = nullptr;
    fake.api()->cuModuleLoadData(&module, kImage);
    fake.api()->cuModuleGetFunction(&work, module, "work");
    fake.api()->cuModuleGetFunction(&mark, module, "mark");
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
  // When the stream comes here, in every launch of what is captured.
  void mark_at(CUstream stream, uint32_t number) {
    fake.pause_faults(true);
    void* parameters[] = {&number};
    CHECK_EQ(fake.api()->cuLaunchKernel(mark, 1, 1, 1, 1, 1, 1, 0, stream, parameters, nullptr),
             CUDA_SUCCESS);
    fake.pause_faults(false);
  }
  void collect_from(StampReader& from, std::vector<DeviceSpan>& into) {
    shared_timer->collect(kNsPerTick, into);
    from.collect(kNsPerTick, into);
  }
  void collect() {
    std::vector<DeviceSpan> round;
    collect_from(*reader, round);
    spans.insert(spans.end(), round.begin(), round.end());
  }
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

  // As a recording that is told what is launched.
  void hold(CapturedGraph& graph) {
    stamps().hold_executable(graph.number, graph.exec);
    graph.is_held = true;
  }
  // Nobody can replay it any more.
  void drop(const CapturedGraph& graph) {
    if (graph.is_held) stamps().release_executable(graph.number, false);
    if (graph.exec != nullptr) fake.api()->cuGraphExecDestroy(graph.exec);
    if (graph.graph != nullptr) fake.api()->cuGraphDestroy(graph.graph);
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
    const OpenedReplay opened = stamps().open_replay(graph.number, stream);
    open_result = opened.result;
    replay.number = opened.number;
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
    was_launched = fake.api()->cuGraphLaunch(graph.exec, stream) == CUDA_SUCCESS;
    on.note_launch();
    if (behind_ns != 0) fake.spin(stream, behind_ns, device);
    if (was_awaited && !was_launched) reader->withdraw(replay);
    on.end(start, stream, {kReplaySite, replay.seq, 0, 3, false});
    if (opened.is_to_close) stamps().close_replay(graph.number, stream, stays_on);
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
