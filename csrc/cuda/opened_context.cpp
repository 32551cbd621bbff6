#include "cuda/opened_context.h"

#include <string>

#include "cuda/driver_scope.h"

namespace pertoken::cuda {

void check_call(const DriverApi& api, CUresult result, const char* what) {
  if (result != CUDA_SUCCESS) throw GpuFailure(std::string(what) + ": " + error_text(api, result));
}

CUcontext open_context(const DriverApi& api, int ordinal, const std::function<bool()>& set_up) {
  check_call(api, api.cuInit(0), "the CUDA driver does not start");
  CUdevice device = 0;
  check_call(api, api.cuDeviceGet(&device, ordinal), "there is no such GPU");
  unsigned flags = 0;
  int is_active = 0;
  check_call(api, api.cuDevicePrimaryCtxGetState(device, &flags, &is_active),
             "the GPU is not there");
  if (is_active == 0) throw GpuFailure("nobody uses this GPU yet, so no tensor can be on it");
  CUcontext context = nullptr;
  check_call(api, api.cuDevicePrimaryCtxRetain(&context, device), "the GPU's context is gone");
  const CurrentContext current(api, context);
  check_call(api, current.result(), "the GPU's context cannot be used");
  if (!set_up()) api.cuDevicePrimaryCtxRelease_v2(device);
  return context;
}

}  // namespace pertoken::cuda
