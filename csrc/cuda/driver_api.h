// The CUDA driver as a table of function pointers, loaded with dlopen when it is first asked for:
// nothing here needs cuda.h, the CUDA runtime, or a driver at build time, and a machine without one
// gets a reason in place of the table. Everything that talks to a GPU takes the table as an
// argument, so that a test can supply another one.
//
// Names, types and constants are those of the driver's interface. Types are opaque; of each group
// of constants only those used are declared. Functions are called under the name of the symbol that
// the library exports, versions included, since no header chooses one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pertoken::cuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUkernel = struct CUkern_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphNode = struct CUgraphNode_st*;
using CUgraphExec = struct CUgraphExec_st*;
using CUuserObject = struct CUuserObject_st*;
using CUhostFn = void (*)(void* of_user);

inline constexpr CUresult CUDA_SUCCESS = 0;
inline constexpr CUresult CUDA_ERROR_INVALID_VALUE = 1;
inline constexpr CUresult CUDA_ERROR_OUT_OF_MEMORY = 2;
inline constexpr CUresult CUDA_ERROR_NOT_INITIALIZED = 3;
inline constexpr CUresult CUDA_ERROR_DEINITIALIZED = 4;
inline constexpr CUresult CUDA_ERROR_INVALID_DEVICE = 101;
inline constexpr CUresult CUDA_ERROR_INVALID_IMAGE = 200;
inline constexpr CUresult CUDA_ERROR_INVALID_CONTEXT = 201;
inline constexpr CUresult CUDA_ERROR_INVALID_HANDLE = 400;
inline constexpr CUresult CUDA_ERROR_NOT_FOUND = 500;
inline constexpr CUresult CUDA_ERROR_NOT_READY = 600;
inline constexpr CUresult CUDA_ERROR_ILLEGAL_ADDRESS = 700;
inline constexpr CUresult CUDA_ERROR_CONTEXT_IS_DESTROYED = 709;
inline constexpr CUresult CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900;
inline constexpr CUresult CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901;
inline constexpr CUresult CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904;
inline constexpr CUresult CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906;
inline constexpr CUresult CUDA_ERROR_CAPTURED_EVENT = 907;

inline constexpr unsigned CU_EVENT_DEFAULT = 0;
inline constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
inline constexpr unsigned CU_EVENT_RECORD_DEFAULT = 0;
inline constexpr unsigned CU_EVENT_RECORD_EXTERNAL = 1;
inline constexpr unsigned CU_STREAM_NON_BLOCKING = 1;
inline constexpr unsigned CU_STREAM_SET_CAPTURE_DEPENDENCIES = 1;
inline constexpr unsigned CU_MEMHOSTALLOC_PORTABLE = 1;
inline constexpr unsigned CU_MEMHOSTALLOC_DEVICEMAP = 2;
inline constexpr unsigned CU_MEMHOSTREGISTER_PORTABLE = 1;
inline constexpr unsigned CU_MEMHOSTREGISTER_DEVICEMAP = 2;
inline constexpr unsigned CU_USER_OBJECT_NO_DESTRUCTOR_SYNC = 1;
inline constexpr unsigned CU_GRAPH_USER_OBJECT_MOVE = 1;

// As wide as the driver reads and writes them.
// NOLINTBEGIN(performance-enum-size)
enum CUstreamCaptureStatus : int {
  CU_STREAM_CAPTURE_STATUS_NONE = 0,
  CU_STREAM_CAPTURE_STATUS_ACTIVE = 1,
  CU_STREAM_CAPTURE_STATUS_INVALIDATED = 2
};
enum CUstreamCaptureMode : int {
  CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
  CU_STREAM_CAPTURE_MODE_RELAXED = 2
};
enum CUgraphNodeType : int {
  CU_GRAPH_NODE_TYPE_KERNEL = 0,
  CU_GRAPH_NODE_TYPE_MEMCPY = 1,
  CU_GRAPH_NODE_TYPE_MEMSET = 2,
  CU_GRAPH_NODE_TYPE_WAIT_EVENT = 6,
  CU_GRAPH_NODE_TYPE_EVENT_RECORD = 7
};
enum CUdevice_attribute : int {
  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
};
enum CUfunction_attribute : int { CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };
// NOLINTEND(performance-enum-size)

