// Thousands of random schedules of what is timed on devices, on the fake driver: every span is
// right to the clock's stated error or counted as lost, whatever fails meanwhile.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "event_rig.h"
#include "fake_driver.h"

namespace pertoken {
namespace {

using namespace testing;

// A random program: nested spans on several streams, devices and threads, captures, pauses, slow
// streams, and now and then a fault.
struct Schedule {
  struct Open {
    Boundary start;
    CUstream stream;
    int device;
    size_t thread;
    uint32_t seq;
  };
  struct Truth {
    CUevent start;
    CUevent end;
  };

  explicit Schedule(uint64_t seed)
      : random(seed), rig(1 + static_cast<int>(seed % 2), seed % 5 == 0 ? 64 : 1024) {
    rig.fake.set_device_clock(std::uniform_real_distribution<double>(-5e-5, 5e-5)(random),
                              static_cast<int64_t>(random() % 1'000'000'000'000),
                              random() % 2 != 0 ? 1 : 32);
    rig.fake.set_call_cost(static_cast<int64_t>(100 + random() % 400));
    devices = 1 + static_cast<int>(seed % 2);
    rig.add_thread();
    for (int device = 0; device < devices; ++device) {
      streams.push_back({nullptr, device});
      for (int i = 0; i < 2; ++i) streams.push_back({rig.stream(device), device});
    }
    has_faults = seed % 3 == 0;
  }

  uint64_t pick(uint64_t count) { return random() % count; }

  CUevent truth_event(const Open& span) {
    rig.fake.set_current(span.device);
    rig.fake.pause_faults(true);
    CUevent event = rig.event(span.stream);
    rig.fake.pause_faults(false);
    return event;
  }

  void begin() {
    const auto& [stream, device] = streams[pick(streams.size())];
    Open span{{}, stream, device, static_cast<size_t>(pick(2)), rig.next_seq++};
    EventLane* lane = rig.timer->lane(*rig.buffers[span.thread], device);
    ++begun;
    if (lane == nullptr) return;
    span.start = lane->begin(stream);
    if (!capturing && span.start) truths[span.seq].start = truth_event(span);
    open.push_back(span);
  }

  void end() {
    if (open.empty()) return;
    const Open span = open.back();
    open.pop_back();
    EventLane& lane = *rig.timer->lane(*rig.buffers[span.thread], span.device);
    if (!capturing && span.start) truths[span.seq].end = truth_event(span);
    rig.fake.set_current(static_cast<int>(pick(static_cast<uint64_t>(devices))));
    const bool moves = pick(40) == 0;
    const auto& other = streams[pick(streams.size())];
    lane.end(span.start, moves && other.second == span.device ? other.first : span.stream,
             {1, span.seq, 0, 1, pick(8) == 0});
  }

  void plant() {
    switch (pick(6)) {
      case 0:
        rig.fake.fail("cuEventCreate", CUDA_ERROR_OUT_OF_MEMORY, 3);
        break;
      case 1:
        rig.fake.fail("cuEventQuery", CUDA_ERROR_ILLEGAL_ADDRESS);
        break;
      case 2:
        rig.fake.fail("cuEventRecord", CUDA_ERROR_INVALID_HANDLE);
        break;
      case 3:
        rig.fake.fail("cuEventElapsedTime", CUDA_ERROR_ILLEGAL_ADDRESS);
        break;
      case 4:
        if (devices > 1) rig.fake.destroy_context(1);
        context_gone = context_gone || devices > 1;
        break;
      default:
        rig.fake.fail("cuStreamIsCapturing", CUDA_ERROR_CONTEXT_IS_DESTROYED);
        break;
    }
  }

