// What the driver's calls that time a GPU cost the host, and what an event costs the device: the
// figures that docs/gpu-timing.md lists as open. Prints one JSON object; where there is no GPU, why
// not. Medians of rounds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cuda/driver_api.h"
#include "cuda/graph_stamps.h"
#include "cuda/kernel_image.h"

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

// Device time of one of many stamps in a row in a graph, each behind a node of another sort: an
// event where `events` are given, else a memset of `word`.
class StampChain {
 public:
  StampChain(const DriverApi& api, GraphStamps& stamps, CUstream stream, CUevent start, CUevent end,
             CUdeviceptr word, const std::vector<CUevent>& events)
      : api_(api), stamps_(stamps), stream_(stream), start_(start), end_(end) {
    api.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
    for (CUevent event : events.empty() ? std::vector<CUevent>(kCalls) : events) {
      StampId stamp;
      stamps.stamp(stream, false, stamp);
      number_ = stamp.graph;
      // Something lies between two stamps, or they would be one.
      if (event != nullptr) {
        api.cuEventRecordWithFlags(event, stream, CU_EVENT_RECORD_EXTERNAL);
      } else {
        api.cuMemsetD32Async(word, 0, 1, stream);
      }
    }
    api.cuStreamEndCapture(stream, &graph_);
    is_made_ = api.cuGraphInstantiateWithFlags(&exec_, graph_, 0) == CUDA_SUCCESS;
  }
  ~StampChain() {
    if (is_made_) api_.cuGraphExecDestroy(exec_);
    if (graph_ != nullptr) api_.cuGraphDestroy(graph_);
  }
  StampChain(const StampChain&) = delete;
  StampChain& operator=(const StampChain&) = delete;

  // From now on the stamps' nodes are disabled where a launch is not announced.
  void disable() { stamps_.hold_executable(number_, exec_); }

  // `stays_on`: they stay enabled behind one that is.
  double cost_ns(bool is_announced, bool stays_on = false) {
    std::vector<double> rounds;
    for (int round = 0; round < kRounds; ++round) {
      launch(is_announced, stays_on);
      api_.cuStreamSynchronize(stream_);
      float milliseconds = 0;
      api_.cuEventElapsedTime(&milliseconds, start_, end_);
      rounds.push_back(1e6 * static_cast<double>(milliseconds) / kCalls);
    }
    return median(rounds);
  }

  // Host time of a switch of one node: what replays take more that are switched on and off again.
  double switch_ns() {
    const auto host_ns = [&](bool stays_on) {
      std::vector<double> rounds;
      for (int round = 0; round < kRounds; ++round) {
        const double start = now_ns();
        launch(true, stays_on);
        rounds.push_back(now_ns() - start);
        api_.cuStreamSynchronize(stream_);
      }
      return median(rounds);
    };
    const double switched_ns = host_ns(false);
    return (switched_ns - host_ns(true)) / (2 * kCalls);
  }

  bool is_made() const { return is_made_; }

 private:
  void launch(bool is_announced, bool stays_on) {
    OpenedReplay opened;
    if (is_announced) opened = stamps_.open_replay(number_, stream_);
    api_.cuEventRecord(start_, stream_);
    api_.cuGraphLaunch(exec_, stream_);
    api_.cuEventRecord(end_, stream_);
    if (opened.is_to_close) stamps_.close_replay(number_, stream_, stays_on);
  }

  const DriverApi& api_;
  GraphStamps& stamps_;
  CUstream stream_;
  CUevent start_;
  CUevent end_;
  CUgraph graph_ = nullptr;
  CUgraphExec exec_ = nullptr;
  uint32_t number_ = 0;
  bool is_made_ = false;
};

using Print = void (*)(const char* key, double ns);

// The clock of stamps: its step, and how far it runs from that of events, in parts in a million.
void print_clock(const DriverApi& api, GraphStamps& stamps, const std::vector<CUevent>& events,
                 Print print) {
  StampInbox inbox;
  const AnnouncedReplays none;
  stamps.subscribe(&inbox, &none);
  std::vector<StampInbox::Stamp> seen;
  const auto stamp = [&](CUevent event) {
    uint32_t number = 0;
    stamps.stamp_between(event, events[1], number);
    api.cuEventSynchronize(events[1]);
    std::vector<StampInbox::Stamp> round;
    stamps.read(inbox, round);
    seen.insert(seen.end(), round.begin(), round.end());
  };
  stamp(events[0]);
  const double start = now_ns();
  while (now_ns() - start < 1e9) stamp(events[2]);
  stamps.unsubscribe(&inbox);
  if (seen.size() < 2) return;
  uint64_t step = 0;
  for (size_t i = 1; i < seen.size(); ++i) {
    const uint64_t distance = seen[i].time_ns - seen[i - 1].time_ns;
    if (distance != 0 && (step == 0 || distance < step)) step = distance;
  }
  float milliseconds = 0;
  api.cuEventElapsedTime(&milliseconds, events[0], events[2]);
  const double between_ns = static_cast<double>(seen[seen.size() - 2].time_ns - seen[0].time_ns);
  print("globaltimer_shortest_step_ns", static_cast<double>(step));
  print("globaltimer_drift_ppm",
        1e6 * (between_ns / (1e6 * static_cast<double>(milliseconds)) - 1));
}

void print_stamps(const DriverApi& api, CUstream stream, const std::vector<CUevent>& events,
                  Print print) {
  std::string reason;
  const std::unique_ptr<GraphStamps> stamps = GraphStamps::make(api, kernel_image(), reason);
  CUdeviceptr word = 0;
  if (stamps == nullptr || api.cuMemAlloc_v2(&word, sizeof(uint32_t)) != CUDA_SUCCESS) return;
  print_clock(api, *stamps, events, print);
  {
    StampChain chain(api, *stamps, stream, events[0], events[1], word, {});
    if (chain.is_made()) {
      print("memset_and_stamp_node_ns", chain.cost_ns(true));
      print("memset_and_silent_stamp_node_ns", chain.cost_ns(false));
      chain.disable();
      print("memset_and_disabled_stamp_node_ns", chain.cost_ns(false));
      print("memset_and_switched_stamp_node_ns", chain.cost_ns(true));
      print("node_switch_host_ns", chain.switch_ns());
    }
  }
  StampChain chain(api, *stamps, stream, events[0], events[1], word,
                   {events.begin() + 2, events.end()});
  if (chain.is_made()) print("event_and_silent_stamp_node_ns", chain.cost_ns(false));
  api.cuMemFree_v2(word);
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
  print_stamps(api, stream, events, print);
  std::printf("}\n");
  if (graph != nullptr) api.cuGraphDestroy(graph);
  for (CUevent event : events) api.cuEventDestroy_v2(event);
  api.cuStreamDestroy_v2(stream);
  api.cuCtxPopCurrent_v2(&current);
  api.cuDevicePrimaryCtxRelease_v2(device);
  return 0;
}
