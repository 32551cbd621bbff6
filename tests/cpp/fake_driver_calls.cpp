// Devices, contexts, streams and events of the fake driver.
#include <algorithm>
#include <cmath>

#include "fake_driver.h"

namespace pertoken::testing {

using namespace cuda;

struct FakeCalls {
  static CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

  static CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
  }

  static CUresult cuGetErrorName(CUresult error, const char** name) {
    switch (error) {
      case CUDA_ERROR_OUT_OF_MEMORY:
        *name = "CUDA_ERROR_OUT_OF_MEMORY";
        return CUDA_SUCCESS;
      case CUDA_ERROR_ILLEGAL_ADDRESS:
        *name = "CUDA_ERROR_ILLEGAL_ADDRESS";
        return CUDA_SUCCESS;
      case CUDA_ERROR_CONTEXT_IS_DESTROYED:
        *name = "CUDA_ERROR_CONTEXT_IS_DESTROYED";
        return CUDA_SUCCESS;
      default:
        *name = nullptr;
        return CUDA_ERROR_INVALID_VALUE;
    }
  }
  static CUresult cuGetErrorString(CUresult error, const char** text) {
    return cuGetErrorName(error, text);
  }

  static CUresult cuDeviceGetCount(int* count) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuDeviceGetCount")) return result;
    *count = static_cast<int>(fake->contexts_.size());
    return CUDA_SUCCESS;
  }
  static CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuDeviceGet")) return result;
    if (ordinal < 0 || static_cast<size_t>(ordinal) >= fake->contexts_.size()) {
      return CUDA_ERROR_INVALID_DEVICE;
    }
    *device = ordinal;
    return CUDA_SUCCESS;
  }
  static CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    if (length > 0) std::strncpy(name, "Fake GPU", static_cast<size_t>(length));
    return CUDA_SUCCESS;
  }
  static CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    switch (attribute) {
      case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = 132;
        break;
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = 9;
        break;
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = 0;
        break;
      case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *value = 227 << 10;
        break;
    }
    return CUDA_SUCCESS;
  }

  static CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    const std::lock_guard lock(fake->mutex_);
    *flags = 0;
    *active = !fake->gone_.contains(device);
    return CUDA_SUCCESS;
  }
  static CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuDevicePrimaryCtxRetain")) return result;
    *context = fake->context(device);
    return CUDA_SUCCESS;
  }
  static CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) {
    const std::lock_guard lock(fake->mutex_);
    return fake->enter("cuDevicePrimaryCtxRelease_v2");
  }
  static CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = context_stack.empty() ? nullptr : context_stack.back();
    return CUDA_SUCCESS;
  }
  static CUresult cuCtxPushCurrent_v2(CUcontext context) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuCtxPushCurrent_v2")) return result;
    context_stack.push_back(context);
    const int device = fake->current_device();  // none: of a fake before this one
    if (device >= 0 && !fake->gone_.contains(device)) return CUDA_SUCCESS;
    context_stack.pop_back();
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  static CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    const std::lock_guard lock(fake->mutex_);
    if (context_stack.empty()) {
      fake->count_misuse();
      return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (context != nullptr) *context = context_stack.back();
    context_stack.pop_back();
    return CUDA_SUCCESS;
  }
  static CUresult cuCtxGetDevice(CUdevice* device) {
    const std::lock_guard lock(fake->mutex_);
    *device = fake->current_device();
    return *device < 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
  }

  static CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    const std::lock_guard lock(fake->mutex_);
    ++fake->calls_["cuThreadExchangeStreamCaptureMode"];
    std::swap(*mode, capture_mode);
    return CUDA_SUCCESS;
  }

  static CUresult cuStreamCreate(CUstream* stream, unsigned) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamCreate")) return result;
    const int device = fake->current_device();
    if (device < 0) return CUDA_ERROR_INVALID_CONTEXT;
    *stream = fake->new_handle<CUstream>();
    FakeDriver::Stream& made = fake->streams_[*stream];
    made.device = device;
    made.id = fake->next_id_++;
    return CUDA_SUCCESS;
  }
  static CUresult cuStreamDestroy_v2(CUstream stream) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamDestroy_v2")) return result;
    if (fake->streams_.erase(stream) == 1) return CUDA_SUCCESS;
    fake->count_misuse();
    return CUDA_ERROR_INVALID_HANDLE;
  }
  static CUresult cuStreamGetId(CUstream stream, unsigned long long* id) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamGetId")) return result;
    const FakeDriver::Stream* found = fake->find(stream);
    if (found == nullptr) {  // the driver follows the handle wherever it leads
      fake->count_misuse();
      return CUDA_ERROR_INVALID_HANDLE;
    }
    if (found->capture != CU_STREAM_CAPTURE_STATUS_NONE) {
      for (auto& [handle, other] : fake->streams_) {
        if (other.capture_id == found->capture_id) fake->invalidate(other);
      }
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    *id = found->id;
    return CUDA_SUCCESS;
  }
  static CUresult cuStreamQuery(CUstream stream) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamQuery")) return result;
    const FakeDriver::Stream* found = fake->find(stream);
    if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (fake->breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return !found->held && found->free_at_ns <= fake->now_ns() ? CUDA_SUCCESS
                                                               : CUDA_ERROR_NOT_READY;
  }
  // Takes the clock to the end of the stream's work. A held stream would never get there.
  static CUresult cuStreamSynchronize(CUstream stream) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamSynchronize")) return result;
    const FakeDriver::Stream* found = fake->find(stream);
    if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (fake->breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    fake->advance_locked(std::max<int64_t>(0, found->free_at_ns - fake->now_ns()));
    return CUDA_SUCCESS;
  }
  static CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamWaitEvent")) return result;
    FakeDriver::Stream* waiting = fake->find(stream);
    const FakeDriver::Event* awaited = fake->find(event);
    if (waiting == nullptr || awaited == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (awaited->in_capture) {
      fake->join_capture(*waiting, *awaited);
      return CUDA_SUCCESS;
    }
    if (awaited->recorded && awaited->time_ns != FakeDriver::kNever) {
      waiting->free_at_ns = std::max(waiting->free_at_ns, awaited->time_ns);
    }
    return CUDA_SUCCESS;
  }
  static CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamIsCapturing")) return result;
    const FakeDriver::Stream* found = fake->find(stream);
    if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    *status = found->capture;
    if (stream != nullptr) return CUDA_SUCCESS;
    const bool implicit =
        std::any_of(fake->streams_.begin(), fake->streams_.end(), [&](const auto& entry) {
          return entry.second.device == found->device &&
                 entry.second.capture != CU_STREAM_CAPTURE_STATUS_NONE;
        });
    return implicit ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
  }

  static CUresult cuEventCreate(CUevent* event, unsigned flags) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuEventCreate")) return result;
    const int device = fake->current_device();
    if (device < 0) return CUDA_ERROR_INVALID_CONTEXT;
    *event = fake->new_handle<CUevent>();
    FakeDriver::Event& made = fake->events_[*event];
    made.device = device;
    made.has_timing = (flags & CU_EVENT_DISABLE_TIMING) == 0;
    return CUDA_SUCCESS;
  }
  static CUresult cuEventDestroy_v2(CUevent event) {
    const std::lock_guard lock(fake->mutex_);
    const CUresult result = fake->enter("cuEventDestroy_v2");
    if (fake->events_.erase(event) == 1) return result;
    fake->count_misuse();
    return CUDA_ERROR_INVALID_HANDLE;
  }
  static CUresult cuEventRecord(CUevent event, CUstream stream) {
    return record("cuEventRecord", event, stream, CU_EVENT_RECORD_DEFAULT);
  }
  static CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
    return record("cuEventRecordWithFlags", event, stream, flags);
  }
  static CUresult record(const char* symbol, CUevent event, CUstream stream, unsigned flags) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter(symbol)) return result;
    FakeDriver::Event* recorded = fake->find(event);
    FakeDriver::Stream* target = fake->find(stream);
    if (recorded == nullptr) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (target == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (recorded->device != target->device) return CUDA_ERROR_INVALID_HANDLE;
    if (target->capture == CU_STREAM_CAPTURE_STATUS_INVALIDATED) {
      return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (target->capture == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
      if ((flags & CU_EVENT_RECORD_EXTERNAL) == 0) {
        recorded->in_capture = true;
        recorded->capture_id = target->capture_id;
        recorded->behind = target->behind;
        return CUDA_SUCCESS;
      }
      FakeWork work;
      work.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD;
      work.event = event;
      fake->capture(*target, std::move(work));
      return CUDA_SUCCESS;
    }
    if (stream == nullptr && captures_on(target->device)) {  // the legacy stream waits for all
      for (auto& [handle, other] : fake->streams_) {
        if (other.capture == CU_STREAM_CAPTURE_STATUS_ACTIVE) fake->invalidate(other);
      }
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    recorded->in_capture = false;
    FakeWork work;
    work.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD;
    work.event = event;
    fake->enqueue(*target, std::move(work), 0, fake->now_ns());
    return CUDA_SUCCESS;
  }
  static bool captures_on(int device) {
    return std::any_of(fake->streams_.begin(), fake->streams_.end(), [&](const auto& entry) {
      return entry.second.device == device &&
             entry.second.capture == CU_STREAM_CAPTURE_STATUS_ACTIVE;
    });
  }
  static CUresult cuEventQuery(CUevent event) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuEventQuery")) return result;
    const FakeDriver::Event* asked = fake->find(event);
    if (asked == nullptr) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (asked->in_capture) {
      fake->count_misuse();
      for (auto& [handle, stream] : fake->streams_) {
        if (stream.capture == CU_STREAM_CAPTURE_STATUS_ACTIVE) fake->invalidate(stream);
      }
      return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (fake->breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!asked->recorded) return CUDA_SUCCESS;
    return asked->time_ns <= fake->now_ns() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  }
  static CUresult cuEventSynchronize(CUevent event) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuEventSynchronize")) return result;
    const FakeDriver::Event* awaited = fake->find(event);
    if (awaited == nullptr) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (fake->breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    fake->advance_locked(std::max<int64_t>(0, awaited->time_ns - fake->now_ns()));
    return CUDA_SUCCESS;
  }
  static CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuEventElapsedTime")) return result;
    const FakeDriver::Event* first = fake->find(start);
    const FakeDriver::Event* second = fake->find(end);
    if (first == nullptr || second == nullptr) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    const bool usable = first->recorded && second->recorded && !first->in_capture &&
                        !second->in_capture && first->has_timing && second->has_timing &&
                        first->device == second->device;
    if (!usable) {
      fake->count_misuse();
      return CUDA_ERROR_INVALID_HANDLE;
    }
    const int64_t now = fake->now_ns();
    if (first->time_ns > now || second->time_ns > now) return CUDA_ERROR_NOT_READY;
    const int64_t difference = fake->device_ns(second->time_ns) - fake->device_ns(first->time_ns);
    *milliseconds = static_cast<float>(static_cast<double>(difference) * 1e-6);
    return CUDA_SUCCESS;
  }
};

