// Kernels of ours in captured graphs, switched on for some of the replays, on the fake driver: what
// the others cost and do not write, and the order of what is written on several streams.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "stamp_rig.h"

namespace pertoken {
namespace {

using namespace testing;

constexpr size_t kStamps = 4;
constexpr const char* kSwitch = "cuGraphNodeSetEnabled";

// A graph of three layers, between two marks, whose clock is placed.
struct SwitchRig : StampRig {
  CUstream stream = StampRig::stream();
  CUstream other = StampRig::stream();
  CapturedGraph graph;

  SwitchRig() {
    lane();
    settle();
    graph = make();
  }

  CapturedGraph make() {
    return capture(stream, [&] {
      mark_at(stream, 0);
      for (uint32_t site = 10; site < 13; ++site) {
        call(stream, {}, site, [&](CapturedCall) { run_work(stream); });
      }
      mark_at(stream, 1);
    });
  }
  void launch() {
    CHECK_EQ(fake.api()->cuGraphLaunch(graph.exec, stream), CUDA_SUCCESS);
    fake.advance(1'000'000);
  }
  // Of the last launch, without the marks.
  int64_t took_ns() const { return marks.at(1).back() - marks.at(0).back() - kMarkNs; }
  int64_t with_stamps_ns() const { return kWorkNs + int64_t{kStamps} * kStampNs; }
  bool is_recorded(const StampedReplay& replay) const {
    return replay.number != 0 && when.contains({graph.number, replay.number, 0});
  }

