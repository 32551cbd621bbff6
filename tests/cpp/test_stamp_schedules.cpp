// Thousands of random schedules of captured graphs and their replays, on the fake driver: every
// span inside a replay is right to the clocks' stated error or counted as lost, whatever fails, and
// whenever graphs go. There are few numbers for them, so that these are used over and over.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "stamp_rig.h"

namespace pertoken {
namespace {

using namespace testing;

struct Schedule {
  struct Held {
    CapturedGraph graph;
    CUstream stream;
    int device;
    size_t launches = 0;
    std::vector<uint32_t> sites{};  // of its whole calls
    bool is_there = true;
  };
  struct Due {
    size_t launch;  // of its graph
    size_t graph;
  };

  explicit Schedule(uint64_t seed)
      : random(seed),
        rig(5 + static_cast<uint32_t>(seed % 6), 1 + static_cast<int>(seed % 2),
            1 + static_cast<uint32_t>(seed % 5)),
        has_faults(seed % 3 == 0) {
    constexpr int64_t kSteps[] = {1, 32, 1024};
    rig.fake.set_device_clock(std::uniform_real_distribution<double>(-5e-5, 5e-5)(random),
                              static_cast<int64_t>(random() % (int64_t{1} << 49)),
                              kSteps[seed % 3]);
    rig.fake.set_call_cost(static_cast<int64_t>(100 + random() % 400));
    for (int device = static_cast<int>(seed % 2); device >= 0; --device) {
      for (int i = 0; i < 2; ++i) streams.push_back({rig.stream(device), device});
      rig.use_device(device);
      rig.lane();
    }
  }

  uint64_t pick(uint64_t count) { return random() % count; }

  void capture_call(Held& held, CapturedCall outer, int depth) {
    const uint32_t site = next_site++;
    const CapturedCall call = rig.reader->begin(held.device, held.stream, outer);
    rig.mark_at(held.stream, 2 * site);
    if (pick(2) == 0) rig.run_work(held.stream);
    while (depth < 3 && pick(3) == 0) capture_call(held, call ? call : outer, depth + 1);
    rig.mark_at(held.stream, 2 * site + 1);
    if (!call) return;
    if (rig.reader->end(held.device, call, held.stream, {site, 0, 0, 0, false}))
      held.sites.push_back(site);
  }

