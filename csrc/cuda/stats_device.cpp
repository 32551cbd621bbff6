#include "cuda/stats_device.h"

#include <string>
#include <utility>

#include "cuda/driver_scope.h"

namespace pertoken::cuda {

void check_call(const DriverApi& api, CUresult result, const char* what) {
  if (result != CUDA_SUCCESS) throw GpuFailure(std::string(what) + ": " + error_text(api, result));
}

StatsDevice open_stats_device(const DriverApi& api, std::span<const std::byte> image, int ordinal,
                              uint32_t records_log2) {
  check_call(api, api.cuInit(0), "the CUDA driver does not start");
  CUdevice device = 0;
  check_call(api, api.cuDeviceGet(&device, ordinal), "there is no such GPU");
  unsigned flags = 0;
  int is_active = 0;
  check_call(api, api.cuDevicePrimaryCtxGetState(device, &flags, &is_active),
             "the GPU is not there");
  if (is_active == 0) throw GpuFailure("nobody uses this GPU yet, so no tensor can be on it");
  StatsDevice opened{};
  check_call(api, api.cuDevicePrimaryCtxRetain(&opened.context, device),
             "the GPU's context is gone");
  const CurrentContext current(api, opened.context);
  check_call(api, current.result(), "the GPU's context cannot be used");
  std::string reason;
  opened.stats = GpuStats::make(api, image, reason, records_log2);
  if (opened.stats == nullptr) {
    api.cuDevicePrimaryCtxRelease_v2(device);
    throw GpuFailure(reason);
  }
  return opened;
}

StatsDevice StatsDevices::take(int ordinal) {
  const std::lock_guard lock(mutex_);
  auto& spare = spare_[ordinal];
  if (spare.empty()) return open_stats_device(api_, image_, ordinal, kRecordsLog2);
  StatsDevice device = std::move(spare.back());
  spare.pop_back();
  return device;
}

void StatsDevices::give_back(int ordinal, StatsDevice&& device) {
  const std::lock_guard lock(mutex_);
  spare_[ordinal].push_back(std::move(device));
}

}  // namespace pertoken::cuda