  static constexpr int64_t kWorkNs = 3 * 40'000;
};

}  // namespace

TEST(replays_that_are_not_recorded_do_without_the_nodes) {
  SwitchRig rig;
  rig.launch();
  CHECK_EQ(rig.took_ns(), rig.with_stamps_ns());  // they return at once, and are there
  rig.hold(rig.graph);
  for (int i = 0; i < 5; ++i) {
    rig.launch();
    CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
    const StampedReplay replay = rig.replay(rig.graph, rig.stream);
    rig.fake.advance(1'000'000);
    CHECK_EQ(rig.took_ns(), rig.with_stamps_ns());
    CHECK(rig.is_recorded(replay));
  }
  CHECK_EQ(rig.when.size(), 5 * kStamps);
  rig.settle();
  CHECK_EQ(rig.of_site(11).size(), size_t{5});
  CHECK_EQ(lost(rig.losses()), uint64_t{0});
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
}

TEST(nodes_stay_enabled_where_every_replay_is_recorded_until_the_recording_lets_go) {
  SwitchRig rig;
  rig.hold(rig.graph);
  CHECK_EQ(rig.fake.calls(kSwitch), kStamps);
  rig.stays_on = true;
  for (int i = 0; i < 5; ++i) {
    CHECK(rig.replay(rig.graph, rig.stream).number != 0);
    rig.fake.advance(1'000'000);
  }
  CHECK_EQ(rig.fake.calls(kSwitch), 2 * kStamps);
  rig.stamps().release_executable(rig.graph.number, true);
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
}

TEST(an_executable_is_left_alone_once_it_is_gone) {
  SwitchRig rig;
  rig.hold(rig.graph);
  rig.stays_on = true;
  rig.replay(rig.graph, rig.stream);
  const uint64_t before = rig.fake.calls(kSwitch);
  rig.stamps().release_executable(rig.graph.number, false);
  CHECK_EQ(rig.fake.api()->cuGraphExecDestroy(rig.graph.exec), CUDA_SUCCESS);
  // Another is made, in which they are enabled.
  CHECK_EQ(rig.fake.api()->cuGraphInstantiateWithFlags(&rig.graph.exec, rig.graph.graph, 0),
           CUDA_SUCCESS);
  CHECK(rig.replay(rig.graph, rig.stream).number != 0);
  CHECK_EQ(rig.fake.calls(kSwitch), before);
  rig.hold(rig.graph);
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
  CHECK_EQ(rig.fake.misuses(), uint64_t{0});
}

TEST(an_executable_that_is_made_within_a_replay_keeps_its_nodes_for_it) {
  SwitchRig rig;
  GraphStamps& stamps = rig.stamps();
  CHECK(stamps.open_replay(rig.graph.number, rig.stream).is_to_close);
  rig.hold(rig.graph);
  rig.launch();
  CHECK_EQ(rig.when.size(), kStamps);
  stamps.close_replay(rig.graph.number, rig.stream, false);
  rig.launch();
  CHECK_EQ(rig.when.size(), kStamps);
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
}

TEST(the_last_of_two_recordings_that_lets_go_leaves_the_nodes_disabled) {
  SwitchRig rig;
  rig.hold(rig.graph);
  rig.hold(rig.graph);
  CHECK_EQ(rig.fake.calls(kSwitch), kStamps);
  rig.stamps().release_executable(rig.graph.number, true);
  rig.stays_on = true;
  const StampedReplay replay = rig.replay(rig.graph, rig.stream);
  rig.fake.advance(1'000'000);
  CHECK(rig.is_recorded(replay));
  rig.stamps().release_executable(rig.graph.number, true);
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
}

// As a recording that ends or begins while a server's thread is inside a launch.
TEST(an_executable_that_another_thread_launches_is_changed_when_that_returns) {
  SwitchRig rig;
  GraphStamps& stamps = rig.stamps();
  const uint32_t number = rig.graph.number;
  const auto elsewhere = [&](auto&& run) {
    std::thread([&] {
      rig.fake.set_current(0);
      run();
    }).join();
  };
  rig.hold(rig.graph);
  rig.stays_on = true;
  rig.replay(rig.graph, rig.stream);
  const uint64_t before = rig.fake.calls(kSwitch);
  stamps.begin_launch(number);
  elsewhere([&] {
    stamps.release_executable(number, true);
    CHECK_EQ(stamps.open_replay(number, rig.other).result, CUDA_ERROR_NOT_READY);
  });
  CHECK_EQ(rig.fake.calls(kSwitch), before);
  CHECK(stamps.end_launch(number));
  stamps.rest_now(number);
  CHECK_EQ(rig.fake.calls(kSwitch), before + kStamps);
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
  // It is at rest, so that nothing need be done where a recording begins.
  stamps.begin_launch(number);
  elsewhere([&] { rig.hold(rig.graph); });
  CHECK(!stamps.end_launch(number));
  CHECK_EQ(rig.fake.calls(kSwitch), before + kStamps);
  rig.stays_on = false;
  const StampedReplay replay = rig.replay(rig.graph, rig.stream);
  rig.fake.advance(1'000'000);
  CHECK(rig.is_recorded(replay));
  CHECK_EQ(rig.fake.calls(kSwitch), before + 3 * kStamps);
}

TEST(a_launch_within_a_launch_is_no_other_threads) {
  SwitchRig rig;
  GraphStamps& stamps = rig.stamps();
  rig.hold(rig.graph);
  stamps.begin_launch(rig.graph.number);
  const StampedReplay replay = rig.replay(rig.graph, rig.stream);
  CHECK(!stamps.end_launch(rig.graph.number));
  rig.fake.advance(1'000'000);
  CHECK(rig.is_recorded(replay));
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
}

TEST(nodes_that_the_driver_would_not_enable_leave_the_replay_unrecorded) {
  SwitchRig rig;
  rig.hold(rig.graph);
  rig.fake.fail(kSwitch, CUDA_ERROR_OUT_OF_MEMORY, 1, 2);
  CHECK_EQ(rig.replay(rig.graph, rig.stream).number, 0U);
  CHECK_EQ(rig.open_result, CUDA_ERROR_OUT_OF_MEMORY);
  rig.fake.advance(1'000'000);
  CHECK(rig.when.empty());
  const StampedReplay next = rig.replay(rig.graph, rig.stream);
  rig.fake.advance(1'000'000);
  CHECK(rig.is_recorded(next));
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs);
}

