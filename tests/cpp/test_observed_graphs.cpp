// Observing in captured graphs over the fake driver, whose kernels run the statistics kernel's own
// arithmetic: a replay that is announced gives what it found, under its own step; others give
// nothing and cost no record.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "observed_graph_rig.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;
using namespace pertoken::cuda;
using Graph = ObservedGraph;
using Gpu = GraphRig;

}  // namespace

TEST(a_replay_that_is_announced_gives_what_it_found_and_others_give_nothing) {
  Gpu gpu;
  Graph graph = gpu.capture(7, 3);
  CHECK(graph.number != 0);
  CHECK(gpu.collect().empty());
  for (uint32_t step = 0; step < 30; ++step) {
    Gpu::fill(graph, static_cast<float>(step + 1));
    CHECK_EQ(gpu.replay(graph, step, step % 3 == 0), step % 3 == 0);
    const auto made = gpu.collect();
    CHECK_EQ(made.size(), step % 3 == 0 ? 3U : 0U);
    for (size_t i = 0; i < made.size(); ++i) {
      CHECK_EQ(made[i].site, 7U + i);
      CHECK_EQ(made[i].step, step);
      CHECK_EQ(made[i].row, kAllRows);
      CHECK_EQ(made[i].weight, 4.0);
      CHECK_EQ(made[i].values.count(), 5U);
      CHECK_EQ(made[i].values.max(), step + 1.0);
    }
    CHECK(!gpu.observer->is_pending());
  }
  CHECK_EQ(gpu.driver.calls("cuStreamSynchronize"), 1U);  // when the device was set up
  CHECK_EQ(gpu.driver.calls("cuMemAlloc_v2"), 1U);
}

TEST(replays_that_are_not_observed_do_without_the_kernels) {
  Gpu gpu;
  gpu.keeps = true;
  gpu.driver.set_call_cost(0);
  Graph graph = gpu.capture(7, 3);
  const auto took_ns = [&](bool is_observed) {
    const CUevent start = graph.last;
    CHECK_EQ(gpu.driver.api()->cuEventCreate(&graph.last, CU_EVENT_DEFAULT), CUDA_SUCCESS);
    CHECK_EQ(gpu.driver.api()->cuEventRecord(start, gpu.stream), CUDA_SUCCESS);
    CHECK_EQ(gpu.replay(graph, 1, is_observed), is_observed);
    gpu.collect();
    return gpu.driver.event_time_ns(graph.last) - gpu.driver.event_time_ns(start);
  };
  const int64_t plain_ns = took_ns(false);
  const int64_t observed_ns = took_ns(true);
  CHECK(observed_ns > plain_ns);
  CHECK_EQ(took_ns(false), plain_ns);
  gpu.weight = 1;  // so that the next is likely to be observed as well
  const uint64_t before = gpu.driver.calls("cuGraphNodeSetEnabled");
  for (int i = 0; i < 3; ++i) CHECK_EQ(took_ns(true), observed_ns);
  CHECK_EQ(gpu.driver.calls("cuGraphNodeSetEnabled"), before + 3);
  gpu.observer->release_executable(0, graph.number, true);
  CHECK_EQ(took_ns(false), plain_ns);
  CHECK_EQ(gpu.driver.misuses(), 0U);
}

TEST(rows_of_a_captured_batch_are_told_apart) {
  Gpu gpu;
  Graph graph = gpu.capture(1, 2, 4, true);
  for (auto& values : graph.values) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i / 5 + 1);
  }
  CHECK(gpu.replay(graph, 9));
  const auto made = gpu.collect();
  CHECK_EQ(made.size(), 8U);
  for (size_t i = 0; i < made.size(); ++i) {
    CHECK_EQ(made[i].site, 1 + i / 4);
    CHECK_EQ(made[i].row, static_cast<int32_t>(i % 4));
    CHECK_EQ(made[i].values.min(), static_cast<double>(i % 4 + 1));
    CHECK_EQ(made[i].values.max(), made[i].values.min());
  }
}

