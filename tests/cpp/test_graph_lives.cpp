// Observed graphs that come and go, over the fake driver: what one held serves others when nothing
// of it can run any more, and not before.
#include <atomic>
#include <memory>
#include <random>
#include <set>
#include <thread>
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

TEST(what_a_graph_held_serves_others_once_it_is_gone) {
  Gpu gpu;
  const uint64_t allocations = gpu.driver.calls("cuMemAlloc_v2");
  for (uint32_t step = 0; step < 3 * GpuStats::kWorkspaces; ++step) {
    Graph graph = gpu.capture(1, 1, 3, true);
    Gpu::fill(graph, static_cast<float>(step + 1));
    CHECK(gpu.replay(graph, step));
    const auto made = gpu.collect();
    CHECK_EQ(made.size(), 3U);
    for (const Observation& one : made) CHECK_EQ(one.values.max(), step + 1.0);
    gpu.drop(graph);
    // Whoever still knows it opens nothing, once it is taken back, and never another graph.
    if (step > 0) CHECK(!gpu.observer->open_replay(gpu.place(), graph.number - 1, {0, 0, 1, 1.0}));
  }
  CHECK_EQ(gpu.observer->losses().no_room, 0U);
  CHECK_EQ(gpu.driver.calls("cuMemAlloc_v2"), allocations);
  // The next recording has all of it.
  gpu.observer = std::make_unique<GpuObserver>(gpu.devices, &FakeDriver::ticks);
  CHECK(gpu.observer->prepare(0, gpu.reason));
  CHECK_EQ(gpu.driver.calls("cuModuleLoadData"), 1U);
  CHECK_EQ(gpu.driver.live_user_objects(), 0U);
}

TEST(what_a_graph_holds_stays_its_own_where_the_driver_cannot_tell_that_it_is_gone) {
  for (const char* refused : {"cuUserObjectCreate", "cuGraphRetainUserObject"}) {
    Gpu gpu;
    gpu.driver.fail(refused, CUDA_ERROR_NOT_FOUND, 1 << 20);
    std::set<const void*> held;
    for (uint32_t i = 0; i < GpuStats::kWorkspaces; ++i) {
      Graph graph = gpu.capture(1, 1);
      CHECK(gpu.replay(graph, i));
      CHECK_EQ(gpu.collect().size(), 1U);
      for (const void* one : graph.held) CHECK(held.insert(one).second);
      gpu.drop(graph);
    }
    CHECK_EQ(gpu.capture(1, 1).number, 0U);
    CHECK_EQ(gpu.observer->losses().no_room, 1U);
    CHECK_EQ(gpu.driver.live_user_objects(), 0U);
  }
}

// Graphs that come and go, also while their replays are under way: none is given what another may
// still write to, and each replay is right or counted.
TEST(graphs_that_come_and_go_share_nothing) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    std::mt19937_64 random(seed);
    Gpu gpu(6);
    std::vector<Graph> graphs;
    std::vector<Graph> dropped;  // whose replays may be under way
    std::vector<Observation> made;
    std::vector<float> value_of_step;
    uint64_t expected = 0;
    uint64_t captured = 0;
    const auto capture = [&] {
      gpu.keeps = random() % 2 == 0;
      Graph graph = gpu.capture(1, 1 + random() % 3, static_cast<int64_t>(1 + random() % 6), true);
      gpu.driver.advance(10'000);
      std::erase_if(dropped, [&](const Graph& other) {
        return gpu.driver.api()->cuEventQuery(other.last) == CUDA_SUCCESS;
      });
      for (const auto* known : {&graphs, &dropped}) {
        for (const Graph& other : *known) {
          for (const void* one : graph.held) CHECK(!other.held.contains(one));
        }
      }
      if (graph.number == 0) return;
      Gpu::fill(graph, static_cast<float>(++captured));
      graphs.push_back(std::move(graph));
    };
    for (uint32_t turn = 0; turn < 600; ++turn) {
      const size_t chosen = graphs.empty() ? 0 : random() % graphs.size();
      switch (random() % 8) {
        case 0:
        case 1:
          capture();
          break;
        case 2:
        case 3:
          if (graphs.empty()) break;
          gpu.drop(graphs[chosen]);
          dropped.push_back(std::move(graphs[chosen]));
          graphs.erase(graphs.begin() + static_cast<std::ptrdiff_t>(chosen));
          break;
        case 4:
          if (random() % 4 == 0) gpu.turn_hold();
          break;
        default: {
          if (graphs.empty()) break;
          const Graph& graph = graphs[chosen];
          const bool is_observed = random() % 3 != 0;
          const auto step = static_cast<uint32_t>(value_of_step.size());
          value_of_step.push_back(graph.values[0][0]);
          gpu.replay(graph, step, is_observed);
          if (is_observed) expected += graph.values.size() * static_cast<size_t>(graph.rows);
          gpu.go_on(random, made);
        }
      }
    }
    gpu.finish(made);
    for (const Observation& one : made) {
      CHECK_EQ(one.values.max(), static_cast<double>(value_of_step.at(one.step)));
    }
    const ObservationLosses lost = gpu.observer->losses();
    CHECK_EQ(made.size() + lost.no_room + lost.late, expected);
    CHECK(captured > GpuStats::kWorkspaces / 4);
    CHECK(made.size() > 100);
  }
}

TEST(a_collector_beside_graphs_that_come_and_go) {
  Gpu gpu;
  std::vector<Observation> made;
  std::atomic<bool> is_over{false};
  std::thread collector([&] {
    while (!is_over) gpu.collect_into(made);
  });
  constexpr uint32_t kGraphs = 300;
  for (uint32_t step = 0; step < kGraphs; ++step) {
    Graph graph = gpu.capture(1, 2);
    Gpu::fill(graph, static_cast<float>(step + 1));
    gpu.replay(graph, step);
    gpu.driver.advance(1'000'000);
    gpu.drop(graph);
  }
  is_over = true;
  collector.join();
  gpu.finish(made);
  for (const Observation& one : made) CHECK_EQ(one.values.max(), one.step + 1.0);
  const ObservationLosses lost = gpu.observer->losses();
  CHECK_EQ(made.size() + lost.no_room + lost.late, 2 * kGraphs);
}
