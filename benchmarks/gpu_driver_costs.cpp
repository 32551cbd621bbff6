// What the driver's calls that time a GPU cost the host, and what an event costs the device: the
// figures that docs/gpu-timing.md lists as open. Prints one JSON object; where there is no GPU, why
// not. Medians of rounds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "cuda/driver_api.h"

namespace {

using namespace pertoken::cuda;

constexpr int kCalls = 200;
constexpr int kRounds = 50;

double now_ns() {
  return std::chrono::duration<double, std::nano>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Nanoseconds a call. What was enqueued is waited for between the rounds.
template <typename Call>
double cost_ns(const DriverApi& api, CUstream stream, Call&& call) {
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    const double start = now_ns();
    for (int i = 0; i < kCalls; ++i) call(i);
    rounds.push_back((now_ns() - start) / kCalls);
    api.cuStreamSynchronize(stream);
  }
  return median(rounds);
}

int absent(const char* why) {
  std::printf("{\"absent\": \"%s\"}\n", why);
  return 0;
}

// From before the record of an event on an idle stream until the host sees that it was reached.
double bracket_ns(const DriverApi& api, CUstream stream, CUevent event) {
  std::vector<double> widths;
  for (int i = 0; i < kRounds; ++i) {
    const double start = now_ns();
    api.cuEventRecord(event, stream);
    while (api.cuEventQuery(event) == CUDA_ERROR_NOT_READY) {
    }
    widths.push_back(now_ns() - start);
  }
  return median(widths);
}

// Device time between neighbours of a row of events: what one costs the stream.
double spacing_ns(const DriverApi& api, CUstream stream, const std::vector<CUevent>& events) {
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    for (CUevent event : events) api.cuEventRecord(event, stream);
    api.cuStreamSynchronize(stream);
    float milliseconds = 0;
    api.cuEventElapsedTime(&milliseconds, events.front(), events.back());
    rounds.push_back(1e6 * static_cast<double>(milliseconds) /
                     static_cast<double>(events.size() - 1));
  }
  return median(rounds);
}

}  // namespace

int main() {
  const DriverStatus status = driver();
  if (status.api == nullptr) return absent(status.reason.c_str());
  const DriverApi& api = *status.api;
  int count = 0;
  if (api.cuInit(0) != CUDA_SUCCESS || api.cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
    return absent("the driver finds no GPU");
  }
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUstream stream = nullptr;
  char name[128] = {};
  int version = 0;
  api.cuDeviceGet(&device, 0);
  api.cuDeviceGetName(name, sizeof name, device);
  api.cuDriverGetVersion(&version);
  if (api.cuDevicePrimaryCtxRetain(&context, device) != CUDA_SUCCESS ||
      api.cuCtxPushCurrent_v2(context) != CUDA_SUCCESS ||
      api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS) {
    return absent("the GPU gives no context");
  }
  std::vector<CUevent> events(kCalls);
  for (CUevent& event : events) api.cuEventCreate(&event, CU_EVENT_DEFAULT);
  const auto event_of = [&](int i) { return events[static_cast<size_t>(i)]; };

  std::printf("{\"gpu\": \"%s\", \"driver\": %d", name, version);
  const auto print = [](const char* key, double ns) { std::printf(", \"%s\": %.1f", key, ns); };
  print("event_record_ns",
        cost_ns(api, stream, [&](int i) { api.cuEventRecord(event_of(i), stream); }));
  print("event_query_ns", cost_ns(api, stream, [&](int i) { api.cuEventQuery(event_of(i)); }));
  float milliseconds = 0;
  print("elapsed_time_ns", cost_ns(api, stream, [&](int i) {
          api.cuEventElapsedTime(&milliseconds, events.front(), event_of(i));
        }));
  CUstreamCaptureStatus capture{};
  print("is_capturing_ns",
        cost_ns(api, stream, [&](int) { api.cuStreamIsCapturing(stream, &capture); }));
  CUcontext current = nullptr;
  print("get_current_ns", cost_ns(api, stream, [&](int) { api.cuCtxGetCurrent(&current); }));
  print("exchange_mode_ns", cost_ns(api, stream, [&](int) {
                              CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
                              api.cuThreadExchangeStreamCaptureMode(&mode);
                              api.cuThreadExchangeStreamCaptureMode(&mode);
                            }) / 2);
  print("anchor_bracket_ns", bracket_ns(api, stream, events.front()));
  print("event_on_device_ns", spacing_ns(api, stream, events));

  // The same events as nodes of a graph.
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  api.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  for (CUevent event : events) {
    api.cuEventRecordWithFlags(event, stream, CU_EVENT_RECORD_EXTERNAL);
  }
  api.cuStreamEndCapture(stream, &graph);
  if (api.cuGraphInstantiateWithFlags(&exec, graph, 0) == CUDA_SUCCESS) {
    std::vector<double> rounds;
    for (int round = 0; round < kRounds; ++round) {
      api.cuGraphLaunch(exec, stream);
      api.cuStreamSynchronize(stream);
      api.cuEventElapsedTime(&milliseconds, events.front(), events.back());
      rounds.push_back(1e6 * static_cast<double>(milliseconds) / (kCalls - 1));
    }
    print("event_node_on_device_ns", median(rounds));
    api.cuGraphExecDestroy(exec);
  }
  std::printf("}\n");
  if (graph != nullptr) api.cuGraphDestroy(graph);
  for (CUevent event : events) api.cuEventDestroy_v2(event);
  api.cuStreamDestroy_v2(stream);
  api.cuCtxPopCurrent_v2(&current);
  api.cuDevicePrimaryCtxRelease_v2(device);
  return 0;
}