TEST(eager_launches_and_replays_come_in_the_order_in_which_they_were_made) {
  Gpu gpu;
  Graph graph = gpu.capture(3, 2);
  Gpu::fill(graph, 2);
  const std::vector<float> eager(10, 1.0F);
  const TensorView view = Gpu::matrix(eager, 1);
  bool is_read = false;
  CHECK(!gpu.observer->capture(gpu.place(), 1, view, false, is_read, gpu.reason));
  for (uint32_t step = 0; step < 40; ++step) {
    if (step % 2 == 0) {
      CHECK(gpu.replay(graph, step));
    } else {
      CHECK(gpu.observer->observe(gpu.place(), {step, 1, 1, 1.0}, view, false, gpu.reason));
    }
  }
  const auto made = gpu.collect(10'000'000);
  CHECK_EQ(made.size(), 60U);
  CHECK(std::is_sorted(made.begin(), made.end(),
                       [](const auto& a, const auto& b) { return a.step < b.step; }));
}

TEST(what_cannot_be_captured_is_said_or_counted_and_harms_no_capture) {
  Gpu gpu;
  const DriverApi& api = *gpu.driver.api();
  const std::vector<float> values(10, 1.0F);
  TensorView wide = Gpu::matrix(values, 1);
  wide.format = FloatFormat::kFloat64;
  wide.shape[1] = 5;
  wide.strides_bytes[1] = 8;
  bool is_read = true;
  const Graph whole = gpu.capture(1, 2, 1, false, [&] {
    CHECK(gpu.observer->capture(gpu.place(), 9, wide, false, is_read, gpu.reason));
    CHECK(!is_read);
    CHECK(gpu.reason.find("float64") != std::string::npos);
  });
  CHECK(gpu.replay(whole, 1));
  CHECK_EQ(gpu.collect().size(), 2U);
  gpu.driver.fail("cuLaunchKernel", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  const Graph part = gpu.capture(1, 3);
  CHECK(gpu.replay(part, 2));
  CHECK_EQ(gpu.collect().size(), 2U);
  CHECK_EQ(gpu.observer->losses().in_capture, 1U);
  // Nothing in it.
  CHECK_EQ(api.cuStreamBeginCapture_v2(gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK_EQ(gpu.observer->captured_graph(gpu.place()), 0U);
  // Nor is a replay observed on a stream that is being captured itself.
  CHECK(!gpu.observer->open_replay(gpu.place(), whole.number, {3, 0, 1, 1.0}));
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(gpu.stream, &graph), CUDA_SUCCESS);
  CHECK(gpu.collect().empty());
  CHECK(!gpu.observer->is_pending());
  CHECK_EQ(gpu.observer->losses().in_capture, 3U);
}

TEST(what_is_put_out_beside_a_captures_stream_is_counted_and_harms_no_capture) {
  Gpu gpu;
  const DriverApi& api = *gpu.driver.api();
  const std::vector<float> values(10, 1.0F);
  CUstream side = nullptr;
  api.cuStreamCreate(&side, CU_STREAM_NON_BLOCKING);
  bool is_read = false;
  const Graph graph = gpu.capture(1, 2, 1, false, [&] {
    gpu.driver.wait_for(side, gpu.stream);
    gpu.driver.wait_for(gpu.stream, side);
    CHECK(gpu.observer->capture({0, side}, 9, Gpu::matrix(values, 1), false, is_read, gpu.reason));
  });
  CHECK(is_read);
  CHECK(gpu.replay(graph, 1));
  CHECK_EQ(gpu.collect().size(), 2U);
  CHECK_EQ(gpu.observer->losses().in_capture, 2U);
}

TEST(a_replay_that_the_driver_refuses_gives_nothing_and_holds_up_nothing) {
  Gpu gpu;
  Graph graph = gpu.capture(1, 2);
  CHECK(gpu.observer->open_replay(gpu.place(), graph.number, {1, 0, 1, 1.0}));
  CHECK(!gpu.observer->open_replay(gpu.place(), graph.number, {1, 0, 1, 1.0}));  // inside it
  gpu.observer->close_replay(gpu.place(), graph.number, false);
  CHECK(gpu.replay(graph, 2));
  gpu.driver.fail("cuMemsetD32Async", CUDA_ERROR_INVALID_HANDLE);
  CHECK(!gpu.replay(graph, 3));
  CHECK(gpu.replay(graph, 4));
  const auto made = gpu.collect();
  CHECK_EQ(made.size(), 4U);
  CHECK_EQ(made.front().step, 2U);
  CHECK_EQ(made.back().step, 4U);
  CHECK_EQ(gpu.observer->losses().failed, 4U);
}

TEST(graphs_of_an_earlier_recording_write_nothing_into_a_later_one) {
  Gpu gpu;
  Graph before = gpu.capture(1, 2);
  CHECK(gpu.replay(before, 1));
  CHECK_EQ(gpu.collect().size(), 2U);
  gpu.observer = std::make_unique<GpuObserver>(gpu.devices, &FakeDriver::ticks);
  Graph after = gpu.capture(5, 1);
  CHECK_EQ(gpu.driver.calls("cuModuleLoadData"), 1U);  // the same memory
  gpu.replay(before, 2, false);
  CHECK(gpu.replay(after, 3));
  gpu.replay(before, 4, false);
  const auto made = gpu.collect();
  CHECK_EQ(made.size(), 1U);
  CHECK_EQ(made[0].site, 5U);
  CHECK_EQ(made[0].step, 3U);
  // Once half of what captures take is gone, the next recording gets new memory.
  for (size_t i = 0; i < GpuStats::kCaptured / 2; ++i) gpu.capture(1, 1);
  gpu.observer = std::make_unique<GpuObserver>(gpu.devices, &FakeDriver::ticks);
  CHECK(gpu.observer->prepare(0, gpu.reason));
  CHECK_EQ(gpu.driver.calls("cuModuleLoadData"), 2U);
}

TEST(graphs_beyond_what_there_is_room_for_are_counted) {
  Gpu gpu;
  for (size_t i = 0; i < GpuStats::kCaptured; ++i) CHECK(gpu.capture(1, 1).number != 0);
  const Graph none = gpu.capture(1, 1);
  CHECK_EQ(none.number, 0U);
  CHECK_EQ(gpu.observer->losses().no_room, 1U);
}

TEST(replays_with_more_results_than_a_ring_holds_are_whole) {
  Gpu gpu;
  Graph graph = gpu.capture(1, 40, 32, true);
  const size_t results = 40 * 32;
  CHECK(results > 2 * (size_t{1} << StatsDevices::kRecordsLog2));
  Gpu::fill(graph, 3);
  // Two of them may be under way, as of others.
  CHECK(gpu.replay(graph, 1));
  CHECK(gpu.replay(graph, 2));
  CHECK(!gpu.replay(graph, 3));
  const auto made = gpu.collect(10'000'000);
  CHECK_EQ(made.size(), 2 * results);
  for (size_t i = 0; i < made.size(); ++i) {
    CHECK_EQ(made[i].step, 1 + i / results);
    CHECK_EQ(made[i].site, 1 + i % results / 32);
    CHECK_EQ(made[i].row, static_cast<int32_t>(i % 32));
    CHECK_EQ(made[i].values.count(), 5U);
    CHECK_EQ(made[i].values.max(), 3.0);
  }
  CHECK_EQ(gpu.observer->losses().no_room, results);
  CHECK(gpu.replay(graph, 4));
  CHECK_EQ(gpu.collect(10'000'000).size(), results);
  // A graph captured later shares the rings, and so does the next recording.
  const uint64_t rings = gpu.driver.calls("cuMemHostRegister_v2");
  gpu.observer = std::make_unique<GpuObserver>(gpu.devices, &FakeDriver::ticks);
  Graph later = gpu.capture(1, 40, 32, true);
  CHECK(gpu.replay(later, 5));
  CHECK_EQ(gpu.collect(10'000'000).size(), results);
  CHECK_EQ(gpu.driver.calls("cuMemHostRegister_v2"), rings);
}

TEST(what_a_graph_has_beyond_all_rings_is_counted_and_the_rest_is_right) {
  Gpu gpu(2);
  const size_t most = GpuStats::kRings * 2;  // half of each
  Graph graph = gpu.capture(0, most + 3);
  CHECK_EQ(gpu.observer->losses().no_room, 3U);
  Gpu::fill(graph, 5);
  CHECK(gpu.replay(graph, 1));
  const auto made = gpu.collect(10'000'000);
  CHECK_EQ(made.size(), most);
  for (size_t i = 0; i < made.size(); ++i) CHECK_EQ(made[i].site, i);
}

TEST(a_ring_that_cannot_be_had_costs_only_what_it_was_for) {
  Gpu gpu(2);
  gpu.driver.fail("cuMemHostRegister_v2", CUDA_ERROR_OUT_OF_MEMORY);
  Graph graph = gpu.capture(0, 7);
  CHECK_EQ(gpu.observer->losses().no_room, 1U);
  Gpu::fill(graph, 5);
  CHECK(gpu.replay(graph, 1));
  CHECK_EQ(gpu.collect().size(), 6U);
}

// Graphs, eager launches, faults, streams that stall and a collector that is late, in any order:
// each replay gives each of its sites once, with what it found, or is counted.
TEST(every_observation_of_a_replay_is_right_or_counted) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    std::mt19937_64 random(seed);
    Gpu gpu(seed % 3 == 0 ? StatsDevices::kRecordsLog2 : 2 + static_cast<uint32_t>(seed % 4));
    std::vector<Graph> graphs;
    for (uint32_t i = 0; i < 4; ++i) {
      const auto rows = static_cast<int64_t>(1 + random() % 4);
      gpu.keeps = random() % 2 == 0;
      graphs.push_back(gpu.capture(10 * i, 1 + random() % 5, rows, random() % 2 == 0));
      Gpu::fill(graphs.back(), static_cast<float>(i + 1));
    }
    const std::vector<float> eager(30, 100.0F);
    std::vector<size_t> graph_of_step;  // as many are eager
    std::vector<Observation> made;
    uint64_t expected = 0;
    for (uint32_t step = 0; step < 200; ++step) {
      const size_t chosen = random() % (graphs.size() + 1);
      graph_of_step.push_back(chosen);
      if (random() % 20 == 0) {
        gpu.driver.fail(random() % 2 == 0 ? "cuMemsetD32Async" : "cuStreamIsCapturing",
                        CUDA_ERROR_INVALID_HANDLE);
      }
      if (chosen == graphs.size()) {
        CHECK(gpu.observer->observe(gpu.place(), {step, 99, 1, 1.0}, Gpu::matrix(eager, 1), false,
                                    gpu.reason));
        ++expected;
      } else {
        const Graph& graph = graphs[chosen];
        const bool is_observed = random() % 3 != 0;
        gpu.weight = 1 + static_cast<double>(random() % 2);
        if (random() % 20 == 0) gpu.driver.fail("cuGraphNodeSetEnabled", CUDA_ERROR_INVALID_HANDLE);
        gpu.replay(graph, step, is_observed);
        if (is_observed) expected += graph.values.size() * static_cast<size_t>(graph.rows);
      }
      switch (random() % 16) {
        case 0:
          gpu.turn_hold();
          break;
        case 1:
          gpu.driver.advance(12'000'000'000);
          gpu.collect_into(made);
          break;
        default:
          gpu.go_on(random, made);
      }
    }
    gpu.finish(made);
    uint32_t last = 0;
    for (const Observation& one : made) {
      CHECK(one.step >= last);
      last = one.step;
      const size_t from = graph_of_step.at(one.step);
      CHECK_EQ(one.site / 10, from == graphs.size() ? 9 : from);
      CHECK_EQ(one.values.max(), from == graphs.size() ? 100.0 : static_cast<double>(from + 1));
    }
    const ObservationLosses lost = gpu.observer->losses();
    CHECK_EQ(made.size() + lost.no_room + lost.in_capture + lost.late + lost.failed, expected);
    CHECK(made.size() > 10);
  }
}
