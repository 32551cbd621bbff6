#include "cuda/results_under_way.h"

namespace pertoken::cuda {
namespace {

constexpr double kLateNs = 10e9;

}  // namespace

Loss loss_by_now(bool was_alive, uint64_t ticks, uint64_t now, double ns_per_tick) noexcept {
  if (!was_alive) return Loss::kFailed;
  const double age_ns = static_cast<double>(now - ticks) * ns_per_tick;
  return now > ticks && age_ns > kLateNs ? Loss::kLate : Loss::kNone;
}

Loss LostResults::loss_of(ResultsUnderWay& device, CUresult result) noexcept {
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return Loss::kNoRoom;
    case CUDA_ERROR_STREAM_CAPTURE_IMPLICIT:
    case CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED:
      return Loss::kInCapture;
    default:
      break;
  }
  CUresult none = CUDA_SUCCESS;
  failure_.compare_exchange_strong(none, result, std::memory_order_relaxed);
  if (result != CUDA_ERROR_INVALID_HANDLE) device.is_alive.store(false, std::memory_order_release);
  return Loss::kFailed;
}

ObservationLosses LostResults::losses(const DriverApi& api) const {
  const auto lost = [&](Loss loss) {
    return counts_[static_cast<size_t>(loss)].load(std::memory_order_relaxed);
  };
  ObservationLosses losses{.no_room = lost(Loss::kNoRoom),
                           .in_capture = lost(Loss::kInCapture),
                           .late = lost(Loss::kLate),
                           .failed = lost(Loss::kFailed),
                           .failure = {}};
  const CUresult failure = failure_.load(std::memory_order_relaxed);
  if (failure != CUDA_SUCCESS) losses.failure = error_text(api, failure);
  return losses;
}

}  // namespace pertoken::cuda
