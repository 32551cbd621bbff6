#include "cuda/stream_capture.h"

namespace pertoken::cuda {

CUresult find_point(const DriverApi& api, CUstream stream, CapturePoint& point) noexcept {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUgraphNode* nodes = nullptr;
  size_t count = 0;
  CUresult result =
      api.cuStreamGetCaptureInfo_v2(stream, &status, &point.capture, &point.graph, &nodes, &count);
  if (result != CUDA_SUCCESS) {
    // Edges with data, as of programmatic launches, cannot be told by this call; the rest can.
    count = 0;
    result = api.cuStreamGetCaptureInfo_v2(stream, &status, &point.capture, &point.graph, nullptr,
                                           nullptr);
  }
  if (result != CUDA_SUCCESS) return result;
  if (status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  point.only = count == 1 ? nodes[0] : nullptr;
  return CUDA_SUCCESS;
}

CUresult find_dependencies(const DriverApi& api, CUstream stream, std::vector<CUgraphNode>& nodes) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUgraphNode* first = nullptr;
  size_t count = 0;
  const CUresult result =
      api.cuStreamGetCaptureInfo_v2(stream, &status, nullptr, nullptr, &first, &count);
  if (result != CUDA_SUCCESS) return result;
  if (status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  nodes.assign(first, first + count);  // the driver's list changes with the next node
  return CUDA_SUCCESS;
}

}  // namespace pertoken::cuda
