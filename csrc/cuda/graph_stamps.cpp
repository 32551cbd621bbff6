#include "cuda/graph_stamps.h"

#include <algorithm>

#include "cuda/driver_scope.h"
#include "cuda/kernel_memory.h"
#include "cuda/stream_capture.h"

namespace pertoken::cuda {
namespace {

size_t words_of_stamp(std::span<const uint64_t>) noexcept { return kStampWords; }

}  // namespace

std::unique_ptr<GraphStamps> GraphStamps::make(const DriverApi& api,
                                               std::span<const std::byte> image,
                                               std::string& reason, uint32_t ring_log2,
                                               uint32_t graphs) {
  if (image.empty()) {
    reason = "this build has no kernels for GPUs";
    return nullptr;
  }
  std::unique_ptr<GraphStamps> stamps(new GraphStamps(api, graphs));
  const RelaxedCapture relaxed(api);
  if (const CUresult result = stamps->set_up(image, ring_log2)) {
    reason = "the stamp kernel cannot be set up on this GPU: " + error_text(api, result);
    return nullptr;
  }
  return stamps;
}

CUresult GraphStamps::set_up(std::span<const std::byte> image, uint32_t ring_log2) {
  CUmodule module = nullptr;
  if (const CUresult result = api_.cuModuleLoadData(&module, image.data())) return result;
  if (const CUresult result = api_.cuModuleGetFunction(&function_, module, kStampKernel)) {
    return result;
  }
  // The words of the graphs behind the number of the next stamp.
  constexpr size_t kDeviceBytes = sizeof(uint64_t) + kMaxGraphs * sizeof(uint32_t);
  CUdeviceptr device_memory = 0;
  if (const CUresult result = make_zeroed_memory(api_, kDeviceBytes, device_memory)) return result;
  words_ = device_memory + sizeof(uint64_t);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  ring_.next_index = reinterpret_cast<uint64_t*>(device_memory);
  ring_.words_a_slot = kStampWords;
  ring_.capacity_log2 = ring_log2;
  // The process's own memory, which is there to be read even when the context was reset.
  DeviceRing read = ring_;
  if (const CUresult result = make_pinned_words(api_, ring_, ring_.words, read.words)) {
    return result;
  }
  reader_ = std::make_unique<TaggedReader>(read, kStampWords, &words_of_stamp);
  // Ordered with no other stream, so that neither waits for the other.
  return api_.cuStreamCreate(&own_stream_, CU_STREAM_NON_BLOCKING);
}

CUresult GraphStamps::launch(CUstream stream, uint32_t graph, uint32_t ordinal) noexcept {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  const auto* const words = reinterpret_cast<const uint32_t*>(words_);
  StampArgs args{ring_, words + word_of(graph), word_of(graph), ordinal};
  void* parameters[] = {&args};
  return api_.cuLaunchKernel(function_, 1, 1, 1, 1, 1, 1, 0, stream, parameters, nullptr);
}

GraphStamps::Graph* GraphStamps::find_capture(unsigned long long capture) noexcept {
  const auto graph = std::find_if(graphs_.begin(), graphs_.end(), [&](const Graph& known) {
    return known.life != nullptr && known.capture == capture;
  });
  return graph == graphs_.end() ? nullptr : &*graph;
}

GraphStamps::Graph* GraphStamps::find_graph(uint32_t number) noexcept {
  const uint32_t word = word_of(number);
  if (word == 0 || word > graphs_.size()) return nullptr;
  Graph& graph = graphs_[word - 1];
  return graph.number == number ? &graph : nullptr;
}

// With a number that nobody had, while there is one. nullptr where all are taken.
GraphStamps::Graph* GraphStamps::add_graph(unsigned long long capture, CUgraph of_driver,
                                           CUstream stream) {
  look_for_gone();
  Graph* graph = nullptr;
  if (graphs_.size() == most_graphs_) {
    graph = longest_gone();
    if (graph == nullptr) return nullptr;
  }
  const auto word =
      static_cast<uint32_t>(graph == nullptr ? graphs_.size() + 1 : word_of(graph->number));
  auto kernels = std::make_unique<GraphSwitch>(api_, words_ + word * sizeof(uint32_t));
  auto life = GraphLife::watch(api_, of_driver);
  if (graph == nullptr) {
    graph = &graphs_.emplace_back(Graph{.number = word});
  } else {
    graph->number += kMaxGraphs;
  }
  graph->capture = capture;
  graph->origin = stream;
  graph->life = std::move(life);
  replays_[word].graph = graph->number;
  replays_[word].kernels = std::move(kernels);
  return graph;
}

// From here on nobody opens a replay of one.
void GraphStamps::look_for_gone() {
  for (Graph& graph : graphs_) {
    Replays& replays = replays_[word_of(graph.number)];
    if (graph.life == nullptr || !graph.life->is_over() || replays.kernels->is_open()) continue;
    graph.horizons.reserve(subscribers_.size());
    for (const Subscriber& subscriber : subscribers_) {
      graph.horizons.push_back({subscriber.replays, subscriber.replays->pushed()});
    }
    graph.life = nullptr;
    graph.gone_nth = ++gone_;
    replays.graph = 0;
  }
}

// Of those whose replays nobody awaits. It is the one whose word is least likely to be written yet,
// by a stream that is held up; that would cost the new graph stamps.
GraphStamps::Graph* GraphStamps::longest_gone() noexcept {
  Graph* found = nullptr;
  for (Graph& graph : graphs_) {
    if (graph.life != nullptr) continue;
    std::erase_if(graph.horizons, [](const Horizon& horizon) { return horizon.is_reached(); });
    if (!graph.horizons.empty()) continue;
    if (found == nullptr || graph.gone_nth < found->gone_nth) found = &graph;
  }
  return found;
}

// A capture is broken where it ends before all its streams are joined, and what is captured last on
// another stream may come behind the join. So what that stream goes on with does not depend on the
// end of a call there: nobody need wait for it.
CUresult GraphStamps::stamp(CUstream stream, bool is_end, StampId& stamp) {
  const std::lock_guard lock(mutex_);
  stamp = {};
  CapturePoint point;
  if (const CUresult result = find_point(api_, stream, point)) return result;
  Graph* graph = find_capture(point.capture);
  if (graph == nullptr) graph = add_graph(point.capture, point.graph, stream);
  if (graph == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  GraphSwitch& kernels = *replays_[word_of(graph->number)].kernels;
  const auto& nodes = kernels.nodes();
  const auto count = static_cast<uint32_t>(nodes.size());
  if (count != 0 && point.only != nullptr && point.only == nodes.back()) {
    stamp = {graph->number, count - 1};
    return CUDA_SUCCESS;
  }
  if (count == kMaxStamps) return CUDA_ERROR_OUT_OF_MEMORY;
  kernels.reserve(count + 1);
  const bool is_leaf = is_end && stream != graph->origin;
  std::vector<CUgraphNode> before;
  if (is_leaf) {
    if (const CUresult result = find_dependencies(api_, stream, before)) return result;
  }
  if (const CUresult result = launch(stream, graph->number, count)) return result;
  // Once it is launched, it is there, whether or not its node can be told.
  if (find_point(api_, stream, point) != CUDA_SUCCESS) point.only = nullptr;
  kernels.add(point.only);
  if (is_leaf) {
    static_cast<void>(api_.cuStreamUpdateCaptureDependencies(stream, before.data(), before.size(),
                                                             CU_STREAM_SET_CAPTURE_DEPENDENCIES));
  }
  stamp = {graph->number, count};
  return CUDA_SUCCESS;
}

uint32_t GraphStamps::graph_of(CUstream stream) {
  const std::lock_guard lock(mutex_);
  CapturePoint point;
  if (find_point(api_, stream, point) != CUDA_SUCCESS) return 0;
  const Graph* graph = find_capture(point.capture);
  return graph == nullptr ? 0 : graph->number;
}

uint32_t GraphStamps::stamps_of(uint32_t graph) {
  const std::lock_guard lock(mutex_);
  const Graph* known = find_graph(graph);
  if (known == nullptr) return 0;
  return static_cast<uint32_t>(replays_[word_of(graph)].kernels->nodes().size());
}

OpenedReplay GraphStamps::open_replay(uint32_t graph, CUstream stream) noexcept {
  Replays& replays = replays_[word_of(graph)];
  if (is_gone(graph)) return {};
  if (replays.kernels->is_open()) return {.number = replays.last};
  const uint32_t number = next_number(replays.last);
  if (const CUresult result = replays.kernels->open(stream, number)) return {.result = result};
  replays.last = number;
  return {.number = number, .is_to_close = true};
}

void GraphStamps::close_replay(uint32_t graph, CUstream stream, bool stays_on) noexcept {
  // It was open, and so the word is the graph's still. Where the driver refuses, later replays
  // write stamps that nobody awaits.
  static_cast<void>(replays_[word_of(graph)].kernels->close(stream, stays_on));
}

void GraphStamps::hold_executable(uint32_t graph, CUgraphExec executable) noexcept {
  if (!is_gone(graph)) replays_[word_of(graph)].kernels->hold_executable(executable);
}

void GraphStamps::release_executable(uint32_t graph, bool is_there) noexcept {
  if (!is_gone(graph)) replays_[word_of(graph)].kernels->release_executable(is_there);
}

void GraphStamps::subscribe(StampInbox* inbox, const AnnouncedReplays* replays) {
  const std::lock_guard lock(mutex_);
  subscribers_.push_back({inbox, replays});
}

void GraphStamps::unsubscribe(StampInbox* inbox) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(subscribers_.begin(), subscribers_.end(),
                   [&](const Subscriber& subscriber) { return subscriber.inbox == inbox; });
  if (found == subscribers_.end()) return;
  for (Graph& graph : graphs_) {
    std::erase_if(graph.horizons,
                  [&](const Horizon& horizon) { return horizon.replays == found->replays; });
  }
  subscribers_.erase(found);
}

void GraphStamps::read(StampInbox& inbox, std::vector<StampInbox::Stamp>& stamps) {
  const std::lock_guard lock(mutex_);
  for (auto record = reader_->take(); !record.empty(); record = reader_->take()) {
    const StampInbox::Stamp stamp{stamp_place(record[static_cast<size_t>(StampWord::kWhich)]),
                                  record[static_cast<size_t>(StampWord::kTime)]};
    for (const Subscriber& other : subscribers_) {
      auto& waiting = other.inbox->stamps;
      if (waiting.size() < kMaxWaiting) waiting.push_back(stamp);
    }
  }
  stamps.clear();
  std::swap(stamps, inbox.stamps);
}

CUresult GraphStamps::stamp_between(CUevent before, CUevent after, uint32_t& number) {
  const std::lock_guard lock(mutex_);
  number = last_between_ = next_number(last_between_);
  if (const CUresult result = api_.cuMemsetD32Async(words_, number, 1, own_stream_)) {
    return result;
  }
  if (const CUresult result = api_.cuEventRecord(before, own_stream_)) return result;
  if (const CUresult result = launch(own_stream_, 0, 0)) return result;
  if (const CUresult result = launch(own_stream_, 0, 1)) return result;
  return api_.cuEventRecord(after, own_stream_);
}

}  // namespace pertoken::cuda
