// Spans inside the replays of captured graphs, by stamps, on the fake driver.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/step_detail.h"
#include "stamp_rig.h"

namespace pertoken {
namespace {

using namespace testing;

bool is_near(uint64_t ticks, int64_t truth_ns, int64_t error_ns) {
  return std::abs(boot_ns(ticks) - static_cast<double>(truth_ns)) <= static_cast<double>(error_ns);
}

// Two layers in a root, each with one kernel.
CapturedGraph capture_model(StampRig& rig, CUstream stream) {
  return rig.capture(stream, [&] {
    rig.call(stream, {}, 10, [&](CapturedCall root) {
      rig.run_work(stream);
      for (uint32_t layer = 0; layer < 2; ++layer) {
        rig.call(
            stream, root, 11 + layer, [&](CapturedCall) { rig.run_work(stream); },
            left_out(kDetailLayers));
      }
    });
  });
}

// The same, once the clock of the device is placed.
CapturedGraph settle_and_capture(StampRig& rig, CUstream stream) {
  rig.lane();
  rig.settle();
  return capture_model(rig, stream);
}

}  // namespace

TEST(the_content_of_a_stamp_holds_its_place) {
  for (const StampPlace place :
       {StampPlace{0, 0, 1}, StampPlace{4095, 65535, (1U << 20) - 1}, StampPlace{17, 300, 12345}}) {
    const StampPlace read = stamp_place(stamp_content(place));
    CHECK_EQ(read.graph, place.graph);
    CHECK_EQ(read.ordinal, place.ordinal);
    CHECK_EQ(read.replay, place.replay);
    CHECK_EQ(stamp_content(place) >> kContentBits, uint64_t{0});
  }
}

// A stamp holds three days of nanoseconds.
TEST(layers_of_replays_have_their_times_after_days_without_any) {
  StampRig rig;
  const CUstream stream = rig.stream();
  const CapturedGraph graph = settle_and_capture(rig, stream);
  constexpr int64_t kHourNs = 3'600'000'000'000;
  for (const int64_t idle_hours : {0, 60, 36, 80, 200, 1}) {
    rig.fake.advance(idle_hours * kHourNs);
    rig.spans.clear();
    const StampedReplay replay = rig.replay(graph, stream);
    rig.settle();
    const auto spans = rig.of_site(12);
    CHECK_EQ(spans.size(), size_t{1});
    if (spans.empty()) continue;
    CHECK(is_near(spans[0].start_ticks, rig.when.at({graph.number, replay.number, 2}),
                  rig.losses().clock_error_ns));
  }
  CHECK_EQ(rig.losses().overwritten, uint64_t{0});
  CHECK_EQ(lost(rig.losses()), uint64_t{0});
}

// With its context goes what the driver allocated, in the host's memory as well.
TEST(stamps_are_read_safely_when_the_context_has_been_reset) {
  StampRig rig;
  const CUstream stream = rig.stream();
  const CapturedGraph graph = settle_and_capture(rig, stream);
  rig.replay(graph, stream);
  rig.settle();
  CHECK_EQ(rig.of_site(12).size(), size_t{1});
  rig.replay(graph, stream);
  rig.fake.destroy_context(0);
  rig.settle();
  CHECK_EQ(rig.of_site(12).size(), size_t{1});
  CHECK(rig.losses().failed > 0);
  CHECK_EQ(rig.losses().pending, uint64_t{0});
}

TEST(every_replay_has_the_spans_of_the_calls_that_were_captured) {
  StampRig rig;
  rig.fake.set_device_clock(4e-5, 987'654'321'000, 32);
  const CUstream stream = rig.stream();
  const CapturedGraph graph = settle_and_capture(rig, stream);
  CHECK(graph.number != 0);
  // A root, its kernel and two layers in a row: the layers share a stamp, and the end of the last
  // is that of the root.
  CHECK_EQ(rig.stamps().stamps_of(graph.number), 4u);
  std::vector<StampedReplay> replays;
  for (int i = 0; i < 5; ++i) {
    replays.push_back(rig.replay(graph, stream));
    rig.fake.advance(300'000);
    rig.collect();
  }
  rig.settle();
  const DeviceLosses losses = rig.losses();
  CHECK_EQ(lost(losses) + losses.overwritten, uint64_t{0});
  CHECK(losses.clock_error_ns > 0 && losses.clock_error_ns < 50'000);
  CHECK_EQ(rig.of_site(kReplaySite).size(), size_t{5});
  for (uint32_t site = 10; site < 13; ++site) {
    const auto spans = rig.of_site(site);
    CHECK_EQ(spans.size(), size_t{5});
    for (size_t i = 0; i < spans.size(); ++i) {
      const uint32_t start = site == 10 ? 0 : site - 10;
      const uint32_t end = site == 11 ? 2 : 3;
      const uint32_t number = replays[i].number;
      CHECK(is_near(spans[i].start_ticks, rig.when.at({graph.number, number, start}),
                    losses.clock_error_ns));
      CHECK(is_near(spans[i].end_ticks, rig.when.at({graph.number, number, end}),
                    losses.clock_error_ns));
      CHECK_EQ(spans[i].seq, replays[i].first_seq + (site - 10));
      CHECK_EQ(spans[i].parent_seq, site == 10 ? replays[i].seq : replays[i].first_seq);
      CHECK_EQ(spans[i].step, 3u);
      CHECK(!spans[i].is_step);
    }
  }
  const double layer_ns = boot_ns(rig.of_site(11)[0].end_ticks - rig.of_site(11)[0].start_ticks);
  CHECK(std::abs(layer_ns - (40'000 + kStampNs)) < 200);
}

TEST(replays_that_were_not_announced_write_nothing) {
  StampRig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  const CapturedGraph graph = capture_model(rig, stream);
  rig.fake.api()->cuGraphLaunch(graph.exec, stream);
  rig.fake.advance(1'000'000);
  CHECK(rig.when.empty());
  rig.replay(graph, stream);
  rig.fake.api()->cuGraphLaunch(graph.exec, stream);
  rig.fake.advance(1'000'000);
  CHECK_EQ(rig.when.size(), size_t{4});
}

TEST(a_step_that_leaves_layers_out_has_the_rest) {
  StampRig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  const CapturedGraph graph = capture_model(rig, stream);
  rig.replay(graph, stream, left_out(kDetailLayers));
  rig.replay(graph, stream, 0);
  rig.settle();
  CHECK_EQ(rig.of_site(10).size(), size_t{2});
  CHECK_EQ(rig.of_site(11).size(), size_t{1});
  CHECK_EQ(lost(rig.losses()), uint64_t{0});
}

TEST(what_is_overwritten_is_counted) {
  StampRig rig(4);  // sixteen stamps: four replays
  const CUstream stream = rig.stream();
  const CapturedGraph graph = settle_and_capture(rig, stream);
  constexpr size_t kReplays = 9;
  for (size_t i = 0; i < kReplays; ++i) {
    rig.replay(graph, stream);
    rig.fake.advance(300'000);
  }
  rig.settle();
  rig.settle();
  size_t spans = 0;
  for (uint32_t site = 10; site < 13; ++site) spans += rig.of_site(site).size();
  const DeviceLosses losses = rig.losses();
  CHECK(losses.overwritten > 0);
  CHECK_EQ(spans + losses.overwritten, 3 * kReplays);
  CHECK(!rig.reader->is_pending());
}

TEST(two_recordings_share_the_stamps_of_a_graph) {
  StampRig rig;
  StampReader other(rig.shared_timer, rig.devices, &FakeDriver::ticks);
  const CUstream stream = rig.stream();
  rig.lane();
  const CapturedGraph graph = rig.capture(stream, [&] {
    rig.call(stream, {}, 10, [&](CapturedCall) {
      const CapturedCall inner = other.begin(0, stream, {});
      rig.run_work(stream);
      CHECK(other.end(0, inner, stream, {20, 0, 0, 0, false}));
    });
  });
  CHECK_EQ(rig.stamps().stamps_of(graph.number), 2u);
  const OpenedReplay outer = rig.stamps().open_replay(graph.number, stream);
  CHECK(outer.is_to_close);
  const OpenedReplay inner = rig.stamps().open_replay(graph.number, stream);
  CHECK_EQ(inner.number, outer.number);
  CHECK(!inner.is_to_close);
  rig.stamps().close_replay(graph.number, stream, false);
  const StampedReplay replay = rig.replay(graph, stream);
  other.await(replay);
  std::vector<DeviceSpan> seen;
  for (int i = 0; i < 8; ++i) {
    rig.fake.advance(20'000'000);
    std::vector<DeviceSpan> round;
    rig.shared_timer->collect(kNsPerTick, round);
    std::vector<DeviceSpan> same = round;
    rig.reader->collect(kNsPerTick, round);
    other.collect(kNsPerTick, same);
    rig.spans.insert(rig.spans.end(), round.begin(), round.end());
    seen.insert(seen.end(), same.begin(), same.end());
  }
  CHECK_EQ(rig.of_site(10).size(), size_t{1});
  CHECK_EQ(std::count_if(seen.begin(), seen.end(), [](const auto& s) { return s.site == 20; }), 1);
}

TEST(a_replay_that_came_to_nothing_is_awaited_no_longer) {
  StampRig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  const CapturedGraph graph = capture_model(rig, stream);
  rig.fake.fail("cuGraphLaunch", CUDA_ERROR_OUT_OF_MEMORY);
  rig.replay(graph, stream);
  rig.collect();
  CHECK(!rig.reader->is_pending());
  rig.replay(graph, stream);
  rig.settle();
  CHECK_EQ(rig.of_site(11).size(), size_t{1});
  CHECK_EQ(lost(rig.losses()), uint64_t{0});
}

// A layer on a stream of its own, beside another; `joins_inside`: its own code has the stream of
// the capture wait for it, so that its end comes behind that.
CapturedGraph capture_branch(StampRig& rig, CUstream stream, CUstream side, bool joins_inside) {
  return rig.capture(stream, [&] {
    rig.call(stream, {}, 20, [&](CapturedCall outer) {
      rig.call(stream, outer, 21, [&](CapturedCall) { rig.fake.spin(stream, 10'000); });
      rig.fake.wait_for(side, stream);
      for (uint32_t site = 22; site < 24; ++site) {
        rig.call(side, outer, site, [&](CapturedCall) {
          rig.fake.spin(side, 20'000);
          if (joins_inside) rig.fake.wait_for(stream, side);
        });
      }
      rig.call(stream, outer, 24, [&](CapturedCall) { rig.fake.spin(stream, 5'000); });
      if (!joins_inside) rig.fake.wait_for(stream, side);
    });
  });
}

TEST(what_runs_beside_a_captures_stream_has_its_times_and_leaves_the_capture_whole) {
  for (const bool joins_inside : {false, true}) {
    StampRig rig;
    const CUstream stream = rig.stream();
    const CUstream side = rig.stream();
    settle_and_capture(rig, stream);
    CapturedGraph graph = capture_branch(rig, stream, side, joins_inside);
    CHECK(graph.graph != nullptr && graph.number != 0);
    if (graph.graph == nullptr) continue;
    rig.hold(graph);
    for (int i = 0; i < 3; ++i) {
      rig.replay(graph, stream);
      rig.fake.advance(300'000);
      rig.collect();
    }
    rig.settle();
    CHECK_EQ(lost(rig.losses()) + rig.losses().overwritten, uint64_t{0});
    for (uint32_t site = 20; site < 25; ++site) {
      const auto spans = rig.of_site(site);
      CHECK_EQ(spans.size(), size_t{3});
      const bool is_beside = site == 22 || site == 23;
      for (const DeviceSpan& span : spans) {
        CHECK_EQ(span.stream == kFirstBranch + 1, is_beside);
        CHECK_EQ(span.parent_seq == 0, is_beside);
      }
    }
    CHECK_EQ(rig.fake.captures_broken() + rig.fake.misuses(), uint64_t{0});
    rig.drop(graph);
  }
}

TEST(an_end_whose_place_cannot_be_told_is_not_stamped) {
  StampRig rig;
  const CUstream stream = rig.stream();
  const CUstream side = rig.stream();
  settle_and_capture(rig, stream);
  const CapturedGraph graph = rig.capture(stream, [&] {
    rig.call(stream, {}, 20, [&](CapturedCall outer) {
      rig.fake.spin(stream, 10'000);
      rig.fake.wait_for(side, stream);
      const CapturedCall made = rig.reader->begin(rig.device, side, outer);
      CHECK(static_cast<bool>(made));
      rig.fake.spin(side, 20'000);
      rig.fake.wait_for(stream, side);
      rig.fake.fail("cuStreamGetCaptureInfo_v2", CUDA_ERROR_INVALID_VALUE, 1, 1);
      CHECK(!rig.reader->end(rig.device, made, side, {22, 0, 0, 0, false}));
    });
  });
  CHECK(graph.graph != nullptr);
  rig.drop(graph);
}

TEST(a_stamp_that_cannot_be_captured_leaves_the_capture_whole) {
  StampRig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  rig.fake.fail("cuLaunchKernel", CUDA_ERROR_OUT_OF_MEMORY, 1, 1);
  const CapturedGraph graph = capture_model(rig, stream);
  CHECK(graph.exec != nullptr);
  CHECK_EQ(rig.fake.captures_broken(), uint64_t{0});
  rig.replay(graph, stream);
  rig.settle();
  CHECK_EQ(rig.fake.misuses(), uint64_t{0});
}

TEST(replays_go_on_while_their_stamps_are_read) {
  StampRig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  const CapturedGraph graph = capture_model(rig, stream);
  constexpr size_t kReplays = 300;
  std::atomic<bool> is_done{false};
  std::thread model([&] {
    rig.fake.set_current(0);
    for (size_t i = 0; i < kReplays; ++i) {
      rig.replay(graph, stream);
      rig.fake.advance(200'000);
    }
    is_done.store(true);
  });
  // Only the model moves the clock: were it held up in a replay meanwhile, that one would be late.
  while (!is_done.load()) rig.collect();
  model.join();
  rig.settle();
  // A replay without a free event is counted, and not awaited.
  const size_t timed = rig.of_site(kReplaySite).size();
  CHECK(timed > 0);
  CHECK_EQ(timed + rig.losses().no_event, kReplays);
  CHECK_EQ(rig.of_site(12).size(), timed);
}

TEST(without_kernels_the_reason_is_told) {
  FakeDriver fake;
  const auto devices = std::make_shared<StampDevices>(*fake.api(), std::span<const std::byte>());
  const auto timer = std::make_shared<EventTimer>(*fake.api(), &FakeDriver::ticks);
  StampReader reader(timer, devices, &FakeDriver::ticks);
  CHECK(!reader.begin(0, nullptr, {}));
  CHECK(reader.losses().no_stamps.find("no kernels") != std::string::npos);
}

TEST(a_device_that_fails_ends_what_is_awaited) {
  StampRig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  const CapturedGraph graph = capture_model(rig, stream);
  rig.replay(graph, stream);
  rig.fake.break_device(CUDA_ERROR_ILLEGAL_ADDRESS);
  rig.fake.advance(1'000'000);
  rig.collect();
  rig.collect();
  const DeviceLosses losses = rig.losses();
  CHECK_EQ(losses.failed, uint64_t{4});
  CHECK(!rig.reader->is_pending());
  rig.fake.break_device(CUDA_SUCCESS);
}

}  // namespace pertoken
