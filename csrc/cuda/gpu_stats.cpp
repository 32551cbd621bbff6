#include "cuda/gpu_stats.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

#include "core/slot_counts.h"
#include "cuda/driver_scope.h"
#include "cuda/kernel_memory.h"

namespace pertoken::cuda {
namespace {

uint64_t content_of(std::span<const uint64_t> record, StatsWord word) noexcept {
  return record[static_cast<size_t>(word)];
}

double double_of(std::span<const uint64_t> record, StatsWord high) noexcept {
  return std::bit_cast<double>(record[static_cast<size_t>(high)] << 32 |
                               record[static_cast<size_t>(high) + 1]);
}

float float_of(std::span<const uint64_t> record, StatsWord word) noexcept {
  return std::bit_cast<float>(static_cast<uint32_t>(content_of(record, word)));
}

size_t filled_slots(std::span<const uint64_t> header) noexcept {
  return static_cast<size_t>(content_of(header, StatsWord::kLaunch) >> 32);
}

size_t words_of_record(std::span<const uint64_t> header) noexcept {
  const size_t filled = filled_slots(header);
  return kStatsHeaderWords + (filled == kNoResult ? 0 : filled);
}

}  // namespace

ExpHistogram StatsResult::histogram(int scale, uint64_t repeats) const {
  if (scale > kSlotScale) {
    throw std::invalid_argument("tensors on a GPU are counted at scales up to 3");
  }
  const auto times = static_cast<double>(repeats);
  HistogramParts parts{.scale = scale,
                       .sum = sum * times,
                       .sum_sq = sum_sq * times,
                       .min = min + 0.0,  // not -0.0
                       .max = max + 0.0};
  for (const Filled& filled : slots) add_slot(parts, filled.slot, filled.count * repeats);
  return ExpHistogram(std::move(parts));
}

std::unique_ptr<GpuStats> GpuStats::make(const DriverApi& api, std::span<const std::byte> image,
                                         std::string& reason, uint32_t records_log2) {
  if (image.empty()) {
    reason = "this build has no kernels for GPUs";
    return nullptr;
  }
  std::unique_ptr<GpuStats> stats(new GpuStats(api, records_log2));
  const RelaxedCapture relaxed(api);
  if (const CUresult result = stats->set_up(image)) {
    reason = "the kernels cannot be set up on this GPU: " + error_text(api, result);
    return nullptr;
  }
  return stats;
}

GpuStats::~GpuStats() {
  for (auto& ring : rings_) delete ring.load(std::memory_order_relaxed);
}

CUresult GpuStats::set_up(std::span<const std::byte> image) {
  CUdevice device = 0;
  if (const CUresult result = api_.cuCtxGetDevice(&device)) return result;
  if (const CUresult result = api_.cuDeviceGetAttribute(
          &multiprocessors_, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device)) {
    return result;
  }
  CUmodule module = nullptr;
  if (const CUresult result = api_.cuModuleLoadData(&module, image.data())) return result;
  for (int format = 0; format < kFloatFormats; ++format) {
    const char* const name = stats_kernel_of(static_cast<FloatFormat>(format));
    if (name == nullptr) continue;
    auto& function = functions_[static_cast<size_t>(format)];
    if (const CUresult result = api_.cuModuleGetFunction(&function, module, name)) return result;
  }
  // The workspaces, the number of the next record of each ring behind them, and the words of
  // graphs.
  constexpr size_t kDeviceBytes =
      kWorkspaces * sizeof(StatsWorkspace) + kRings * sizeof(uint64_t) + kWords * sizeof(uint32_t);
  CUdeviceptr device_memory = 0;
  if (const CUresult result = make_zeroed_memory(api_, kDeviceBytes, device_memory)) return result;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  workspaces_ = reinterpret_cast<StatsWorkspace*>(device_memory);
  next_indices_ = reinterpret_cast<uint64_t*>(workspaces_ + kWorkspaces);
  words_ = reinterpret_cast<const uint32_t*>(next_indices_ + kRings);
  return open_ring(0);
}

CUresult GpuStats::open_ring(uint32_t ring) {
  auto& held = rings_[ring];
  if (held.load(std::memory_order_relaxed) != nullptr) return CUDA_SUCCESS;
  DeviceRing of_device{.words = nullptr,
                       .next_index = next_indices_ + ring,
                       .words_a_slot = kStatsRecordWords,
                       .capacity_log2 = records_log2_};
  DeviceRing read = of_device;
  const RelaxedCapture relaxed(api_);
  if (const CUresult result = make_pinned_words(api_, of_device, of_device.words, read.words)) {
    return result;
  }
  held.store(new ResultRing{of_device, TaggedReader(read, kStatsHeaderWords, &words_of_record)},
             std::memory_order_release);
  return CUDA_SUCCESS;
}

// Launches on a stream run one after the other, and so do those captured on one stream in one
// capture: each of these needs workspaces of its own, and, when it counts more rows than before,
// others.
CUresult GpuStats::find_workspaces(CUstream stream, uint32_t rows,
                                   StatsWorkspace*& workspaces) noexcept {
  workspaces = nullptr;
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  unsigned long long capture = 0;
  if (const CUresult result =
          api_.cuStreamGetCaptureInfo_v2(stream, &status, &capture, nullptr, nullptr, nullptr)) {
    return result;
  }
  unsigned long long number = reinterpret_cast<uintptr_t>(stream);
  if (status == CU_STREAM_CAPTURE_STATUS_INVALIDATED) {
    return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  }
  if (status == CU_STREAM_CAPTURE_STATUS_NONE) {
    // The driver's number of a stream: a handle may be that of an earlier one, which still runs.
    capture = 0;
    if (const CUresult result = api_.cuStreamGetId(stream, &number)) return result;
  }
  Owner* const found =
      capture == 0 ? streams_.find(number, capture) : captures_.find(number, capture);
  if (found == nullptr) return CUDA_SUCCESS;
  if (found->rows >= rows || hold_workspaces(*found, rows)) workspaces = workspaces_ + found->first;
  return CUDA_SUCCESS;
}

// The first ones in a row that nobody has. Doubled at least, where there is room, so that all that
// one stream ever had are fewer than twice what it needs.
bool GpuStats::hold_workspaces(Owner& owner, uint32_t rows) noexcept {
  const uint32_t wanted = std::bit_ceil(rows);
  for (uint32_t first = 0; first < kWorkspaces;) {
    uint32_t end = first;
    while (end < kWorkspaces && end - first < wanted && holders_[end] == 0) ++end;
    if (end - first >= rows) {
      owner.first = first;
      owner.rows = end - first;
      std::fill_n(holders_.begin() + first, owner.rows,
                  owner.capture == 0 ? kByStream : owner.capture);
      return true;
    }
    first = end + 1;
  }
  return false;
}

const uint32_t* GpuStats::take_word(unsigned long long capture,
                                    std::shared_ptr<const GraphLife> life) {
  take_back();
  if (graphs_.size() == kWords) return nullptr;
  while (taken_words_[next_word_]) next_word_ = (next_word_ + 1) % kWords;
  graphs_.push_back({capture, next_word_, std::move(life)});
  taken_words_.set(next_word_);
  const uint32_t* const word = words_ + next_word_;
  next_word_ = (next_word_ + 1) % kWords;
  return word;
}

// Of graphs that are gone. Their kernels left the workspaces as they found them.
void GpuStats::take_back() noexcept {
  std::erase_if(graphs_, [&](const HeldGraph& graph) {
    if (!graph.life->is_over()) return false;
    captures_.drop(graph.capture);
    std::replace(holders_.begin(), holders_.end(), graph.capture, 0ULL);
    taken_words_.reset(graph.word);
    return true;
  });
}

bool GpuStats::is_worn() noexcept {
  take_back();
  const auto free = static_cast<size_t>(std::count(holders_.begin(), holders_.end(), 0ULL));
  return free < kWorkspaces / 2 || captures_.count > kCaptured / 2 || graphs_.size() > kWords / 2;
}

CUresult GpuStats::launch(const StatsPlan& plan, FloatFormat format, CUstream stream,
                          uint32_t launch, const uint32_t* replay, uint32_t ring) noexcept {
  if (plan.blocks == 0) return CUDA_SUCCESS;
  StatsArgs args{};
  CUresult result = find_workspaces(stream, plan.rows, args.workspaces);
  if (result == CUDA_SUCCESS && args.workspaces == nullptr) {
    no_workspace_.fetch_add(1, std::memory_order_relaxed);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (result == CUDA_SUCCESS) {
    args.layout = plan.layout;
    args.carries = kSlotCarries;
    args.ring = rings_[ring].load(std::memory_order_relaxed)->of_device;
    args.replay = replay;
    args.launch = launch;
    args.format = format;
    void* parameters[] = {&args};
    result = api_.cuLaunchKernel(functions_[static_cast<size_t>(format)], plan.blocks, plan.rows, 1,
                                 kStatsThreads, 1, 1, 0, stream, parameters, nullptr);
  }
  if (result != CUDA_SUCCESS) not_launched_.fetch_add(1, std::memory_order_relaxed);
  return result;
}

bool GpuStats::take(StatsResult& result) {
  for (uint32_t number = 0; number < kRings; ++number) {
    ResultRing* const ring = rings_[number].load(std::memory_order_acquire);
    if (ring == nullptr || !take(*ring, result)) continue;
    result.ring = number;
    return true;
  }
  return false;
}

bool GpuStats::take(ResultRing& ring, StatsResult& result) {
  auto record = ring.reader.take();
  while (!record.empty() && filled_slots(record) == kNoResult) {
    ++discarded_;
    record = ring.reader.take();
  }
  if (record.empty()) return false;
  result.launch = static_cast<uint32_t>(content_of(record, StatsWord::kLaunch));
  result.row = static_cast<uint32_t>(content_of(record, StatsWord::kReplay) >> 32);
  result.replay = static_cast<uint32_t>(content_of(record, StatsWord::kReplay));
  result.sum = double_of(record, StatsWord::kSum);
  result.sum_sq = double_of(record, StatsWord::kSumSq);
  result.min = float_of(record, StatsWord::kMin);
  result.max = float_of(record, StatsWord::kMax);
  result.slots.clear();
  for (const uint64_t word : record.subspan(kStatsHeaderWords)) {
    result.slots.push_back(
        {static_cast<uint16_t>(word >> 32), static_cast<uint32_t>(word & 0xffffffffU)});
  }
  // As add_slot() likes them.
  const auto order = [](const StatsResult::Filled& filled) {
    return filled.slot >= kSubnormalSlots ? filled.slot - kSlots : int{filled.slot};
  };
  std::sort(result.slots.begin(), result.slots.end(),
            [&](const auto& a, const auto& b) { return order(a) < order(b); });
  return true;
}

StatsLosses GpuStats::losses() const noexcept {
  uint64_t lost = 0;
  for (const auto& held : rings_) {
    const ResultRing* ring = held.load(std::memory_order_acquire);
    if (ring != nullptr) lost += ring->reader.lost();
  }
  return {no_workspace_.load(std::memory_order_relaxed),
          not_launched_.load(std::memory_order_relaxed), lost, discarded_};
}

}  // namespace pertoken::cuda
