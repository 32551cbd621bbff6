#include "cuda/logit_device.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "cuda/driver_scope.h"
#include "cuda/kernel_memory.h"

namespace pertoken::cuda {
namespace {

size_t words_of_logit_record(std::span<const uint64_t>) noexcept { return kLogitRecordWords; }

constexpr uint64_t rounded_up(uint64_t bytes) noexcept {
  return (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
}
static_assert(sizeof(KeptRow) % kVectorBytes == 0, "copies behind them are aligned");

}  // namespace

LogitDevice::LogitDevice(const DriverApi& api, std::span<const std::byte> image, int ordinal)
    : api_(api) {
  if (image.empty()) throw GpuFailure("this build has no kernels for GPUs");
  CUresult result = CUDA_SUCCESS;
  context_ = open_context(api, ordinal, [&] {
    const RelaxedCapture relaxed(api);
    result = set_up(image);
    return result == CUDA_SUCCESS;
  });
  check_call(api, result, "the kernels cannot be set up on this GPU");
}

CUresult LogitDevice::set_up(std::span<const std::byte> image) {
  CUmodule module = nullptr;
  if (const CUresult result = api_.cuModuleLoadData(&module, image.data())) return result;
  if (const CUresult result = api_.cuModuleGetFunction(&read_, module, "pertoken_read_logits")) {
    return result;
  }
  if (const CUresult result = api_.cuModuleGetFunction(&tell_, module, "pertoken_tell_logits")) {
    return result;
  }
  CUdeviceptr next_index = 0;
  if (const CUresult result = make_zeroed_memory(api_, sizeof(uint64_t), next_index)) return result;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  ring_.next_index = reinterpret_cast<uint64_t*>(next_index);
  ring_.words_a_slot = kLogitRecordWords;
  ring_.capacity_log2 = kRecordsLog2;
  DeviceRing read = ring_;
  if (const CUresult result = make_pinned_words(api_, ring_, ring_.words, read.words)) {
    return result;
  }
  reader_ = std::make_unique<TaggedReader>(read, kLogitRecordWords, &words_of_logit_record);
  return CUDA_SUCCESS;
}

uint64_t LogitDevice::copy_bytes(const GpuLogitRows& rows) noexcept {
  // A row may begin up to a vector behind an aligned address.
  return rounded_up(uint64_t{rows.vocabulary} * static_cast<uint64_t>(bytes_of(rows.format))) +
         kVectorBytes;
}

uint64_t LogitDevice::slab_bytes(uint64_t rows, uint64_t copy_bytes, bool copied) noexcept {
  return rows * (sizeof(KeptRow) + (copied ? copy_bytes : 0));
}

LogitDevice::Slab* LogitDevice::take_slab(uint64_t bytes, unsigned long long stream) {
  const auto fitting = std::find_if(slabs_.begin(), slabs_.end(), [&](const auto& slab) {
    return !slab->is_taken && slab->stream == stream && slab->bytes >= bytes;
  });
  if (fitting != slabs_.end()) {
    (*fitting)->is_taken = true;
    return fitting->get();
  }
  // Few sizes, so that what one batch leaves serves another.
  const uint64_t rounded = std::bit_ceil(std::max(bytes, kLeastSlabBytes));
  if (bytes > kMostSlabBytes || slab_bytes_ + rounded > kMostSlabBytes) return nullptr;
  auto slab = std::make_unique<Slab>(Slab{0, rounded, stream, true});
  slabs_.reserve(slabs_.size() + 1);
  const RelaxedCapture relaxed(api_);
  if (api_.cuMemAlloc_v2(&slab->memory, rounded) != CUDA_SUCCESS) return nullptr;
  slab_bytes_ += rounded;
  slabs_.push_back(std::move(slab));
  return slabs_.back().get();
}

CUresult LogitDevice::read(const GpuLogitRows& rows, const Slab& slab, bool copied,
                           CUstream stream) noexcept {
  const uint64_t all = rows.addresses.size();
  LogitArgs args{};
  args.copy_bytes = copy_bytes(rows);
  args.stride_bytes = rows.stride_bytes;
  args.drafts = rows.drafts;
  args.places = rows.places;
  args.vocabulary = rows.vocabulary;
  args.format = rows.format;
  for (uint64_t first = 0; first < all; first += kLogitRows) {
    const uint64_t count = std::min<uint64_t>(all - first, kLogitRows);
    std::copy_n(rows.addresses.begin() + static_cast<std::ptrdiff_t>(first), count, args.rows);
    args.first = static_cast<uint32_t>(first);
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
    args.kept = reinterpret_cast<KeptRow*>(slab.memory) + first;
    if (copied) args.copies = slab.memory + all * sizeof(KeptRow) + first * args.copy_bytes;
    void* parameters[] = {&args};
    if (const CUresult result =
            api_.cuLaunchKernel(read_, static_cast<unsigned>(count), 1, 1, kLogitThreads, 1, 1, 0,
                                stream, parameters, nullptr)) {
      return result;
    }
  }
  return CUDA_SUCCESS;
}

CUresult LogitDevice::tell(TellArgs& args, CUstream stream) noexcept {
  args.ring = ring_;
  void* parameters[] = {&args};
  return api_.cuLaunchKernel(tell_, 1, 1, 1, kLogitRows, 1, 1, 0, stream, parameters, nullptr);
}

std::shared_ptr<LogitDevice> LogitDevices::take(int ordinal) {
  return spare_.take(ordinal, [&] { return std::make_shared<LogitDevice>(api_, image_, ordinal); });
}

void LogitDevices::give_back(int ordinal, std::shared_ptr<LogitDevice>&& device) {
  spare_.give_back(ordinal, std::move(device));
}

}  // namespace pertoken::cuda
