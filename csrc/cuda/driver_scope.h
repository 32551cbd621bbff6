// What a thread that is not the model's has to set up round its calls of the driver, and undo: the
// context that the calls are for, and a capture mode in which they cannot break somebody's stream
// capture.
#pragma once

#include "cuda/driver_api.h"

namespace pertoken::cuda {

// In relaxed mode no call of this thread invalidates a capture, whichever thread captures.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const DriverApi& api) noexcept : api_(api) {
    changed_ = api_.cuThreadExchangeStreamCaptureMode(&mode_) == CUDA_SUCCESS;
  }
  ~RelaxedCapture() {
    if (changed_) api_.cuThreadExchangeStreamCaptureMode(&mode_);
  }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const DriverApi& api_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
  bool changed_ = false;
};

// Makes a context current, unless it is.
class CurrentContext {
 public:
  CurrentContext(const DriverApi& api, CUcontext context) noexcept : api_(api) {
    CUcontext current = nullptr;
    result_ = api_.cuCtxGetCurrent(&current);
    if (result_ != CUDA_SUCCESS || current == context) return;
    result_ = api_.cuCtxPushCurrent_v2(context);
    pushed_ = result_ == CUDA_SUCCESS;
  }
  ~CurrentContext() {
    CUcontext popped = nullptr;
    if (pushed_) api_.cuCtxPopCurrent_v2(&popped);
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  CUresult result() const noexcept { return result_; }

 private:
  const DriverApi& api_;
  CUresult result_ = CUDA_SUCCESS;
  bool pushed_ = false;
};

}  // namespace pertoken::cuda
