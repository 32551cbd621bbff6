#include "cuda/graph_switch.h"

namespace pertoken::cuda {

GraphSwitch::~GraphSwitch() {
  if (mark_ != nullptr) api_.cuEventDestroy_v2(mark_);
}

void GraphSwitch::hold_executable(CUgraphExec executable) noexcept {
  if (holders_++ != 0 && executable == executable_) return;
  executable_ = executable;
  state_ = executable == rested_ ? Nodes::kDisabled : Nodes::kEnabled;
  rested_ = nullptr;
  rests_later_ = cannot_rest_ = false;
  if (!is_open_) rest();
}

void GraphSwitch::release_executable(bool is_there) noexcept {
  if (holders_ == 0) return;
  --holders_;
  if (holders_ != 0) return;
  rests_later_ = false;
  if (is_there) rest();
  if (!rests_later_) forget_executable();
}

void GraphSwitch::forget_executable() noexcept {
  rested_ = state_ == Nodes::kDisabled ? executable_ : nullptr;
  executable_ = nullptr;
}

void GraphSwitch::rest_now() noexcept {
  rests_later_ = false;
  if (!is_open_) rest();
  if (holders_ == 0) forget_executable();
}

// Launches that are enqueued already keep the nodes that they had.
CUresult GraphSwitch::enable(bool on) noexcept {
  const Nodes wanted = on ? Nodes::kEnabled : Nodes::kDisabled;
  if (executable_ == nullptr || state_ == wanted) return CUDA_SUCCESS;
  for (CUgraphNode node : nodes_) {
    if (node == nullptr) continue;
    if (const CUresult result = api_.cuGraphNodeSetEnabled(executable_, node, on ? 1 : 0)) {
      state_ = Nodes::kMixed;
      return result;
    }
  }
  state_ = wanted;
  return CUDA_SUCCESS;
}

// What is written on the stream from here on comes behind the last replay that was opened.
CUresult GraphSwitch::follow_last(CUstream stream) noexcept {
  if (!was_opened_ || stream == last_stream_) return CUDA_SUCCESS;
  last_stream_ = stream;
  has_streams_ = true;
  if (is_marked_) return api_.cuStreamWaitEvent(stream, mark_, 0);
  // The replay that now goes unrecorded keeps the next one's word from the last one.
  rest();
  return CUDA_ERROR_NOT_READY;
}

void GraphSwitch::mark(CUstream stream) noexcept {
  is_marked_ = false;
  if (mark_ == nullptr && api_.cuEventCreate(&mark_, CU_EVENT_DISABLE_TIMING) != CUDA_SUCCESS) {
    mark_ = nullptr;
    return;
  }
  is_marked_ = api_.cuEventRecord(mark_, stream) == CUDA_SUCCESS;
}

CUresult GraphSwitch::open(CUstream stream, uint32_t value) noexcept {
  if (is_launched_elsewhere()) return CUDA_ERROR_NOT_READY;
  if (const CUresult result = follow_last(stream)) return result;
  if (const CUresult result = enable(true)) return result;
  if (const CUresult result = set_word(stream, value)) return result;
  last_stream_ = stream;
  was_opened_ = is_open_ = true;
  return CUDA_SUCCESS;
}

CUresult GraphSwitch::close(CUstream stream, bool stays_on) noexcept {
  is_open_ = false;
  const CUresult result = set_word(stream, 0);
  if (has_streams_) mark(stream);
  if (!stays_on) rest();
  return result;
}

void GraphSwitch::rest() noexcept {
  rests_later_ = state_ != Nodes::kDisabled && is_launched_elsewhere();
  if (rests_later_) return;
  if (!cannot_rest_) cannot_rest_ = enable(false) != CUDA_SUCCESS;
}

}  // namespace pertoken::cuda
