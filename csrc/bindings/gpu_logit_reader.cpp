#include "bindings/gpu_logit_reader.h"

#include <limits>

#include "bindings/current_stream.h"
#include "bindings/host_tensor.h"
#include "bindings/stats_devices.h"

namespace pertoken::bindings {

namespace {

constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

}  // namespace

cuda::GpuLogits* GpuLogitReader::gpus(std::string& reason) {
  if (gpus_ == nullptr) {
    cuda::LogitDevices* devices = logit_devices(reason);
    if (devices == nullptr) return nullptr;
    auto made = std::make_shared<cuda::GpuLogits>(*devices);
    recorder_.set_logit_source(made);
    gpus_ = std::move(made);
  }
  return gpus_.get();
}

void GpuLogitReader::prepare(int device) {
  std::string reason;
  if (cuda::GpuLogits* logits = gpus(reason)) logits->prepare(device, reason);
}

bool GpuLogitReader::find_stream(cuda::GpuPlace& place, std::string& reason) {
  return find_current_stream(current_stream_, recorder_, place, reason);
}

bool GpuLogitReader::read(const TensorView& view, const cuda::GpuPlace& place, int64_t places,
                          const cuda::DeviceTokens& drafts, bool copied, GpuLogitStep& step,
                          std::string& reason) {
  cuda::GpuLogits* logits = gpus(reason);
  if (logits == nullptr) return false;
  if (view.shape[2] > kMostTokens) {
    reason = "a vocabulary of 2^31 tokens or more";
    return false;
  }
  const cuda::GpuLogitRows rows{.addresses = step.addresses,
                                .stride_bytes = view.strides_bytes[2],
                                .vocabulary = static_cast<uint32_t>(view.shape[2]),
                                .format = view.format,
                                .places = static_cast<uint32_t>(places),
                                .drafts = drafts};
  if (!logits->read(place, rows, copied, step.kept, reason)) return false;
  if (copied && !step.kept.has_copies()) {
    reason = "no room on the GPU to keep them until the token is known";
  }
  return true;
}

bool GpuLogitReader::tell(const GpuLogitStep& step, const LogitStep& of,
                          const cuda::DeviceTokens& fed, std::string& reason) {
  cuda::GpuPlace place{step.kept.device(), nullptr};
  return step.tokens.empty() ||
         (find_stream(place, reason) &&
          gpus_->tell(place, step.kept, of.step, of.weight, step.tokens, fed, reason));
}

int32_t told_token(int64_t token) noexcept {
  return token < 0 || token > kMostTokens ? cuda::kUnknownToken : static_cast<int32_t>(token);
}

cuda::DeviceTokens tokens_on_gpu(PyObject* ids, int device, int64_t rows, int64_t first,
                                 int64_t columns) {
  TensorView view;
  int64_t value_bytes = 0;
  int at = -1;
  if (!view_gpu_integers(ids, view, value_bytes, at) || at != device) return kNoTokens;
  if (view.dims != 1 && view.dims != 2) return kNoTokens;
  const auto last = static_cast<size_t>(view.dims - 1);
  if ((last == 0 ? 1 : view.shape[0]) != rows || first < 0 || columns < 1 ||
      first + columns > view.shape[last]) {
    return kNoTokens;
  }
  const int64_t column_bytes = view.strides_bytes[last];
  const uint64_t address =
      reinterpret_cast<uintptr_t>(view.data) + static_cast<uint64_t>(first * column_bytes);
  if (address % static_cast<uint64_t>(value_bytes) != 0) return kNoTokens;
  return {.address = address,
          .row_bytes = last == 0 ? 0 : view.strides_bytes[0],
          .column_bytes = column_bytes,
          .value_bytes = static_cast<uint32_t>(value_bytes)};
}

}  // namespace pertoken::bindings
