// A CUDA driver for tests on machines without one: the table of driver_api.h filled with functions
// over a virtual clock. Streams run kernels of a known duration one after the other, events take
// the device's time when the stream reaches them, captures become graphs of kernel, memset, copy
// and event nodes, and memory is host memory. What a kernel does is a C++ function, run once the
// clock has passed its start. Faults are planted by the test.
//
// One at a time, since the table's functions carry no state. Thread safe by one lock.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/driver_api.h"

namespace pertoken::testing {

// One run of a kernel.
struct FakeLaunch {
  uint64_t device_ns;  // the device's clock when it starts, as %globaltimer
  int64_t start_ns;    // the virtual clock then
  unsigned grid[3];
  unsigned block[3];
  const std::vector<std::vector<std::byte>>& parameters;

  template <typename T>
  T parameter(size_t index) const {
    T value;
    std::memcpy(&value, parameters.at(index).data(), sizeof(T));
    return value;
  }
};

// A kernel that cuModuleGetFunction finds in any module.
struct FakeKernel {
  std::vector<size_t> parameter_bytes;
  int64_t duration_ns = 1000;
  std::function<void(const FakeLaunch&)> body;  // may be empty
};

// One piece of work, in a stream's queue or a graph's node.
struct FakeWork {
  cuda::CUgraphNodeType type = cuda::CU_GRAPH_NODE_TYPE_KERNEL;
  cuda::CUfunction function = nullptr;  // kernel
  unsigned grid[3] = {1, 1, 1};
  unsigned block[3] = {1, 1, 1};
  unsigned shared_bytes = 0;
  std::vector<std::vector<std::byte>> parameters;
  std::vector<void*> parameter_pointers;  // into `parameters`, for cuGraphKernelNodeGetParams
  cuda::CUevent event = nullptr;          // event record
  std::function<void()> effect;           // memset and copies
  int64_t duration_ns = 0;                // of a kernel that has no function
  cuda::CUgraphExec launched = nullptr;   // what it is a part of
};

class FakeDriver {
 public:
  explicit FakeDriver(int devices = 1);
  ~FakeDriver();
  FakeDriver(const FakeDriver&) = delete;
  FakeDriver& operator=(const FakeDriver&) = delete;

  const cuda::DriverApi* api() const { return &api_; }

  // Time. By default the clock stands still but for advance() and the cost of each call.
  int64_t now_ns();
  void advance(int64_t ns);
  void set_call_cost(int64_t ns) { call_cost_ns_ = ns; }
  // Reads time from elsewhere instead, such as the machine's clock; calls then cost nothing.
  void use_clock(std::function<int64_t()> clock) { clock_ = std::move(clock); }
  // The virtual clock as a host's tick counter: kTicksPerNs a nanosecond. Of the one fake there is.
  static uint64_t ticks();
  static constexpr double kTicksPerNs = 2.5;
  static constexpr int64_t kLaunchCostNs = 2500;  // what a launch takes the host

  // The device's clock runs at 1 + drift and is read in steps of its resolution.
  void set_device_clock(double drift, int64_t offset_ns, int64_t resolution_ns);
  int64_t device_ns(int64_t at_ns) const;
  void set_launch_latency(int64_t ns) { launch_latency_ns_ = ns; }
  void set_disabled_node_cost(int64_t ns) { disabled_node_ns_ = ns; }

  void add_kernel(const std::string& name, FakeKernel kernel);
  // Work on a stream without the detour of modules, or into its capture: a kernel that takes
  // `duration_ns`.
  void spin(cuda::CUstream stream, int64_t duration_ns, int device = 0);
  // What is enqueued on `waiting` from here on comes behind what `awaited` holds by now; also where
  // one or both are captured.
  void wait_for(cuda::CUstream waiting, cuda::CUstream awaited);
  cuda::CUcontext context(int device) const;
  void set_current(int device);  // of the calling thread; -1: none

  // When the work before it was done, on the virtual clock: the truth for what an event measures.
  int64_t event_time_ns(cuda::CUevent event);
  size_t live_events();
  size_t live_streams();
  size_t live_allocations();
  size_t live_user_objects();
  size_t disabled_nodes(cuda::CUgraphExec exec);
  uint64_t calls(const std::string& symbol);
  uint64_t captures_broken() const { return captures_broken_; }
  uint64_t misuses() const { return misuses_; }  // of handles that were gone, and the like

  // Faults
  // The next `count` calls of a function fail, after `after` that do not; by any thread.
  void fail(const std::string& symbol, cuda::CUresult result, int count = 1, int after = 0);
  // Planted faults wait, while a test makes calls of its own.
  void pause_faults(bool pause) { faults_paused_ = pause; }
  // Every call fails with it from now on, as after an illegal address; CUDA_SUCCESS ends it.
  void break_device(cuda::CUresult result) { sticky_ = result; }
  // As cudaDeviceReset(): every handle of the device is gone.
  void destroy_context(int device);
  // The stream goes no further until release(); what is recorded there stays unready.
  void hold(cuda::CUstream stream, int device = 0);
  void release(cuda::CUstream stream, int device = 0);

 private:
  friend struct FakeCalls;
  friend struct FakeGraphCalls;
  friend struct FakeMemoryCalls;

  static constexpr int64_t kNever = INT64_MAX;