void fill_calls(DriverApi& api) {
#define FILL(symbol) api.symbol = &FakeCalls::symbol;
  FILL(cuInit)
  FILL(cuDriverGetVersion)
  FILL(cuGetErrorName)
  FILL(cuGetErrorString)
  FILL(cuDeviceGetCount)
  FILL(cuDeviceGet)
  FILL(cuDeviceGetName)
  FILL(cuDeviceGetAttribute)
  FILL(cuDevicePrimaryCtxGetState)
  FILL(cuDevicePrimaryCtxRetain)
  FILL(cuDevicePrimaryCtxRelease_v2)
  FILL(cuCtxGetCurrent)
  FILL(cuCtxPushCurrent_v2)
  FILL(cuCtxPopCurrent_v2)
  FILL(cuCtxGetDevice)
  FILL(cuThreadExchangeStreamCaptureMode)
  FILL(cuStreamCreate)
  FILL(cuStreamDestroy_v2)
  FILL(cuStreamGetId)
  FILL(cuStreamQuery)
  FILL(cuStreamSynchronize)
  FILL(cuStreamWaitEvent)
  FILL(cuStreamIsCapturing)
  FILL(cuEventCreate)
  FILL(cuEventDestroy_v2)
  FILL(cuEventRecord)
  FILL(cuEventRecordWithFlags)
  FILL(cuEventQuery)
  FILL(cuEventSynchronize)
  FILL(cuEventElapsedTime)
#undef FILL
}

}  // namespace pertoken::testing
