// The time stamps in the captured graphs of one device, for all recordings of the process. A stamp
// is a kernel of one thread that is captured with the model, and writes the device's time into a
// ring in pinned memory, from where it is read without a sync.
//
// A graph has a word in device memory, which the host sets, on the stream of the replay, to the
// number of the replay before it, and to 0 behind it. Stamps of a replay that was not announced so
// write nothing; they are switched without a new capture.
//
// Graphs hold addresses of the ring and the words, and nobody tells when they go: neither memory
// nor module is ever given back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cuda/driver_api.h"
#include "cuda/stamp_record.h"
#include "cuda/tagged_reader.h"

namespace pertoken::cuda {

// A point in a captured graph; those of a graph are numbered as they were captured.
struct StampId {
  uint32_t graph = 0;  // 0: none
  uint32_t ordinal = 0;

  explicit operator bool() const noexcept { return graph != 0; }
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
  static constexpr uint32_t kMaxGraphs = 1U << kGraphBits;
  static constexpr uint32_t kMaxStamps = 1U << kOrdinalBits;  // of a graph
  static constexpr size_t kMaxWaiting = size_t{1} << 18;      // in an inbox

  // With the device's context current, also while a stream is captured. Nothing, with a reason for
  // people, where that fails.
  static std::unique_ptr<GraphStamps> make(const DriverApi& api, std::span<const std::byte> image,
                                           std::string& reason, uint32_t ring_log2 = kRingLog2);
  GraphStamps(const GraphStamps&) = delete;
  GraphStamps& operator=(const GraphStamps&) = delete;

  // Of a capture, with the context current; cold. A stamp at this point of the stream: where
  // nothing was captured since the last one, that one. None, with the reason as a result, where it
  // cannot be.
  CUresult stamp(CUstream stream, StampId& stamp);
  // The graph that is being captured on the stream and has stamps; 0: none.
  uint32_t graph_of(CUstream stream);
  uint32_t stamps_of(uint32_t graph);

  // Hot, with the context current and under the GIL. The number of a replay of the graph that is
  // about to be launched on the stream; 0 where the driver refused. `opened` says whether it is the
  // caller who has to close it behind the replay: another recording may have announced it.
  uint32_t open_replay(uint32_t graph, CUstream stream, bool& opened) noexcept;
  void close_replay(uint32_t graph, CUstream stream) noexcept;

  // Collectors, with the context current and in relaxed capture mode.
  void subscribe(StampInbox* inbox);
  void unsubscribe(StampInbox* inbox) noexcept;
  // Reads the ring into all inboxes, and moves what is in this one to `stamps`.
  void read(StampInbox& inbox, std::vector<StampInbox::Stamp>& stamps);
  // Two stamps one after the other on a stream of our own, between the events. They come as those
  // of graph 0, ordinals 0 and 1, and of the replay that is returned in `number`.
  CUresult stamp_between(CUevent before, CUevent after, uint32_t& number);

 private:
  struct Graph {
    unsigned long long capture;
    std::vector<CUgraphNode> nodes;  // of its stamps
  };

  explicit GraphStamps(const DriverApi& api) noexcept : api_(api) {}
  CUresult set_up(std::span<const std::byte> image, uint32_t ring_log2);
  CUresult launch(CUstream stream, uint32_t graph, uint32_t ordinal) noexcept;
  CUresult set_word(uint32_t graph, uint32_t value, CUstream stream) noexcept {
    return api_.cuMemsetD32Async(words_ + graph * sizeof(uint32_t), value, 1, stream);
  }
  static uint32_t next_number(uint32_t number) noexcept {
    return number + 1 == 1U << kReplayBits ? 1 : number + 1;
  }

  const DriverApi& api_;
  CUfunction function_ = nullptr;
  CUstream own_stream_ = nullptr;
  CUdeviceptr words_ = 0;  // one a graph; 0 is that of stamp_between()
  DeviceRing ring_{};

  // Under the GIL.
  struct Replays {
    uint32_t last = 0;
    bool is_open = false;
  };
  std::array<Replays, kMaxGraphs> replays_{};

  std::mutex mutex_;  // of what follows
  std::unique_ptr<TaggedReader> reader_;
  std::vector<StampInbox*> inboxes_;
  std::vector<Graph> graphs_;  // from number 1 on
  uint32_t last_between_ = 0;
};

}  // namespace pertoken::cuda