  struct Graph {
    std::vector<cuda::CUgraphNode> nodes;
    std::vector<cuda::CUuserObject> objects;
  };
  struct Node {
    FakeWork work;
    cuda::CUgraph graph = nullptr;
    std::vector<cuda::CUgraphNode> behind;
  };
  struct Exec {
    std::vector<cuda::CUgraphNode> nodes;
    std::map<cuda::CUgraphNode, FakeWork> work;  // as it was when instantiated
    std::set<cuda::CUgraphNode> disabled;
    std::vector<cuda::CUuserObject> objects;
    int64_t free_at_ns = 0;  // launches wait for one another
  };
  struct UserObject {
    void* of_user;
    cuda::CUhostFn destroy;
    unsigned references;
  };
  struct Pending {
    FakeWork work;
    int64_t duration_ns;
    uint64_t generation;  // event: the record that it is
  };
  struct Stream {
    int device = 0;
    unsigned long long id = 0;
    int64_t free_at_ns = 0;  // when all that was timed is done
    bool held = false;
    std::deque<Pending> behind_hold;
    cuda::CUstreamCaptureStatus capture = cuda::CU_STREAM_CAPTURE_STATUS_NONE;
    cuda::CUstreamCaptureMode capture_mode = cuda::CU_STREAM_CAPTURE_MODE_GLOBAL;
    uint64_t capturing_thread = 0;
    unsigned long long capture_id = 0;
    cuda::CUgraph graph = nullptr;
    std::vector<cuda::CUgraphNode> behind;  // what is captured next depends on these
  };
  struct Event {
    int device = 0;
    bool has_timing = true;
    bool in_capture = false;
    unsigned long long capture_id = 0;
    std::vector<cuda::CUgraphNode> behind;  // of the stream in its capture, when it was recorded
    bool recorded = false;
    int64_t time_ns = kNever;
    uint64_t generation = 0;
  };
  struct Allocation {
    std::unique_ptr<std::byte[]> bytes;
    bool is_host;
  };
  struct Function {
    std::string name;
  };
  struct Fault {
    cuda::CUresult result;
    int count;
    int after;
  };
  struct Effect {
    int64_t at_ns;
    uint64_t order;
    std::function<void()> run;
    bool operator<(const Effect& other) const {
      return at_ns != other.at_ns ? at_ns < other.at_ns : order < other.order;
    }
  };

  // Called first by every function: its cost, its count, planted faults.
  cuda::CUresult enter(const char* symbol);
  // A call that may not be made while another thread captures, but in relaxed mode.
  bool breaks_capture();
  void invalidate(Stream& stream);
  void join_capture(Stream& stream, const Event& event);
  // Ends it on all streams; whether all that they captured is reached from this one.
  bool leave_capture(Stream& origin);
  int64_t advance_locked(int64_t ns);
  void run_due();
  template <typename Handle>
  static Handle new_handle() {
    return reinterpret_cast<Handle>(next_handle_.fetch_add(0x100, std::memory_order_relaxed));
  }
  Stream* find(cuda::CUstream stream);
  Event* find(cuda::CUevent event);
  int current_device() const;
  // At a moment, which what comes in one go has in common.
  void enqueue(Stream& stream, FakeWork work, int64_t duration_ns, int64_t at_ns);
  void start(Stream& stream, Pending pending, int64_t at_ns);
  cuda::CUgraphNode capture(Stream& stream, FakeWork work);
  void retain_objects(const std::vector<cuda::CUuserObject>& objects);
  void release_objects(const std::vector<cuda::CUuserObject>& objects);
  void destroy_graph(cuda::CUgraph graph);
  int64_t duration_of(const FakeWork& work) const;
  void count_misuse() { ++misuses_; }

  mutable std::recursive_mutex mutex_;
  cuda::DriverApi api_;
  int64_t now_ns_ = 1'000'000'000;
  int64_t call_cost_ns_ = 200;
  int64_t launch_latency_ns_ = 4000;
  int64_t disabled_node_ns_ = 0;
  std::function<int64_t()> clock_;
  double drift_ = 0.0;
  int64_t device_offset_ns_ = 7'000'000'000;
  int64_t resolution_ns_ = 1;
  // Of all fakes there are: what was made by one is unknown to the next. Relaxed: unique is enough.
  static inline std::atomic<uintptr_t> next_handle_{0x10000};
  unsigned long long next_id_ = 7;
  std::map<std::string, FakeKernel> kernels_;
  std::map<std::string, Fault> faults_;
  bool faults_paused_ = false;
  std::map<std::string, uint64_t> calls_;
  cuda::CUresult sticky_ = cuda::CUDA_SUCCESS;
  std::vector<cuda::CUcontext> contexts_;  // by device
  std::set<int> gone_;
  std::vector<Stream> default_streams_;  // by device
  std::map<cuda::CUstream, Stream> streams_;
  std::map<cuda::CUevent, Event> events_;
  std::map<cuda::CUgraph, Graph> graphs_;
  std::map<cuda::CUgraphNode, Node> nodes_;
  std::map<cuda::CUgraphExec, Exec> execs_;
  std::map<cuda::CUuserObject, UserObject> objects_;
  std::map<cuda::CUfunction, Function> functions_;
  std::set<cuda::CUmodule> modules_;
  std::map<uintptr_t, Allocation> allocations_;
  std::multiset<Effect> effects_;
  uint64_t next_effect_ = 0;
  uint64_t captures_broken_ = 0;
  uint64_t misuses_ = 0;
};

// What the table's functions find by themselves: the one fake, and the state of the calling thread.
inline FakeDriver* fake = nullptr;
inline thread_local std::vector<cuda::CUcontext> context_stack;
inline thread_local cuda::CUstreamCaptureMode capture_mode = cuda::CU_STREAM_CAPTURE_MODE_GLOBAL;
uint64_t fake_thread();  // a number of the calling thread, from 1

// Each fills its part of the table.
void fill_calls(cuda::DriverApi& api);
void fill_graph_calls(cuda::DriverApi& api);
void fill_memory_calls(cuda::DriverApi& api);

}  // namespace pertoken::testing
