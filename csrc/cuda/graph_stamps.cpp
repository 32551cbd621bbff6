#include "cuda/graph_stamps.h"

#include <algorithm>

#include "cuda/driver_scope.h"
#include "cuda/kernel_memory.h"

namespace pertoken::cuda {
namespace {

size_t words_of_stamp(std::span<const uint64_t>) noexcept { return kStampWords; }

// What a stream that is captured stands behind.
struct CapturePoint {
  unsigned long long capture = 0;
  CUgraphNode only = nullptr;  // null where it is none, several, or an edge of another sort
};

CUresult find_point(const DriverApi& api, CUstream stream, CapturePoint& point) noexcept {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUgraphNode* nodes = nullptr;
  size_t count = 0;
  CUresult result =
      api.cuStreamGetCaptureInfo_v2(stream, &status, &point.capture, nullptr, &nodes, &count);
  if (result != CUDA_SUCCESS) {
    // Edges with data, as of programmatic launches, cannot be told by this call; the rest can.
    count = 0;
    result =
        api.cuStreamGetCaptureInfo_v2(stream, &status, &point.capture, nullptr, nullptr, nullptr);
  }
  if (result != CUDA_SUCCESS) return result;
  if (status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  point.only = count == 1 ? nodes[0] : nullptr;
  return CUDA_SUCCESS;
}

}  // namespace

std::unique_ptr<GraphStamps> GraphStamps::make(const DriverApi& api,
                                               std::span<const std::byte> image,
                                               std::string& reason, uint32_t ring_log2) {
  if (image.empty()) {
    reason = "this build has no kernels for GPUs";
    return nullptr;
  }
  std::unique_ptr<GraphStamps> stamps(new GraphStamps(api));
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
  StampArgs args{ring_, reinterpret_cast<const uint32_t*>(words_) + graph, graph, ordinal};
  void* parameters[] = {&args};
  return api_.cuLaunchKernel(function_, 1, 1, 1, 1, 1, 1, 0, stream, parameters, nullptr);
}

CUresult GraphStamps::stamp(CUstream stream, StampId& stamp) {
  const std::lock_guard lock(mutex_);
  stamp = {};
  CapturePoint point;
  if (const CUresult result = find_point(api_, stream, point)) return result;
  auto graph = std::find_if(graphs_.begin(), graphs_.end(),
                            [&](const Graph& known) { return known.capture == point.capture; });
  if (graph == graphs_.end()) {
    if (graphs_.size() + 1 == kMaxGraphs) return CUDA_ERROR_OUT_OF_MEMORY;
    graph = graphs_.insert(graphs_.end(), Graph{point.capture, {}});
  }
  const auto number = static_cast<uint32_t>(graph - graphs_.begin()) + 1;
  auto& nodes = graph->nodes;
  if (!nodes.empty() && point.only != nullptr && point.only == nodes.back()) {
    stamp = {number, static_cast<uint32_t>(nodes.size()) - 1};
    return CUDA_SUCCESS;
  }
  if (nodes.size() == kMaxStamps) return CUDA_ERROR_OUT_OF_MEMORY;
  nodes.reserve(nodes.size() + 1);
  const auto ordinal = static_cast<uint32_t>(nodes.size());
  if (const CUresult result = launch(stream, number, ordinal)) return result;
  // Once it is launched, it is there, whether or not its node can be told.
  if (find_point(api_, stream, point) != CUDA_SUCCESS) point.only = nullptr;
  nodes.push_back(point.only);
  stamp = {number, ordinal};
  return CUDA_SUCCESS;
}

uint32_t GraphStamps::graph_of(CUstream stream) {
  const std::lock_guard lock(mutex_);
  CapturePoint point;
  if (find_point(api_, stream, point) != CUDA_SUCCESS) return 0;
  const auto graph = std::find_if(graphs_.begin(), graphs_.end(), [&](const Graph& known) {
    return known.capture == point.capture;
  });
  return graph == graphs_.end() ? 0 : static_cast<uint32_t>(graph - graphs_.begin()) + 1;
}

uint32_t GraphStamps::stamps_of(uint32_t graph) {
  const std::lock_guard lock(mutex_);
  return graph == 0 || graph > graphs_.size()
             ? 0
             : static_cast<uint32_t>(graphs_[graph - 1].nodes.size());
}

uint32_t GraphStamps::open_replay(uint32_t graph, CUstream stream, bool& opened) noexcept {
  Replays& replays = replays_[graph % kMaxGraphs];
  opened = false;
  if (replays.is_open) return replays.last;
  const uint32_t number = next_number(replays.last);
  if (set_word(graph, number, stream) != CUDA_SUCCESS) return 0;
  replays.last = number;
  opened = replays.is_open = true;
  return number;
}

void GraphStamps::close_replay(uint32_t graph, CUstream stream) noexcept {
  replays_[graph % kMaxGraphs].is_open = false;
  // Where the driver refuses, later replays write stamps that nobody awaits.
  static_cast<void>(set_word(graph, 0, stream));
}

void GraphStamps::subscribe(StampInbox* inbox) {
  const std::lock_guard lock(mutex_);
  inboxes_.push_back(inbox);
}

void GraphStamps::unsubscribe(StampInbox* inbox) noexcept {
  const std::lock_guard lock(mutex_);
  std::erase(inboxes_, inbox);
}

void GraphStamps::read(StampInbox& inbox, std::vector<StampInbox::Stamp>& stamps) {
  const std::lock_guard lock(mutex_);
  for (auto record = reader_->take(); !record.empty(); record = reader_->take()) {
    const StampInbox::Stamp stamp{stamp_place(record[static_cast<size_t>(StampWord::kWhich)]),
                                  record[static_cast<size_t>(StampWord::kTime)]};
    for (StampInbox* other : inboxes_) {
      if (other->stamps.size() < kMaxWaiting) other->stamps.push_back(stamp);
    }
  }
  stamps.clear();
  std::swap(stamps, inbox.stamps);
}

CUresult GraphStamps::stamp_between(CUevent before, CUevent after, uint32_t& number) {
  const std::lock_guard lock(mutex_);
  number = last_between_ = next_number(last_between_);
  if (const CUresult result = set_word(0, number, own_stream_)) return result;
  if (const CUresult result = api_.cuEventRecord(before, own_stream_)) return result;
  if (const CUresult result = launch(own_stream_, 0, 0)) return result;
  if (const CUresult result = launch(own_stream_, 0, 1)) return result;
  return api_.cuEventRecord(after, own_stream_);
}

}  // namespace pertoken::cuda
