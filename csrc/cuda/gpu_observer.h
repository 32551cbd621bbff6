// Observes tensors in the memory of GPUs for a recording: the model's thread enqueues the
// statistics kernel behind what made the tensor, and the collector takes the results when they
// arrive. Neither waits for the other, nor for the GPU, and the collector asks nothing of the
// driver.
//
// In a captured graph the kernel is there for good, and counts in the replays that are announced:
// the graph's word then holds the number of the replay.
//
// What a thread observes, it first tells the collector, in a ring; so results are handed over in
// the order in which the tensors were made, whatever the streams and devices.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/device_results.h"
#include "core/observation_intake.h"
#include "core/observed_step.h"
#include "core/spsc_ring.h"
#include "core/tensor_view.h"
#include "cuda/device_clock.h"
#include "cuda/devices_in_use.h"
#include "cuda/gpu_place.h"
#include "cuda/graph_life.h"
#include "cuda/graph_switch.h"
#include "cuda/results_under_way.h"
#include "cuda/stats_device.h"

namespace pertoken::cuda {

// What an observation belongs to.
struct ObservationLabels {
  uint32_t step;
  uint32_t site;
  uint8_t kind;
  double weight;
};

class GpuObserver final : public ObservationSource {
 public:
  // `ticks` is the host's clock, for tests to replace.
  explicit GpuObserver(StatsDevices& devices, HostTicks ticks = now_ticks);
  ~GpuObserver() override;
  GpuObserver(const GpuObserver&) = delete;
  GpuObserver& operator=(const GpuObserver&) = delete;

  // Sets a device up, unless it is: milliseconds. False, with a reason for people, where it cannot
  // be, which is not tried again.
  bool prepare(int device, std::string& reason);

  // These are hot, but for the first time on a device, and called by one thread at a time. The
  // tensor may be overwritten on its stream right after. False, with a reason for people, where it
  // cannot be read; what else prevents an observation is counted in losses(). Throw as TensorBlocks
  // does.
  //
  // All of a tensor, or, `by_row`, each index of its first dimension apart: one launch.
  bool observe(const GpuPlace& place, const ObservationLabels& labels, const TensorView& view,
               bool by_row, std::string& reason);
  // The runs of one row, or with kAllRows of all, of a tensor (rows, positions, ...), together: a
  // launch each.
  bool observe_runs(const GpuPlace& place, const ObservationLabels& labels, const TensorView& view,
                    std::span<const ValidRun> runs, int64_t row, std::string& reason);

  // Of a stream that is being captured, cold: the launch becomes a part of the graph, and counts in
  // the replays between open_replay() and close_replay(). False where the stream is none such, and
  // nothing is done; else `is_read` says whether the tensor can be read, as observe() does. A mask
  // of padding is that of the capture alone, so all positions count.
  bool capture(const GpuPlace& place, uint32_t site, const TensorView& view, bool by_row,
               bool& is_read, std::string& reason);
  // The graph that is being captured there and has such launches; 0: none.
  uint32_t captured_graph(const GpuPlace& place) noexcept;
  bool has_captured(int device) const noexcept;
  // On the replay's stream, before and behind it; hot. False where it is not observed, which is
  // counted but for a replay inside one, and there is nothing to close. `is_launched`: whether the
  // driver took the replay.
  bool open_replay(const GpuPlace& place, uint32_t graph, const ObservationLabels& labels) noexcept;
  void close_replay(const GpuPlace& place, uint32_t graph, bool is_launched) noexcept;
  // See GraphSwitch.
  void begin_launch(int device, uint32_t graph) noexcept;
  void end_launch(int device, uint32_t graph) noexcept;
  void hold_executable(int device, uint32_t graph, CUgraphExec executable) noexcept;
  void release_executable(int device, uint32_t graph, bool is_there) noexcept;

  void collect(double ns_per_tick, ObservationIntake& into) override;
  double fullness() noexcept override;
  bool is_pending() noexcept override;
  void give_up() noexcept override;
  ObservationLosses losses() override;

 private:
  static constexpr size_t kMessages = 4096;

  // Of the number of a launch, so that a graph's word, which is one more, is never 0.
  static constexpr uint32_t kLaunchMask = 0x7fffffff;
  static constexpr uint32_t word_of_launch(uint32_t launch) noexcept { return launch + 1; }
  static constexpr uint32_t launch_of_word(uint32_t word) noexcept { return word - 1; }

  struct CapturedLaunch {
    uint64_t repeats;
    uint32_t site;
    uint32_t rows;
    uint32_t first_result;  // of the graph's
    uint32_t ring;          // that they come by
    int32_t row;            // of the first
    FloatFormat format;
  };
  // Complete before its first replay; the collector knows it by those.
  struct CapturedGraph {
    CapturedGraph(const DriverApi& api, const uint32_t* of_its_own) noexcept
        : word(of_its_own), kernels(api, reinterpret_cast<CUdeviceptr>(of_its_own)) {}

