// The time stamps in the captured graphs of one device, for all recordings of the process. A stamp
// is a kernel of one thread that is captured with the model, and writes the device's time into a
// ring in pinned memory, from where it is read without a sync.
//
// A replay that is to have stamps is announced: it gets a number, by which the graph's stamps are
// switched on for it (graph_switch.h). In others they write nothing. All without a new capture.
//
// Graphs hold addresses of the ring and the words, so neither memory nor module is ever given back.
// A word, and with it the part of the graph's number that stamps have room for, serves another
// graph once the driver says that its own is gone, no replay of that is open, and each recording is
// done with all replays that it had announced until then. From there on nobody awaits a stamp of
// the old graph; and should one still come, out of the ring or because the word was written late,
// it cannot be taken for one of the new graph, whose replays are numbered on from where those of
// the old ended.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cuda/announced_replays.h"
#include "cuda/driver_api.h"
#include "cuda/graph_life.h"
#include "cuda/graph_switch.h"
#include "cuda/stamp_record.h"
#include "cuda/tagged_reader.h"

namespace pertoken::cuda {

inline constexpr uint32_t kMaxGraphs = 1U << kGraphBits;  // one is that of the clock's stamps

// Graphs are numbered from 1 on; no two of a device have the same number. Its lower bits are the
// index of the graph's word, and what its stamps say of it; above them is counted how many graphs
// had that before.
constexpr uint32_t word_of(uint32_t graph) noexcept { return graph % kMaxGraphs; }

// A point in a captured graph; those of a graph are numbered as they were captured.
struct StampId {
  uint32_t graph = 0;  // 0: none
  uint32_t ordinal = 0;

  explicit operator bool() const noexcept { return graph != 0; }
};

// The replay of a graph that is about to be launched.
struct OpenedReplay {
  uint32_t number = 0;             // 0: it has no stamps: the graph is gone, or see `result`
  bool is_to_close = false;        // by the caller, behind it: another recording may have opened it
  CUresult result = CUDA_SUCCESS;  // of GraphSwitch::open()
};

// What has come in for one recording. Guarded by GraphStamps.
struct StampInbox {
  struct Stamp {
    StampPlace place;
    uint64_t time_ns;  // 48 bits
  };
  std::vector<Stamp> stamps;
};

class GraphStamps {
 public:
  static constexpr uint32_t kRingLog2 = 15;  // stamps that may wait to be read; 16 bytes each
  static constexpr uint32_t kGraphs = kMaxGraphs - 1;         // that are there at once
  static constexpr uint32_t kMaxStamps = 1U << kOrdinalBits;  // of a graph
  static constexpr size_t kMaxWaiting = size_t{1} << 18;      // in an inbox

  // With the device's context current, also while a stream is captured. Nothing, with a reason for
  // people, where that fails.
  static std::unique_ptr<GraphStamps> make(const DriverApi& api, std::span<const std::byte> image,
                                           std::string& reason, uint32_t ring_log2 = kRingLog2,
                                           uint32_t graphs = kGraphs);
  GraphStamps(const GraphStamps&) = delete;
  GraphStamps& operator=(const GraphStamps&) = delete;

  // Of a capture, with the context current and under the GIL; cold. A stamp at this point of the
  // stream: where nothing was captured since the last one, that one. None, with the reason as a
  // result, where it cannot be. `is_end`: of a call, whose stream may have been joined already by
  // that of the capture. Throws std::bad_alloc.
  CUresult stamp(CUstream stream, bool is_end, StampId& stamp);
  // The graph that is being captured on the stream and has stamps; 0: none.
  uint32_t graph_of(CUstream stream);
  // Also of one that is gone; 0 where another has its word.
  uint32_t stamps_of(uint32_t graph);