struct CUDA_KERNEL_NODE_PARAMS {  // version 2
  CUfunction func;
  unsigned gridDimX, gridDimY, gridDimZ;
  unsigned blockDimX, blockDimY, blockDimZ;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
  CUkernel kern;
  CUcontext ctx;
};

// X(symbol, arguments): every function of the table. All are there from CUDA 12.0 on.
// clang-format off
#define PERTOKEN_DRIVER_FUNCTIONS(X)                                                               \
  X(cuInit, (unsigned flags))                                                                      \
  X(cuDriverGetVersion, (int* version))                                                            \
  X(cuGetErrorName, (CUresult error, const char** name))                                           \
  X(cuGetErrorString, (CUresult error, const char** text))                                         \
  X(cuDeviceGetCount, (int* count))                                                                \
  X(cuDeviceGet, (CUdevice * device, int ordinal))                                                 \
  X(cuDeviceGetName, (char* name, int length, CUdevice device))                                    \
  X(cuDeviceGetAttribute, (int* value, CUdevice_attribute attribute, CUdevice device))             \
  X(cuDevicePrimaryCtxGetState, (CUdevice device, unsigned* flags, int* active))                   \
  X(cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                              \
  X(cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                               \
  X(cuCtxGetCurrent, (CUcontext * context))                                                        \
  X(cuCtxPushCurrent_v2, (CUcontext context))                                                      \
  X(cuCtxPopCurrent_v2, (CUcontext * context))                                                     \
  X(cuCtxGetDevice, (CUdevice * device))                                                           \
  X(cuStreamCreate, (CUstream * stream, unsigned flags))                                           \
  X(cuStreamDestroy_v2, (CUstream stream))                                                         \
  X(cuStreamGetId, (CUstream stream, unsigned long long* id))                                      \
  X(cuStreamQuery, (CUstream stream))                                                              \
  X(cuStreamSynchronize, (CUstream stream))                                                        \
  X(cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned flags))                           \
  X(cuStreamIsCapturing, (CUstream stream, CUstreamCaptureStatus * status))                        \
  X(cuStreamBeginCapture_v2, (CUstream stream, CUstreamCaptureMode mode))                          \
  X(cuStreamEndCapture, (CUstream stream, CUgraph * graph))                                        \
  X(cuStreamGetCaptureInfo_v2, (CUstream stream, CUstreamCaptureStatus * status,                   \
                                unsigned long long* id, CUgraph* graph,                            \
                                const CUgraphNode** dependencies, size_t* dependency_count))       \
  X(cuStreamUpdateCaptureDependencies, (CUstream stream, CUgraphNode * nodes, size_t count,        \
                                        unsigned flags))                                           \
  X(cuThreadExchangeStreamCaptureMode, (CUstreamCaptureMode * mode))                               \
  X(cuEventCreate, (CUevent * event, unsigned flags))                                              \
  X(cuEventDestroy_v2, (CUevent event))                                                            \
  X(cuEventRecord, (CUevent event, CUstream stream))                                               \
  X(cuEventRecordWithFlags, (CUevent event, CUstream stream, unsigned flags))                      \
  X(cuEventQuery, (CUevent event))                                                                 \
  X(cuEventSynchronize, (CUevent event))                                                           \
  X(cuEventElapsedTime, (float* milliseconds, CUevent start, CUevent end))                         \
  X(cuModuleLoadData, (CUmodule * module, const void* image))                                      \
  X(cuModuleUnload, (CUmodule module))                                                             \
  X(cuModuleGetFunction, (CUfunction * function, CUmodule module, const char* name))               \
  X(cuModuleGetGlobal_v2, (CUdeviceptr * address, size_t* bytes, CUmodule module,                  \
                           const char* name))                                                      \
  X(cuFuncSetAttribute, (CUfunction function, CUfunction_attribute attribute, int value))          \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int* blocks, CUfunction function,                \
                                                  int block_size, size_t shared_bytes))            \
  X(cuLaunchKernel, (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,       \
                     unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,  \
                     CUstream stream, void** parameters, void** extra))                            \
  X(cuMemAlloc_v2, (CUdeviceptr * address, size_t bytes))                                          \
  X(cuMemFree_v2, (CUdeviceptr address))                                                           \
  X(cuMemHostAlloc, (void** address, size_t bytes, unsigned flags))                                \
  X(cuMemFreeHost, (void* address))                                                                \
  X(cuMemHostRegister_v2, (void* host, size_t bytes, unsigned flags))                              \
  X(cuMemHostGetDevicePointer_v2, (CUdeviceptr * address, void* host, unsigned flags))             \
  X(cuMemsetD8Async, (CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream))    \
  X(cuMemsetD32Async, (CUdeviceptr address, unsigned value, size_t words, CUstream stream))        \
  X(cuMemcpyDtoHAsync_v2, (void* host, CUdeviceptr device, size_t bytes, CUstream stream))         \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr device, const void* host, size_t bytes, CUstream stream))   \
  X(cuGraphGetNodes, (CUgraph graph, CUgraphNode* nodes, size_t* count))                           \
  X(cuGraphNodeGetType, (CUgraphNode node, CUgraphNodeType * type))                                \
  X(cuGraphKernelNodeGetParams_v2, (CUgraphNode node, CUDA_KERNEL_NODE_PARAMS * parameters))       \
  X(cuGraphInstantiateWithFlags, (CUgraphExec * exec, CUgraph graph, unsigned long long flags))    \
  X(cuGraphNodeSetEnabled, (CUgraphExec exec, CUgraphNode node, unsigned enabled))                 \
  X(cuGraphNodeGetEnabled, (CUgraphExec exec, CUgraphNode node, unsigned* enabled))                \
  X(cuGraphLaunch, (CUgraphExec exec, CUstream stream))                                            \
  X(cuGraphExecDestroy, (CUgraphExec exec))                                                        \
  X(cuGraphDestroy, (CUgraph graph))                                                               \
  X(cuUserObjectCreate, (CUuserObject * object, void* of_user, CUhostFn destroy,                   \
                         unsigned references, unsigned flags))                                     \
  X(cuUserObjectRelease, (CUuserObject object, unsigned references))                               \
  X(cuGraphRetainUserObject, (CUgraph graph, CUuserObject object, unsigned references,             \
                              unsigned flags))