    uint32_t number = 0;  // from 1 on, never used again
    unsigned long long capture = 0;
    CUstream origin = nullptr;  // of the first launch: that of the capture, as far as can be told
    const uint32_t* const word;
    std::shared_ptr<const GraphLife> life;
    GraphSwitch kernels;
    std::vector<CapturedLaunch> launches;
    uint32_t results = 0;
    std::array<uint32_t, GpuStats::kRings> in_ring{};  // of them
    uint32_t rings = 0;                                // that they come by
    uint32_t replay = 0;                               // the number of the one that is open
    bool is_open = false;
    bool stays_on = false;   // all replays are observed
    uint64_t announced = 0;  // replays that the collector was told of
    // Release by the collector, acquire by the model's thread: it has done with so many of them.
    std::atomic<uint64_t> settled{0};
  };

  struct Device : ResultsUnderWay {
    explicit Device(StatsDevice&& opened) : stats(std::move(opened)) {}
    StatsDevice stats;
    std::array<ResultCount, GpuStats::kRings> rings;
    // The model's thread's: those that may be replayed, by their numbers.
    std::vector<std::unique_ptr<CapturedGraph>> graphs;
    uint32_t last_graph = 0;
    bool is_switched_off = true;  // likewise: no word is known to be set
  };

  // A launch or a replay, or, where `loss` is set, that the one before was none.
  struct Message {
    uint64_t ticks;
    uint64_t repeats;
    double weight;
    CapturedGraph* graph;  // of a replay, whose sites, formats and rows are in there
    uint32_t launch;
    uint32_t step;
    uint32_t site;
    uint32_t rows;  // results that it leaves; 0: there are no values, and no launch
    int32_t row;    // of the first
    uint8_t device;
    uint8_t kind;
    FloatFormat format;
    Loss loss;
    bool is_first;  // of its observation
    bool goes_on;   // the next launch adds to the same one
  };

  // A launch that the collector knows of.
  struct Pending {
    Message message;
    uint32_t missing;                                 // results
    std::vector<std::optional<ExpHistogram>> values;  // by row, launch by launch
  };

  // What a launch needs besides its labels.
  struct Part {
    StatsPlan plan;
    int32_t row;
    bool is_first;
    bool goes_on;
  };

  Device* device_of(int number, std::string& reason);
  static uint32_t rings_of(const Message& message) noexcept;
  static uint32_t results_in(const Message& message, uint32_t ring) noexcept;
  static bool has_room(const Device& device, uint32_t ring, uint64_t results) noexcept;
  static bool has_room(const Device& device, const Message& message) noexcept;
  bool launch(Device& device, const GpuPlace& place, const ObservationLabels& labels,
              FloatFormat format, const Part& part) noexcept;
  Loss enqueue(Device& device, const GpuPlace& place, FloatFormat format, const StatsPlan& plan,
               uint32_t number) noexcept;
  CUresult find_ring(Device& device, const CapturedGraph& graph, uint32_t results, uint32_t& ring);
  CapturedGraph* graph_of_capture(Device& device, CUstream stream, Loss& loss);
  static CapturedGraph* find_graph(Device& device, uint32_t number) noexcept;
  static void forget_graphs(Device& device) noexcept;
  template <typename Turn>
  Loss turn(Device& device, CUstream stream, Turn&& turn) noexcept;
  template <typename Use>
  void with_graph(int number, uint32_t graph, Use&& use) noexcept;
  bool announce(Device& device, Message& message) noexcept;
  void withdraw(Message& message, Loss loss) noexcept;

  void take_results(int number);
  void read_messages();
  void match_results();
  void lose(Pending& pending, Loss loss) noexcept;
  static void count_missing(Device& device, const Pending& settled) noexcept;
  void settle_oldest(ObservationIntake& into);
  void hand_over_settled(Pending& settled, ObservationIntake& into);
  void gather(const Pending& part, ObservationIntake& into);
  void drop_gathered() noexcept;
  void hand_over(const Message& message, int32_t row, ExpHistogram&& values,
                 ObservationIntake& into);
  void hand_over_replay(Pending& replay, ObservationIntake& into);

  StatsDevices& pool_;
  const HostTicks ticks_;
  DevicesInUse<Device> devices_;
  uint32_t launch_ = 0;  // the model's thread: the last one's number
  SpscRing<Message> ring_;
  LostResults lost_;

  // The collector's.
  struct Arrived {
    int device;
    StatsResult result;
  };
  std::vector<Arrived> arrived_;  // in this round
  std::deque<Pending> pending_;   // as they were launched
  // Of the launches before the oldest pending one that belong to the same observation.
  bool is_gathering_ = false;
  ExpHistogram gathered_;
  Loss gathered_loss_ = Loss::kNone;
};

}  // namespace pertoken::cuda
