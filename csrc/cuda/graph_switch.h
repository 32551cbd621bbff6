// Turns the kernels of ours in a captured graph on for those of its replays that are recorded.
//
// They read a word in device memory, 0 at rest, which is written on the replay's stream: a number
// before it, and 0 behind it. In replays without a number they write nothing. Where the graph's
// executable is known, and the graph it was made of is kept, their nodes are disabled at rest, too,
// so that such replays do not pay for them.
//
// Under the GIL, with the context current.
#pragma once

#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "cuda/driver_api.h"

namespace pertoken::cuda {

class GraphSwitch {
 public:
  GraphSwitch(const DriverApi& api, CUdeviceptr word) noexcept : api_(api), word_(word) {}
  ~GraphSwitch();
  GraphSwitch(const GraphSwitch&) = delete;
  GraphSwitch& operator=(const GraphSwitch&) = delete;

  // In the capture; cold, as are the next. Throws std::bad_alloc.
  void reserve(size_t nodes) { nodes_.reserve(nodes); }
  // A kernel's node, for which there is room. One that cannot be told is null, and stays enabled.
  void add(CUgraphNode node) noexcept { nodes_.push_back(node); }
  const std::vector<CUgraphNode>& nodes() const noexcept { return nodes_; }
  // By each recording that sees the graph: what replays launch, whose nodes are all enabled when
  // the first one tells it, unless it was let go of at rest.
  void hold_executable(CUgraphExec executable) noexcept;
  // By each that has held it. `is_there`: it is about to go where this is false.
  void release_executable(bool is_there) noexcept;

  // Hot, round a launch. Replays of an executable wait for one another whatever their streams, but
  // what is written before one does not: after a change of the stream the word is left alone until
  // that can be ordered, and CUDA_ERROR_NOT_READY returned. Otherwise the driver's result; after
  // any but success there is nothing to close.
  CUresult open(CUstream stream, uint32_t value) noexcept;
  // `stays_on`: the next replay is likely to be opened, so that the nodes may as well stay enabled.
  CUresult close(CUstream stream, bool stays_on) noexcept;
  bool is_open() const noexcept { return is_open_; }

  // Hot, round the driver's own launch, which may go on without the GIL: meanwhile no other thread
  // changes the executable, which the driver would not stand. Calls nest. True where that was put
  // off, and rest_now() is due.
  void begin_launch() noexcept {
    if (launches_++ == 0) launcher_ = std::this_thread::get_id();
  }
  bool end_launch() noexcept { return --launches_ == 0 && rests_later_; }
  void rest_now() noexcept;

 private:
  enum class Nodes : uint8_t { kEnabled, kDisabled, kMixed };

  CUresult enable(bool on) noexcept;
  void rest() noexcept;
  void forget_executable() noexcept;
  bool is_launched_elsewhere() const noexcept {
    return launches_ != 0 && launcher_ != std::this_thread::get_id();
  }
  CUresult set_word(CUstream stream, uint32_t value) noexcept {
    return api_.cuMemsetD32Async(word_, value, 1, stream);
  }
  CUresult follow_last(CUstream stream) noexcept;
  void mark(CUstream stream) noexcept;

  const DriverApi& api_;
  const CUdeviceptr word_;
  std::vector<CUgraphNode> nodes_;
  CUgraphExec executable_ = nullptr;
  uint32_t holders_ = 0;
  CUgraphExec rested_ = nullptr;  // that nobody holds, and whose nodes were left disabled
  uint32_t launches_ = 0;         // under way
  std::thread::id launcher_;      // of the first of them
  bool rests_later_ = false;
  Nodes state_ = Nodes::kEnabled;
  bool cannot_rest_ = false;  // the driver would not disable them
  CUstream last_stream_ = nullptr;
  bool is_open_ = false;
  bool was_opened_ = false;   // at all
  bool has_streams_ = false;  // several, so that marks are of use
  CUevent mark_ = nullptr;    // behind the replay that was closed last
  bool is_marked_ = false;
};

}  // namespace pertoken::cuda
