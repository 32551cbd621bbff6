#include "cuda/gpu_histogram.h"

#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "cuda/driver_scope.h"

namespace pertoken::cuda {
namespace {

// Short against what a caller notices, long against a query of the stream.
constexpr std::chrono::microseconds kPause{20};
// Looks at the ring once the stream is done: more than the reader's patience with a record before.
constexpr int kLastLooks = 64;

}  // namespace

StatsDevice& GpuHistograms::device_of(int ordinal) {
  const auto known = devices_.find(ordinal);
  if (known != devices_.end()) return known->second;
  return devices_.emplace(ordinal, open_stats_device(api_, image_, ordinal, GpuStats::kRecordsLog2))
      .first->second;
}

ExpHistogram GpuHistograms::histogram(int device, CUstream stream, const TensorView& view,
                                      int scale) {
  ExpHistogram none(scale);
  if (scale > kSlotScale) {
    throw std::invalid_argument("tensors on a GPU are counted at scales up to 3");
  }
  const std::lock_guard lock(mutex_);
  StatsDevice& state = device_of(device);
  std::string reason;
  const auto plan = plan_stats(view, state.stats->multiprocessors(), reason);
  if (!plan) throw UnreadableTensor(reason);
  if (plan->blocks == 0) return none;
  const CurrentContext current(api_, state.context);
  check_call(api_, current.result(), "the GPU's context cannot be used");
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  check_call(api_, api_.cuStreamIsCapturing(stream, &capture), "the stream cannot be used");
  if (capture != CU_STREAM_CAPTURE_STATUS_NONE) {
    throw GpuFailure(
        "the stream is being captured into a CUDA graph, so the values are not there "
        "yet; count them outside the capture");
  }
  check_call(api_, state.stats->launch(*plan, view.format, stream, ++launch_),
             "the kernel was not launched");
  return wait(*state.stats, stream).histogram(scale, plan->repeats);
}

StatsResult GpuHistograms::wait(GpuStats& stats, CUstream stream) {
  const RelaxedCapture relaxed(api_);
  StatsResult result;
  CUresult state = CUDA_ERROR_NOT_READY;
  for (int looks = 0; looks < kLastLooks;) {
    // Others are of launches whose wait failed.
    while (stats.take(result)) {
      if (result.launch == launch_) return result;
    }
    if (state == CUDA_SUCCESS) {
      ++looks;
      continue;
    }
    state = api_.cuStreamQuery(stream);
    if (state == CUDA_SUCCESS) continue;
    if (state != CUDA_ERROR_NOT_READY) check_call(api_, state, "the GPU failed while it counted");
    std::this_thread::sleep_for(kPause);
  }
  throw GpuFailure("the GPU finished, but its result did not arrive");
}

}  // namespace pertoken::cuda