  void act() {
    const auto& [stream, device] = streams[pick(streams.size())];
    switch (pick(12)) {
      case 0:
      case 1:
      case 2:
        return begin();
      case 3:
      case 4:
      case 5:
        return end();
      case 6:
      case 7:
        rig.fake.spin(stream, static_cast<int64_t>(pick(300'000)), device);
        rig.fake.advance(3'000 + static_cast<int64_t>(pick(20'000)));
        return;
      case 8:
        rig.fake.advance(static_cast<int64_t>(pick(8) == 0 ? pick(700'000'000) : pick(300'000)));
        return;
      case 9:
        return collect();
      case 10:
        if (pick(4) != 0) return;
        if (held == nullptr && stream != nullptr) {
          held = stream;
          rig.fake.hold(held);
        } else if (held != nullptr) {
          rig.fake.release(held);
          held = nullptr;
        }
        return;
      default:
        if (pick(6) == 0) capture_something();
        if (has_faults && pick(30) == 0) plant();
        return;
    }
  }

  // What was begun has come, is lost, is open, or is said to be on its way.
  void collect() {
    rig.collect();
    const DeviceLosses losses = rig.timer->losses();
    const auto running =
        std::count_if(open.begin(), open.end(), [](const Open& span) { return bool{span.start}; });
    CHECK_EQ(rig.spans.size() + lost(losses) + losses.pending + static_cast<size_t>(running),
             static_cast<size_t>(begun));
  }

  void capture_something() {
    if (context_gone) return;
    const DriverApi& api = *rig.fake.api();
    rig.fake.set_current(0);
    rig.fake.pause_faults(true);
    CUstream stream = rig.stream(0);
    rig.fake.pause_faults(false);
    if (api.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL) != CUDA_SUCCESS) return;
    capturing = true;
    EventLane* lane = rig.timer->lane(*rig.buffers[0], 0);
    ++begun;
    if (lane != nullptr) {
      const Boundary start = lane->begin(stream);
      CHECK(!start);
      if (start.is_in_capture()) lane->count_in_capture();
    }
    rig.collect();
    CUgraph graph = nullptr;
    CHECK_EQ(api.cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
    capturing = false;
  }

  void check() {
    if (held != nullptr) rig.fake.release(held);
    while (!open.empty()) end();
    rig.settle();
    rig.timer->give_up();
    const DeviceLosses losses = rig.timer->losses();
    CHECK_EQ(rig.spans.size() + lost(losses), static_cast<size_t>(begun));
    if (!has_faults) CHECK_EQ(losses.failed, uint64_t{0});
    CHECK_EQ(rig.fake.captures_broken(), uint64_t{0});
    std::map<uint32_t, int> seen;
    for (const DeviceSpan& span : rig.spans) {
      CHECK_EQ(++seen[span.seq], 1);
      const Truth& truth = truths[span.seq];
      CHECK(span.start_ticks <= span.end_ticks);
      const double error = static_cast<double>(losses.clock_error_ns) + kSharedNs;
      const double start_off =
          boot_ns(span.start_ticks) - static_cast<double>(rig.fake.event_time_ns(truth.start));
      const double end_off =
          boot_ns(span.end_ticks) - static_cast<double>(rig.fake.event_time_ns(truth.end));
      CHECK(std::abs(start_off) <= error);
      CHECK(std::abs(end_off) <= error);
      worst_error = std::max(worst_error, static_cast<double>(losses.clock_error_ns));
    }
    CHECK_EQ(rig.fake.misuses(), uint64_t{0});
  }

  std::mt19937_64 random;
  Rig rig;
  int devices = 1;
  bool has_faults = false;
  bool context_gone = false;
  bool capturing = false;
  CUstream held = nullptr;
  std::vector<std::pair<CUstream, int>> streams;
  std::vector<Open> open;
  std::map<uint32_t, Truth> truths;
  uint64_t begun = 0;
  double worst_error = 0;
};

TEST(every_span_of_a_random_schedule_is_right_or_counted) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr uint64_t kSchedules = 1000;
#else
  constexpr uint64_t kSchedules = 4000;
#endif
  double worst_error = 0;
  size_t spans = 0;
  for (uint64_t seed = 0; seed < kSchedules; ++seed) {
    const long failed_before = testing::checks_failed;
    Schedule schedule(seed);
    for (int i = 0; i < 120; ++i) schedule.act();
    schedule.check();
    worst_error = std::max(worst_error, schedule.worst_error);
    spans += schedule.rig.spans.size();
    if (testing::checks_failed != failed_before) {
      std::cerr << "schedule " << seed << "\n";
      return;
    }
  }
  CHECK(spans > kSchedules * 5);
  CHECK(worst_error < 2e6);
}

}  // namespace
}  // namespace pertoken
