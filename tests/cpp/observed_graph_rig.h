// Captures and replays of observed graphs over the fake driver.
#pragma once

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda/gpu_observer.h"
#include "observer_rig.h"

namespace pertoken::testing {

struct ObservedGraph {
  cuda::CUgraphExec exec = nullptr;
  cuda::CUgraph graph = nullptr;  // where it is kept, and its executable held by the observer
  uint32_t number = 0;
  std::set<const void*> held;    // its word and its workspaces
  cuda::CUevent last = nullptr;  // behind its last replay
  // What its launches read, each a matrix.
  std::vector<std::vector<float>> values;
  int64_t rows = 1;
};

struct GraphRig : ObserverRig {
  bool keeps = false;  // graphs, from here on
  double weight = 4.0;

  explicit GraphRig(uint32_t records_log2 = cuda::StatsDevices::kRecordsLog2)
      : ObserverRig(1, records_log2) {
    CHECK(observer->prepare(0, reason));
  }
  ~GraphRig() { CHECK_EQ(driver.captures_broken(), 0U); }

  cuda::GpuPlace place() const { return {0, stream}; }
  static TensorView matrix(const std::vector<float>& values, int64_t rows) {
    return float32_matrix(reinterpret_cast<const std::byte*>(values.data()), values.size(), rows);
  }
  // Sites are numbered from `first_site` on; `between` is called in the capture.
  template <typename Between>
  ObservedGraph capture(uint32_t first_site, size_t sites, int64_t rows, bool by_row,
                        Between&& between) {
    ObservedGraph made;
    made.rows = by_row ? rows : 1;
    CHECK_EQ(driver.api()->cuStreamBeginCapture_v2(stream, cuda::CU_STREAM_CAPTURE_MODE_GLOBAL),
             cuda::CUDA_SUCCESS);
    for (size_t i = 0; i < sites; ++i) {
      made.values.emplace_back(static_cast<size_t>(rows) * 5);
      bool is_read = false;
      CHECK(observer->capture(place(), first_site + static_cast<uint32_t>(i),
                              matrix(made.values[i], rows), by_row, is_read, reason));
      CHECK(is_read);
      between();
    }
    made.number = observer->captured_graph(place());
    cuda::CUgraph graph = nullptr;
    CHECK_EQ(driver.api()->cuStreamEndCapture(stream, &graph), cuda::CUDA_SUCCESS);
    CHECK_EQ(driver.api()->cuGraphInstantiateWithFlags(&made.exec, graph, 0), cuda::CUDA_SUCCESS);
    made.held = held_by(graph);
    CHECK_EQ(driver.api()->cuEventCreate(&made.last, cuda::CU_EVENT_DEFAULT), cuda::CUDA_SUCCESS);
    if (keeps) {
      made.graph = graph;
      observer->hold_executable(0, made.number, made.exec);
      return made;
    }
    // As torch does.
    CHECK_EQ(driver.api()->cuGraphDestroy(graph), cuda::CUDA_SUCCESS);
    return made;
  }
  std::set<const void*> held_by(cuda::CUgraph graph) {
    std::set<const void*> held;
    size_t count = 0;
    CHECK_EQ(driver.api()->cuGraphGetNodes(graph, nullptr, &count), cuda::CUDA_SUCCESS);
    std::vector<cuda::CUgraphNode> nodes(count);
    CHECK_EQ(driver.api()->cuGraphGetNodes(graph, nodes.data(), &count), cuda::CUDA_SUCCESS);
    for (const cuda::CUgraphNode node : nodes) {
      cuda::CUDA_KERNEL_NODE_PARAMS parameters;
      CHECK_EQ(driver.api()->cuGraphKernelNodeGetParams_v2(node, &parameters), cuda::CUDA_SUCCESS);
      cuda::StatsArgs args;
      std::memcpy(&args, parameters.kernelParams[0], sizeof(args));
      held.insert(args.replay);
      for (unsigned row = 0; row < parameters.gridDimY; ++row) held.insert(args.workspaces + row);
    }
    return held;
  }
  void drop(const ObservedGraph& graph) {
    if (graph.graph != nullptr) {
      observer->release_executable(0, graph.number, false);
      CHECK_EQ(driver.api()->cuGraphDestroy(graph.graph), cuda::CUDA_SUCCESS);
    }
    CHECK_EQ(driver.api()->cuGraphExecDestroy(graph.exec), cuda::CUDA_SUCCESS);
  }
  ObservedGraph capture(uint32_t first_site, size_t sites, int64_t rows = 1, bool by_row = false) {
    return capture(first_site, sites, rows, by_row, [] {});
  }
  // As a replay puts it there; once the device is done, since it reads the host's memory.
  static void fill(ObservedGraph& graph, float value) {
    for (auto& values : graph.values) std::fill(values.begin(), values.end(), value);
  }
  bool replay(const ObservedGraph& graph, uint32_t step, bool is_observed = true) {
    const bool is_open =
        is_observed && observer->open_replay(place(), graph.number, {step, 0, 1, weight});
    CHECK_EQ(driver.api()->cuGraphLaunch(graph.exec, stream), cuda::CUDA_SUCCESS);
    CHECK_EQ(driver.api()->cuEventRecord(graph.last, stream), cuda::CUDA_SUCCESS);
    if (is_open) observer->close_replay(place(), graph.number, true);
    return is_open;
  }
};

}  // namespace pertoken::testing
