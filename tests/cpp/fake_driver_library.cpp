// The fake driver as a shared library, for tests of the Python side: its table goes into the native
// module, and what the model's kernels would do is called from Python. Its clock is the machine's,
// and a thread has kernels run when they are due. The statistics and the logit kernels read the
// host's memory, and so give real numbers.
#include <atomic>
#include <chrono>
#include <thread>

#include "emulated_kernels.h"
#include "emulated_logits.h"
#include "emulated_stamp.h"
#include "fake_driver.h"

namespace {

// Never deleted: a recording may outlive its test, as in the traceback of one that fails. What it
// then asks of the next fake, that refuses.
pertoken::testing::FakeDriver* driver = nullptr;
std::atomic<bool> runs{false};
std::thread device;

void stop() {
  runs = false;
  if (device.joinable()) device.join();
}

pertoken::cuda::CUstream stream_of(void* handle) {
  return static_cast<pertoken::cuda::CUstream>(handle);
}

}  // namespace

extern "C" {

#define EXPORTED __attribute__((visibility("default")))

EXPORTED const void* fake_start(int devices) {
  stop();
  driver = new pertoken::testing::FakeDriver(devices);
  pertoken::testing::add_stats_kernels(*driver);
  pertoken::testing::add_logit_kernels(*driver);
  driver->use_clock([] {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<int64_t>(std::chrono::nanoseconds(now).count());
  });
  pertoken::testing::add_stamp_kernel(*driver);
  runs = true;
  device = std::thread([] {
    while (runs) {
      driver->advance(0);
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  });
  return driver->api();
}
EXPORTED void fake_stop() { stop(); }
EXPORTED void fake_spin(void* stream, long long duration_ns, int device) {
  driver->spin(stream_of(stream), duration_ns, device);
}
EXPORTED void* fake_new_stream(int device) {
  pertoken::cuda::CUstream stream = nullptr;
  driver->set_current(device);
  driver->api()->cuStreamCreate(&stream, pertoken::cuda::CU_STREAM_NON_BLOCKING);
  return stream;
}
EXPORTED void fake_begin_capture(void* stream) {
  driver->api()->cuStreamBeginCapture_v2(stream_of(stream),
                                         pertoken::cuda::CU_STREAM_CAPTURE_MODE_GLOBAL);
}
EXPORTED void* fake_end_capture(void* stream) {
  pertoken::cuda::CUgraph graph = nullptr;
  driver->api()->cuStreamEndCapture(stream_of(stream), &graph);
  return graph;
}
EXPORTED void* fake_instantiate(void* graph) {
  pertoken::cuda::CUgraphExec exec = nullptr;
  driver->api()->cuGraphInstantiateWithFlags(&exec, static_cast<pertoken::cuda::CUgraph>(graph), 0);
  return exec;
}
EXPORTED void fake_drop_graph(void* graph) {
  driver->api()->cuGraphDestroy(static_cast<pertoken::cuda::CUgraph>(graph));
}
EXPORTED void fake_drop_executable(void* exec) {
  driver->api()->cuGraphExecDestroy(static_cast<pertoken::cuda::CUgraphExec>(exec));
}
EXPORTED unsigned long long fake_disabled_nodes(void* exec) {
  return driver->disabled_nodes(static_cast<pertoken::cuda::CUgraphExec>(exec));
}
EXPORTED void fake_replay(void* exec, void* stream) {
  driver->api()->cuGraphLaunch(static_cast<pertoken::cuda::CUgraphExec>(exec), stream_of(stream));
}
EXPORTED void fake_hold(void* stream, int ordinal) { driver->hold(stream_of(stream), ordinal); }
EXPORTED void fake_release(void* stream, int ordinal) {
  driver->release(stream_of(stream), ordinal);
}
EXPORTED void fake_break(int result) { driver->break_device(result); }
EXPORTED unsigned long long fake_live_events() { return driver->live_events(); }
EXPORTED unsigned long long fake_misuses() { return driver->misuses() + driver->captures_broken(); }

}  // extern "C"