TEST(nodes_that_the_driver_would_not_disable_stay_and_write_nothing) {
  SwitchRig rig;
  rig.hold(rig.graph);
  rig.fake.fail(kSwitch, CUDA_ERROR_OUT_OF_MEMORY, 1, static_cast<int>(kStamps) + 2);
  for (size_t i = 1; i < 4; ++i) {
    CHECK(rig.is_recorded([&] {
      const StampedReplay replay = rig.replay(rig.graph, rig.stream);
      rig.fake.advance(1'000'000);
      return replay;
    }()));
    const size_t written = rig.when.size();
    CHECK_EQ(written, i * kStamps);
    rig.launch();
    CHECK_EQ(rig.when.size(), written);
  }
  // It was tried once, with all of them, and not again.
  CHECK_EQ(rig.fake.calls(kSwitch), kStamps + kStamps + 3 + kStamps);
}

// The second would read the first one's number, or the first the second's.
TEST(replays_on_several_streams_have_their_own_stamps) {
  SwitchRig rig;
  rig.hold(rig.graph);
  std::vector<StampedReplay> replays;
  const auto run = [&](CUstream on) {
    replays.push_back(rig.replay(rig.graph, on));
    return rig.open_result;
  };
  CHECK_EQ(run(rig.stream), CUDA_SUCCESS);
  CHECK_EQ(run(rig.other), CUDA_ERROR_NOT_READY);  // nothing says where the first one ends
  CHECK_EQ(run(rig.other), CUDA_SUCCESS);
  for (int i = 0; i < 6; ++i) CHECK_EQ(run(i % 2 == 0 ? rig.stream : rig.other), CUDA_SUCCESS);
  CHECK_EQ(rig.fake.calls("cuStreamWaitEvent"), uint64_t{6});
  rig.fake.advance(10'000'000);
  CHECK_EQ(rig.when.size(), 8 * kStamps);
  // Each within its launch, by the marks.
  for (size_t i = 0; i < replays.size(); ++i) {
    if (i == 1) continue;
    for (uint32_t ordinal = 0; ordinal < kStamps; ++ordinal) {
      const int64_t at_ns = rig.when.at({rig.graph.number, replays[i].number, ordinal});
      CHECK(at_ns > rig.marks[0][i] && at_ns < rig.marks[1][i]);
    }
  }
  rig.settle();
  CHECK_EQ(rig.of_site(12).size(), size_t{8});
  CHECK_EQ(rig.losses().overwritten, uint64_t{0});
}

TEST(a_stream_whose_end_could_not_be_marked_is_not_followed) {
  SwitchRig rig;
  rig.hold(rig.graph);
  rig.replay(rig.graph, rig.stream);
  rig.replay(rig.graph, rig.other);
  rig.fake.fail("cuEventCreate", CUDA_ERROR_OUT_OF_MEMORY, 100);
  CHECK(rig.replay(rig.graph, rig.other).number != 0);
  CHECK_EQ(rig.replay(rig.graph, rig.stream).number, 0U);
  CHECK_EQ(rig.open_result, CUDA_ERROR_NOT_READY);
  CHECK(rig.replay(rig.graph, rig.stream).number != 0);
  rig.fake.pause_faults(true);
  CHECK(rig.replay(rig.graph, rig.stream).number != 0);
  CHECK(rig.replay(rig.graph, rig.other).number != 0);
}

TEST(a_stamp_whose_node_is_not_told_stays) {
  SwitchRig rig;
  // Of the first stamp: where it is, with and without edges, after its launch.
  rig.fake.fail("cuStreamGetCaptureInfo_v2", CUDA_ERROR_INVALID_VALUE, 2, 1);
  rig.graph = rig.make();
  rig.hold(rig.graph);
  rig.launch();
  CHECK_EQ(rig.took_ns(), SwitchRig::kWorkNs + kStampNs);
  CHECK(rig.when.empty());
  const StampedReplay replay = rig.replay(rig.graph, rig.stream);
  rig.settle();
  CHECK(rig.is_recorded(replay));
  CHECK_EQ(rig.of_site(10).size(), size_t{1});
}

}  // namespace pertoken
