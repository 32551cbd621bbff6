// Whether what is enqueued on a stream becomes a part of somebody's graph, and where in it. Any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/driver_api.h"

namespace pertoken::cuda {

enum class StreamUse : uint8_t {
  kRuns,      // now, or after what is enqueued there
  kCaptured,  // into a graph
  kBarred,    // the capture is broken; or the legacy stream, while any other is being captured
  kFailed,    // the driver cannot tell, see `result`
};

// Hot.
inline StreamUse stream_use(const DriverApi& api, CUstream stream, CUresult& result) noexcept {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  result = api.cuStreamIsCapturing(stream, &status);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) return StreamUse::kBarred;
  if (result != CUDA_SUCCESS) return StreamUse::kFailed;
  if (status == CU_STREAM_CAPTURE_STATUS_NONE) return StreamUse::kRuns;
  return status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? StreamUse::kCaptured : StreamUse::kBarred;
}

// What a stream that is being captured stands behind.
struct CapturePoint {
  unsigned long long capture = 0;
  CUgraph graph = nullptr;
  CUgraphNode only = nullptr;  // null where it is none, several, or an edge of another sort
};

// Cold. CUDA_ERROR_STREAM_CAPTURE_INVALIDATED where the stream is not being captured.
CUresult find_point(const DriverApi& api, CUstream stream, CapturePoint& point) noexcept;
// All that the next node on the stream depends on. Cold; throws std::bad_alloc.
CUresult find_dependencies(const DriverApi& api, CUstream stream, std::vector<CUgraphNode>& nodes);

}  // namespace pertoken::cuda
