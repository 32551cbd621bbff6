#include "cuda/kernel_memory.h"

#include <sys/mman.h>

namespace pertoken::cuda {

CUresult make_zeroed_memory(const DriverApi& api, size_t bytes, CUdeviceptr& memory) {
  if (const CUresult result = api.cuMemAlloc_v2(&memory, bytes)) return result;
  CUstream stream = nullptr;
  if (const CUresult result = api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING)) return result;
  CUresult result = api.cuMemsetD8Async(memory, 0, bytes, stream);
  if (result == CUDA_SUCCESS) result = api.cuStreamSynchronize(stream);
  api.cuStreamDestroy_v2(stream);
  return result;
}

CUresult make_pinned_words(const DriverApi& api, const DeviceRing& ring, uint64_t*& of_device,
                           uint64_t*& of_host) {
  const size_t bytes = (size_t{ring.words_a_slot} * sizeof(uint64_t)) << ring.capacity_log2;
  void* const host =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (host == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  if (const CUresult result = api.cuMemHostRegister_v2(
          host, bytes, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP)) {
    munmap(host, bytes);
    return result;
  }
  of_host = static_cast<uint64_t*>(host);
  CUdeviceptr mapped = 0;
  if (const CUresult result = api.cuMemHostGetDevicePointer_v2(&mapped, host, 0)) return result;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  of_device = reinterpret_cast<uint64_t*>(mapped);
  return CUDA_SUCCESS;
}

}  // namespace pertoken::cuda