// clang-format on

struct DriverApi {
// NOLINTBEGIN(bugprone-macro-parentheses): these are declarators.
#define PERTOKEN_DECLARE_FUNCTION(symbol, arguments) CUresult(*symbol) arguments = nullptr;
  PERTOKEN_DRIVER_FUNCTIONS(PERTOKEN_DECLARE_FUNCTION)
#undef PERTOKEN_DECLARE_FUNCTION
  // NOLINTEND(bugprone-macro-parentheses)
};

struct DriverStatus {
  const DriverApi* api = nullptr;  // valid until the process ends; nullptr: absent, see `reason`
  std::string reason;              // a sentence for people; empty where the driver is there
};

// The driver of this process: asked for once, then remembered. A copy that torch has loaded is
// shared. Loading it starts nothing: no context is made, cuInit() is not called. Any thread.
DriverStatus driver();

// Puts another table in the driver's place, or gives the driver back with nullptr. For tests, which
// own the table and call this while nothing uses the one before.
void replace_driver(const DriverApi* api) noexcept;

// The table of the library at `path`. False, with the reason, where it is not there or is too old.
bool load_driver(const char* path, DriverApi& api, std::string& reason);

// For people: the driver's name of a result, such as CUDA_ERROR_ILLEGAL_ADDRESS, and its number.
std::string error_text(const DriverApi& api, CUresult result);

}  // namespace pertoken::cuda