  void capture() {
    const auto alive =
        std::count_if(graphs.begin(), graphs.end(), [](const Held& held) { return held.is_there; });
    if (alive == 5) return;
    const auto& [stream, device] = streams[pick(streams.size())];
    Held held{{}, stream, device};
    if (held.stream == stuck) return;
    rig.use_device(device);
    rig.fake.pause_faults(true);
    rig.fake.api()->cuStreamBeginCapture_v2(held.stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
    rig.fake.pause_faults(false);
    for (uint64_t i = 1 + pick(4); i > 0; --i) capture_call(held, {}, 0);
    rig.fake.pause_faults(true);
    if (rig.devices->find(device) != nullptr) {
      held.graph.number = rig.stamps().graph_of(held.stream);
    }
    CHECK_EQ(rig.fake.api()->cuStreamEndCapture(held.stream, &held.graph.graph), CUDA_SUCCESS);
    rig.fake.api()->cuGraphInstantiateWithFlags(&held.graph.exec, held.graph.graph, 0);
    rig.fake.pause_faults(false);
    if (held.graph.number != 0 && pick(3) != 0) rig.hold(held.graph);
    if (held.graph.number >= kMaxGraphs) ++used_again;
    graphs.push_back(std::move(held));
  }

  // Mostly that of the capture. Where the stamps' nodes are not switched, replays that are not
  // announced have to be ordered. What is enqueued on a stream that is held up is not there yet, as
  // far as the fake driver has others wait for it.
  CUstream stream_for(const Held& held) {
    if (stuck != nullptr || !held.graph.is_held || pick(8) != 0) return held.stream;
    const auto& [stream, device] = streams[pick(streams.size())];
    return device == held.device ? stream : held.stream;
  }

  void launch(bool announced) {
    if (graphs.empty()) return;
    size_t index = pick(graphs.size());
    while (!graphs[index].is_there && pick(10) != 0) index = pick(graphs.size());
    Held& held = graphs[index];
    rig.use_device(held.device);
    rig.stays_on = pick(2) == 0;
    const CUstream stream = stream_for(held);
    if (!announced || held.graph.number == 0) {
      if (rig.fake.api()->cuGraphLaunch(held.graph.exec, stream) == CUDA_SUCCESS) {
        ++held.launches;
      }
      return;
    }
    const StampedReplay replay = rig.replay(held.graph, stream);
    ++begun;
    if (!rig.was_launched) return;
    if (replay.number != 0 && rig.was_awaited) {
      begun += held.sites.size();
      due[replay.first_seq] = {held.launches, index};
    }
    ++held.launches;
  }

  // Whatever of it is under way or unread. Some go on knowing it.
  void drop() {
    if (graphs.empty()) return;
    Held& held = graphs[pick(graphs.size())];
    if (!held.is_there) return;
    held.is_there = false;
    rig.use_device(held.device);
    rig.fake.pause_faults(true);
    rig.drop(held.graph);
    rig.fake.pause_faults(false);
  }

  void spin() {
    const auto& [stream, device] = streams[pick(streams.size())];
    rig.fake.spin(stream, static_cast<int64_t>(pick(300'000)), device);
  }

  void plant() {
    switch (pick(8)) {
      case 6:
        rig.fake.fail("cuGraphNodeSetEnabled", CUDA_ERROR_INVALID_VALUE, 1,
                      static_cast<int>(pick(6)));
        break;
      case 7:
        rig.fake.fail(pick(2) == 0 ? "cuStreamWaitEvent" : "cuEventRecord",
                      CUDA_ERROR_OUT_OF_MEMORY);
        break;
      case 0:
        rig.fake.fail("cuLaunchKernel", CUDA_ERROR_OUT_OF_MEMORY);
        break;
      case 1:
        rig.fake.fail("cuMemsetD32Async", CUDA_ERROR_OUT_OF_MEMORY, 1, static_cast<int>(pick(3)));
        break;
      case 2:
        rig.fake.fail("cuStreamGetCaptureInfo_v2", CUDA_ERROR_INVALID_VALUE,
                      1 + static_cast<int>(pick(2)));
        break;
      case 3:
        if (pick(4) == 0) rig.fake.fail("cuEventQuery", CUDA_ERROR_ILLEGAL_ADDRESS);
        break;
      case 4:
        if (pick(4) == 0) rig.fake.fail("cuGraphRetainUserObject", CUDA_ERROR_OUT_OF_MEMORY);
        break;
      default:
        rig.fake.fail("cuEventCreate", CUDA_ERROR_OUT_OF_MEMORY, 2);
        break;
    }
  }

  void act() {
    switch (pick(14)) {
      case 0:
      case 12:
        return capture();
      case 1:
      case 2:
      case 3:
      case 4:
        return launch(true);
      case 5:
        return launch(false);
      case 6:
        spin();
        return;
      case 7:
      case 8:
        rig.fake.advance(static_cast<int64_t>(pick(10) == 0 ? pick(700'000'000) : pick(900'000)));
        // What is overwritten is given up in the end.
        if (pick(40) == 0) rig.fake.advance(11'000'000'000);
        return;
      case 9:
      case 10:
        return collect();
      case 11:
        return drop();
      default:
        if (pick(8) == 0) {
          if (stuck == nullptr) {
            rig.fake.hold(stuck = streams[0].first, streams[0].second);
          } else {
            rig.fake.release(std::exchange(stuck, nullptr), streams[0].second);
          }
        }
        if (has_faults && pick(6) == 0) plant();
    }
  }

  // What was begun has come, is lost, or is said to be on its way.
  void collect() {
    rig.collect();
    const DeviceLosses losses = rig.losses();
    CHECK_EQ(rig.spans.size() + lost(losses) + losses.overwritten + losses.pending,
             static_cast<size_t>(begun));
  }

  // The calls of a graph have the numbers of their sites in its capture's order, from the first.
  void check_span(const DeviceSpan& span, int64_t error_ns) {
    auto replay = due.upper_bound(span.seq);
    CHECK(replay != due.begin());
    if (replay == due.begin()) return;
    --replay;
    CHECK_EQ(int{span.device}, graphs[replay->second.graph].device);
    const size_t launch = replay->second.launch;
    const auto& sites = graphs[replay->second.graph].sites;
    CHECK(std::find(sites.begin(), sites.end(), span.site) != sites.end());
    const auto start = static_cast<double>(rig.marks[2 * span.site].at(launch));
    const auto end = static_cast<double>(rig.marks[2 * span.site + 1].at(launch));
    // Up to a stamp, a shared one's neighbours, and the rounding of ticks lie between.
    const auto error = static_cast<double>(error_ns) + kStampNs + 4 * kMarkNs;
    CHECK(std::abs(boot_ns(span.start_ticks) - start) <= error);
    CHECK(std::abs(boot_ns(span.end_ticks) - end) <= error);
    CHECK(span.start_ticks <= span.end_ticks);
    ++checked;
  }

  void check() {
    if (stuck != nullptr) rig.fake.release(stuck, streams[0].second);
    rig.fake.pause_faults(true);
    rig.settle();
    rig.shared_timer->give_up();
    rig.reader->give_up();
    CHECK(!rig.reader->is_pending());
    const DeviceLosses losses = rig.losses();
    CHECK_EQ(losses.pending, uint64_t{0});
    CHECK_EQ(rig.spans.size() + lost(losses) + losses.overwritten, static_cast<size_t>(begun));
    if (!has_faults) CHECK_EQ(losses.failed, uint64_t{0});
    CHECK_EQ(rig.fake.captures_broken(), uint64_t{0});
    std::map<uint32_t, int> seen;
    for (const DeviceSpan& span : rig.spans) {
      CHECK_EQ(++seen[span.seq], 1);
      if (span.site != kReplaySite) check_span(span, losses.clock_error_ns);
    }
    worst_error = losses.clock_error_ns;
    CHECK_EQ(rig.fake.misuses(), uint64_t{0});
  }

  std::mt19937_64 random;
  StampRig rig;
  bool has_faults;
  CUstream stuck = nullptr;
  std::vector<std::pair<CUstream, int>> streams;
  std::vector<Held> graphs;
  std::map<uint32_t, Due> due;  // by the first number of a replay's spans
  uint32_t next_site = 100;
  uint64_t begun = 0;
  uint64_t checked = 0;
  uint64_t used_again = 0;  // numbers
  int64_t worst_error = 0;
};

}  // namespace

TEST(every_span_inside_a_replay_is_right_or_counted) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr uint64_t kSchedules = 400;
#else
  constexpr uint64_t kSchedules = 3000;
#endif
  int64_t worst_error = 0;
  uint64_t checked = 0;
  uint64_t used_again = 0;
  for (uint64_t seed = 0; seed < kSchedules; ++seed) {
    const long failed_before = testing::checks_failed;
    Schedule schedule(seed);
    for (int i = 0; i < 160; ++i) schedule.act();
    schedule.check();
    worst_error = std::max(worst_error, schedule.worst_error);
    checked += schedule.checked;
    used_again += schedule.used_again;
    if (testing::checks_failed != failed_before) {
      std::cerr << "schedule " << seed << "\n";
      return;
    }
  }
  CHECK(checked > kSchedules * 20);
  CHECK(used_again > kSchedules / 2);
  // Where days have passed, and the first anchor after them could not be had.
  CHECK(worst_error < 20'000'000);
}

}  // namespace pertoken
