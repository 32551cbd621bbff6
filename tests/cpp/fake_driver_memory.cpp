// Modules, kernels and memory of the fake driver. Device memory is host memory, so that kernels,
// which are C++ functions, and tests read it by its address.
#include "fake_driver.h"

namespace pertoken::testing {

using namespace cuda;

void FakeDriver::add_kernel(const std::string& name, FakeKernel kernel) {
  const std::lock_guard lock(mutex_);
  kernels_[name] = std::move(kernel);
}

size_t FakeDriver::live_allocations() {
  const std::lock_guard lock(mutex_);
  return allocations_.size();
}

struct FakeMemoryCalls {
  static CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuModuleLoadData")) return result;
    if (image == nullptr) return CUDA_ERROR_INVALID_IMAGE;
    if (fake->current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (fake->breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    *module = fake->new_handle<CUmodule>();
    fake->modules_.insert(*module);
    return CUDA_SUCCESS;
  }
  static CUresult cuModuleUnload(CUmodule module) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuModuleUnload")) return result;
    if (fake->modules_.erase(module) == 1) return CUDA_SUCCESS;
    fake->count_misuse();
    return CUDA_ERROR_INVALID_HANDLE;
  }
  static CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuModuleGetFunction")) return result;
    if (!fake->modules_.contains(module)) return CUDA_ERROR_INVALID_HANDLE;
    if (!fake->kernels_.contains(name)) return CUDA_ERROR_NOT_FOUND;
    *function = fake->new_handle<CUfunction>();
    fake->functions_[*function] = {name};
    return CUDA_SUCCESS;
  }
  static CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, CUmodule, const char*) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuModuleGetGlobal_v2")) return result;
    return CUDA_ERROR_NOT_FOUND;
  }
  static CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) {
    const std::lock_guard lock(fake->mutex_);
    return fake->enter("cuFuncSetAttribute");
  }
  static CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int,
                                                              size_t) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuOccupancyMaxActiveBlocksPerMultiprocessor")) {
      return result;
    }
    *blocks = 2;
    return CUDA_SUCCESS;
  }
  static CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                 unsigned grid_z, unsigned block_x, unsigned block_y,
                                 unsigned block_z, unsigned shared_bytes, CUstream stream,
                                 void** parameters, void**) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuLaunchKernel")) return result;
    const auto found = fake->functions_.find(function);
    FakeDriver::Stream* target = fake->find(stream);
    if (found == fake->functions_.end() || target == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    FakeWork work;
    work.function = function;
    work.grid[0] = grid_x;
    work.grid[1] = grid_y;
    work.grid[2] = grid_z;
    work.block[0] = block_x;
    work.block[1] = block_y;
    work.block[2] = block_z;
    work.shared_bytes = shared_bytes;
    size_t index = 0;
    for (const size_t bytes : fake->kernels_.at(found->second.name).parameter_bytes) {
      const auto* first = static_cast<const std::byte*>(parameters[index++]);
      work.parameters.emplace_back(first, first + bytes);
    }
    return submit(*target, std::move(work));
  }
  // Into the capture or, outside one, into the stream.
  static CUresult submit(FakeDriver::Stream& stream, FakeWork work) {
    if (stream.capture == CU_STREAM_CAPTURE_STATUS_INVALIDATED) {
      return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (stream.capture == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
      fake->capture(stream, std::move(work));
      return CUDA_SUCCESS;
    }
    const int64_t duration_ns = fake->duration_of(work);
    fake->enqueue(stream, std::move(work), duration_ns, fake->now_ns());
    return CUDA_SUCCESS;
  }

  static void* allocate(size_t bytes, bool is_host) {
    auto memory = std::make_unique<std::byte[]>(bytes);
    void* address = memory.get();
    fake->allocations_[reinterpret_cast<uintptr_t>(address)] = {std::move(memory), is_host};
    return address;
  }
  static CUresult free(uintptr_t address, bool is_host) {
    const auto found = fake->allocations_.find(address);
    if (found == fake->allocations_.end() || found->second.is_host != is_host) {
      fake->count_misuse();
      return CUDA_ERROR_INVALID_VALUE;
    }
    fake->allocations_.erase(found);
    return CUDA_SUCCESS;
  }
  static CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuMemAlloc_v2")) return result;
    if (fake->current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (fake->breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    *address = reinterpret_cast<uintptr_t>(allocate(bytes, false));
    return CUDA_SUCCESS;
  }
  static CUresult cuMemFree_v2(CUdeviceptr address) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuMemFree_v2")) return result;
    return free(static_cast<uintptr_t>(address), false);
  }
  static CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuMemHostAlloc")) return result;
    if (fake->current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (fake->breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    *address = allocate(bytes, true);
    return CUDA_SUCCESS;
  }
  static CUresult cuMemFreeHost(void* address) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuMemFreeHost")) return result;
    return free(reinterpret_cast<uintptr_t>(address), true);
  }
  static CUresult cuMemHostRegister_v2(void*, size_t, unsigned) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuMemHostRegister_v2")) return result;
    if (fake->current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    return fake->breaks_capture() ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
  }
  static CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* host, unsigned) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuMemHostGetDevicePointer_v2")) return result;
    *address = reinterpret_cast<uintptr_t>(host);
    return CUDA_SUCCESS;
  }

  static CUresult effect(const char* symbol, CUgraphNodeType type, CUstream stream,
                         std::function<void()> run) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter(symbol)) return result;
    FakeDriver::Stream* target = fake->find(stream);
    if (target == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    FakeWork work;
    work.type = type;
    work.effect = std::move(run);
    return submit(*target, std::move(work));
  }
  static void* pointer(CUdeviceptr address) {
    return reinterpret_cast<void*>(static_cast<uintptr_t>(address));
  }
  static CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes,
                                  CUstream stream) {
    return effect("cuMemsetD8Async", CU_GRAPH_NODE_TYPE_MEMSET, stream,
                  [=] { std::memset(pointer(address), value, bytes); });
  }
  static CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t words,
                                   CUstream stream) {
    return effect("cuMemsetD32Async", CU_GRAPH_NODE_TYPE_MEMSET, stream, [=] {
      auto* words_of = static_cast<unsigned*>(pointer(address));
      for (size_t i = 0; i < words; ++i) words_of[i] = value;
    });
  }
  static CUresult cuMemcpyDtoHAsync_v2(void* host, CUdeviceptr device, size_t bytes,
                                       CUstream stream) {
    return effect("cuMemcpyDtoHAsync_v2", CU_GRAPH_NODE_TYPE_MEMCPY, stream,
                  [=] { std::memcpy(host, pointer(device), bytes); });
  }
  static CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr device, const void* host, size_t bytes,
                                       CUstream stream) {
    return effect("cuMemcpyHtoDAsync_v2", CU_GRAPH_NODE_TYPE_MEMCPY, stream,
                  [=] { std::memcpy(pointer(device), host, bytes); });
  }
};

void fill_memory_calls(DriverApi& api) {
#define FILL(symbol) api.symbol = &FakeMemoryCalls::symbol;
  FILL(cuModuleLoadData)
  FILL(cuModuleUnload)
  FILL(cuModuleGetFunction)
  FILL(cuModuleGetGlobal_v2)
  FILL(cuFuncSetAttribute)
  FILL(cuOccupancyMaxActiveBlocksPerMultiprocessor)
  FILL(cuLaunchKernel)
  FILL(cuMemAlloc_v2)
  FILL(cuMemFree_v2)
  FILL(cuMemHostAlloc)
  FILL(cuMemFreeHost)
  FILL(cuMemHostRegister_v2)
  FILL(cuMemHostGetDevicePointer_v2)
  FILL(cuMemsetD8Async)
  FILL(cuMemsetD32Async)
  FILL(cuMemcpyDtoHAsync_v2)
  FILL(cuMemcpyHtoDAsync_v2)
#undef FILL
}

}  // namespace pertoken::testing
