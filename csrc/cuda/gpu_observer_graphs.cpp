// Observing in captured graphs: what is captured, and the replays that are observed.
#include <algorithm>

#include "cuda/driver_scope.h"
#include "cuda/gpu_observer.h"
#include "cuda/stream_capture.h"

namespace pertoken::cuda {
bool GpuObserver::capture(const GpuPlace& place, uint32_t site, const TensorView& view, bool by_row,
                          bool& is_read, std::string& reason) {
  is_read = true;
  Device* device = device_of(place.device, reason);
  if (device == nullptr) return false;
  const DriverApi& api = pool_.api();
  const CurrentContext current(api, device->stats.context);
  CUresult result = current.result();
  if (result != CUDA_SUCCESS || stream_use(api, place.stream, result) == StreamUse::kRuns) {
    return false;
  }
  GpuStats& stats = *device->stats.stats;
  const auto plan = plan_stats(view, stats.multiprocessors(), reason, by_row);
  is_read = plan.has_value();
  if (!plan || plan->blocks == 0) return true;
  Loss loss = Loss::kInCapture;
  CapturedGraph* graph = graph_of_capture(*device, place.stream, loss);
  // Another stream may have been joined already by that of the capture; what came behind the join
  // would break the capture. Nor can it go beside what follows, which may overwrite the values.
  if (graph != nullptr && graph->origin == place.stream) {
    const auto number = static_cast<uint32_t>(graph->launches.size());
    uint32_t ring = 0;
    result = find_ring(*device, *graph, plan->rows, ring);
    if (result == CUDA_SUCCESS) {
      graph->kernels.reserve(number + 1);
      graph->launches.push_back({plan->repeats, site, plan->rows, graph->results, ring,
                                 by_row ? 0 : kAllRows, view.format});
      result = stats.launch(*plan, view.format, place.stream, number, graph->word, ring);
      if (result == CUDA_SUCCESS) {
        CapturePoint point;
        const bool is_told = find_point(api, place.stream, point) == CUDA_SUCCESS;
        graph->kernels.add(is_told ? point.only : nullptr);
        graph->results += plan->rows;
        graph->in_ring[ring] += plan->rows;
        graph->rings = std::max(graph->rings, ring + 1);
        return true;
      }
      graph->launches.pop_back();
    }
    loss = lost_.loss_of(*device, result);
  }
  lost_.count(loss, plan->rows);
  return true;
}

// Which ring the results of a launch come by: half of one is enough for a graph, so that two of its
// replays can be under way.
CUresult GpuObserver::find_ring(Device& device, const CapturedGraph& graph, uint32_t results,
                                uint32_t& ring) {
  GpuStats& stats = *device.stats.stats;
  for (ring = graph.rings == 0 ? 0 : graph.rings - 1; ring < GpuStats::kRings; ++ring) {
    const uint64_t before = graph.in_ring[ring];
    const uint64_t room = before == 0 ? stats.records() : stats.records() / 2;
    if (before + results <= room) return stats.open_ring(ring);
  }
  return CUDA_ERROR_OUT_OF_MEMORY;
}

// Made where there is none yet; nullptr, with the reason in `loss`, where none can be.
GpuObserver::CapturedGraph* GpuObserver::graph_of_capture(Device& device, CUstream stream,
                                                          Loss& loss) {
  CapturePoint point;
  if (find_point(pool_.api(), stream, point) != CUDA_SUCCESS) return nullptr;
  const auto known =
      std::find_if(device.graphs.begin(), device.graphs.end(),
                   [&](const auto& graph) { return graph->capture == point.capture; });
  if (known != device.graphs.end()) return known->get();
  forget_graphs(device);
  loss = Loss::kNoRoom;
  auto life = GraphLife::watch(pool_.api(), point.graph);
  const uint32_t* const word = device.stats.stats->take_word(point.capture, life);
  if (word == nullptr) return nullptr;
  auto graph = std::make_unique<CapturedGraph>(pool_.api(), word);
  graph->number = ++device.last_graph;
  graph->capture = point.capture;
  graph->origin = stream;
  graph->life = std::move(life);
  device.graphs.push_back(std::move(graph));
  return device.graphs.back().get();
}

// Those that nobody can replay any more, and of whose replays none is under way.
void GpuObserver::forget_graphs(Device& device) noexcept {
  std::erase_if(device.graphs, [](const auto& graph) {
    return graph->life->is_over() && !graph->is_open &&
           graph->announced == graph->settled.load(std::memory_order_acquire);
  });
}

GpuObserver::CapturedGraph* GpuObserver::find_graph(Device& device, uint32_t number) noexcept {
  const auto found =
      std::lower_bound(device.graphs.begin(), device.graphs.end(), number,
                       [](const auto& graph, uint32_t of) { return graph->number < of; });
  return found == device.graphs.end() || (*found)->number != number ? nullptr : found->get();
}

bool GpuObserver::has_captured(int device) const noexcept {
  const Device* known = devices_.find(device);
  return known != nullptr && !known->graphs.empty();
}

uint32_t GpuObserver::captured_graph(const GpuPlace& place) noexcept {
  if (!has_captured(place.device)) return 0;
  Device* device = devices_.find(place.device);
  const CurrentContext current(pool_.api(), device->stats.context);
  if (current.result() != CUDA_SUCCESS) return 0;
  CapturePoint point;
  if (find_point(pool_.api(), place.stream, point) != CUDA_SUCCESS) return 0;
  for (size_t i = device->graphs.size(); i-- > 0;) {
    const CapturedGraph& graph = *device->graphs[i];
    if (graph.capture == point.capture) return graph.results == 0 ? 0 : graph.number;
  }
  return 0;
}

// Not on a stream that is being captured itself: it would become a part of that graph.
template <typename Turn>
Loss GpuObserver::turn(Device& device, CUstream stream, Turn&& turn) noexcept {
  const DriverApi& api = pool_.api();
  const CurrentContext current(api, device.stats.context);
  CUresult result = current.result();
  if (result == CUDA_SUCCESS) {
    const StreamUse use = stream_use(api, stream, result);
    if (use == StreamUse::kCaptured || use == StreamUse::kBarred) return Loss::kInCapture;
  }
  if (result == CUDA_SUCCESS) result = turn();
  if (result == CUDA_SUCCESS) return Loss::kNone;
  return result == CUDA_ERROR_NOT_READY ? Loss::kNoRoom : lost_.loss_of(device, result);
}

bool GpuObserver::open_replay(const GpuPlace& place, uint32_t number,
                              const ObservationLabels& labels) noexcept {
  Device& device = *devices_.find(place.device);
  CapturedGraph* const known = find_graph(device, number);
  if (known == nullptr || known->is_open) return false;
  CapturedGraph& graph = *known;
  Message message{.ticks = 0,
                  .repeats = 1,
                  .weight = labels.weight,
                  .graph = &graph,
                  .launch = 0,
                  .step = labels.step,
                  .site = labels.site,
                  .rows = graph.results,
                  .row = kAllRows,
                  .device = static_cast<uint8_t>(place.device),
                  .kind = labels.kind,
                  .format = FloatFormat::kFloat32,
                  .loss = Loss::kNone,
                  .is_first = true,
                  .goes_on = false};
  if (!announce(device, message)) return false;
  ++graph.announced;
  const Loss loss = turn(device, place.stream, [&] {
    return graph.kernels.open(place.stream, word_of_launch(message.launch));
  });
  if (loss != Loss::kNone) {
    withdraw(message, loss);
    return false;
  }
  graph.replay = message.launch;
  graph.is_open = true;
  graph.stays_on = labels.weight == 1;
  return true;
}

void GpuObserver::close_replay(const GpuPlace& place, uint32_t number, bool is_launched) noexcept {
  Device& device = *devices_.find(place.device);
  CapturedGraph& graph = *find_graph(device, number);  // it is open, and so still there
  graph.is_open = false;
  const Loss loss =
      turn(device, place.stream, [&] { return graph.kernels.close(place.stream, graph.stays_on); });
  if (loss != Loss::kNone) device.is_switched_off = false;
  if (is_launched) return;
  Message none{};
  none.launch = graph.replay;
  withdraw(none, Loss::kFailed);
}

void GpuObserver::begin_launch(int number, uint32_t graph) noexcept {
  Device* device = devices_.find(number);
  CapturedGraph* known = device == nullptr ? nullptr : find_graph(*device, graph);
  if (known != nullptr) known->kernels.begin_launch();
}

void GpuObserver::end_launch(int number, uint32_t graph) noexcept {
  Device* device = devices_.find(number);
  CapturedGraph* known = device == nullptr ? nullptr : find_graph(*device, graph);
  if (known == nullptr || !known->kernels.end_launch()) return;
  const CurrentContext current(pool_.api(), device->stats.context);
  if (current.result() == CUDA_SUCCESS) known->kernels.rest_now();
}

void GpuObserver::hold_executable(int number, uint32_t graph, CUgraphExec executable) noexcept {
  with_graph(number, graph, [&](GraphSwitch& kernels) { kernels.hold_executable(executable); });
}

void GpuObserver::release_executable(int number, uint32_t graph, bool is_there) noexcept {
  with_graph(number, graph, [&](GraphSwitch& kernels) { kernels.release_executable(is_there); });
}

template <typename Use>
void GpuObserver::with_graph(int number, uint32_t graph, Use&& use) noexcept {
  Device* device = devices_.find(number);
  CapturedGraph* known = device == nullptr ? nullptr : find_graph(*device, graph);
  if (known == nullptr) return;
  const CurrentContext current(pool_.api(), device->stats.context);
  if (current.result() == CUDA_SUCCESS) use(known->kernels);
}

void GpuObserver::hand_over_replay(Pending& replay, ObservationIntake& into) {
  Message message = replay.message;
  size_t next = 0;
  for (const CapturedLaunch& launch : message.graph->launches) {
    message.site = launch.site;
    message.format = launch.format;
    for (uint32_t i = 0; i < launch.rows; ++i) {
      auto& values = replay.values[next++];
      const int32_t row = launch.row == kAllRows ? kAllRows : static_cast<int32_t>(i);
      if (values) hand_over(message, row, std::move(*values), into);
    }
  }
}

}  // namespace pertoken::cuda