  // Hot, under the GIL, as are the next. Whether the graph is known to be gone.
  bool is_gone(uint32_t graph) const noexcept { return replays_[word_of(graph)].graph != graph; }
  // With the context current, as are the next.
  OpenedReplay open_replay(uint32_t graph, CUstream stream) noexcept;
  void close_replay(uint32_t graph, CUstream stream, bool stays_on) noexcept;

  // Under the GIL; see GraphSwitch.
  void begin_launch(uint32_t graph) noexcept {
    if (!is_gone(graph)) replays_[word_of(graph)].kernels->begin_launch();
  }
  bool end_launch(uint32_t graph) noexcept {
    return !is_gone(graph) && replays_[word_of(graph)].kernels->end_launch();
  }
  void rest_now(uint32_t graph) noexcept { replays_[word_of(graph)].kernels->rest_now(); }
  void hold_executable(uint32_t graph, CUgraphExec executable) noexcept;
  void release_executable(uint32_t graph, bool is_there) noexcept;

  // Collectors, with the context current and in relaxed capture mode.
  // Of the recording that has announced `replays`.
  void subscribe(StampInbox* inbox, const AnnouncedReplays* replays);
  void unsubscribe(StampInbox* inbox) noexcept;
  // Reads the ring into all inboxes, and moves what is in this one to `stamps`.
  void read(StampInbox& inbox, std::vector<StampInbox::Stamp>& stamps);
  // Two stamps one after the other on a stream of our own, between the events. They come as those
  // of graph 0, ordinals 0 and 1, and of the replay that is returned in `number`.
  CUresult stamp_between(CUevent before, CUevent after, uint32_t& number);

 private:
  struct Subscriber {
    StampInbox* inbox;
    const AnnouncedReplays* replays;
  };
  // How far a recording must have come before nobody there awaits a graph's replays.
  struct Horizon {
    const AnnouncedReplays* replays;
    uint64_t count;

    bool is_reached() const noexcept { return replays->settled() >= count; }
  };
  struct Graph {
    uint32_t number;
    unsigned long long capture = 0;
    CUstream origin = nullptr;  // of the first stamp: that of the capture, as far as can be told
    std::shared_ptr<const GraphLife> life{};  // null where it is gone
    std::vector<Horizon> horizons{};          // then: those that are not known to be reached
    uint64_t gone_nth = 0;                    // then: of those that went
  };

  GraphStamps(const DriverApi& api, uint32_t graphs) noexcept : api_(api), most_graphs_(graphs) {}
  CUresult set_up(std::span<const std::byte> image, uint32_t ring_log2);
  CUresult launch(CUstream stream, uint32_t graph, uint32_t ordinal) noexcept;
  Graph* find_capture(unsigned long long capture) noexcept;
  Graph* find_graph(uint32_t number) noexcept;
  Graph* add_graph(unsigned long long capture, CUgraph of_driver, CUstream stream);
  void look_for_gone();
  Graph* longest_gone() noexcept;
  static uint32_t next_number(uint32_t number) noexcept {
    return number + 1 == 1U << kReplayBits ? 1 : number + 1;
  }

  const DriverApi& api_;
  const uint32_t most_graphs_;
  CUfunction function_ = nullptr;
  CUstream own_stream_ = nullptr;
  CUdeviceptr words_ = 0;  // one a graph; 0 is that of stamp_between()
  DeviceRing ring_{};

  // Under the GIL, by word.
  struct Replays {
    uint32_t graph = 0;                      // 0: it is gone
    uint32_t last = 0;                       // of whichever graph
    std::unique_ptr<GraphSwitch> kernels{};  // by ordinal; changed under the mutex, too
  };
  std::array<Replays, kMaxGraphs> replays_{};

  std::mutex mutex_;  // of what follows
  std::unique_ptr<TaggedReader> reader_;
  std::vector<Subscriber> subscribers_;
  std::vector<Graph> graphs_;  // by word, from 1 on
  uint64_t gone_ = 0;          // how many graphs went
  uint32_t last_between_ = 0;
};

}  // namespace pertoken::cuda
