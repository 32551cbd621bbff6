// What the stamp kernel writes: the time at which a captured graph came to a point, in two tagged
// words (tagged_words.h). Shared by the kernel, the host and tests. Pure; any thread.
#pragma once

#include <cstdint>

#include "core/float_bits.h"
#include "cuda/tagged_words.h"

namespace pertoken::cuda {

inline constexpr const char* kStampKernel = "pertoken_graph_stamp";

enum class StampWord : uint8_t {
  kTime,   // the low 48 bits of %globaltimer, in nanoseconds: three days
  kWhich,  // graph << 36 | ordinal << 20 | replay
};
inline constexpr uint32_t kStampWords = 2;

inline constexpr uint32_t kReplayBits = 20;
inline constexpr uint32_t kOrdinalBits = 16;
inline constexpr uint32_t kGraphBits = 12;
static_assert(kReplayBits + kOrdinalBits + kGraphBits == kContentBits);

struct StampArgs {
  DeviceRing ring;
  const uint32_t* replay;  // the graph's, in device memory: 0 while replays are not recorded
  uint32_t graph;
  uint32_t ordinal;  // of the graph's stamps: branches may get there in any order
};

struct StampPlace {
  uint32_t graph;
  uint32_t ordinal;
  uint32_t replay;
};

PERTOKEN_HOST_DEVICE constexpr uint64_t stamp_content(const StampPlace& place) noexcept {
  return uint64_t{place.graph} << (kOrdinalBits + kReplayBits) |
         uint64_t{place.ordinal} << kReplayBits | place.replay;
}

constexpr StampPlace stamp_place(uint64_t content) noexcept {
  return {static_cast<uint32_t>(content >> (kOrdinalBits + kReplayBits)),
          static_cast<uint32_t>(content >> kReplayBits) & ((1U << kOrdinalBits) - 1),
          static_cast<uint32_t>(content) & ((1U << kReplayBits) - 1)};
}

// The kernel's one thread. `reserve(next_index)` takes the number of a slot.
template <typename Reserve>
PERTOKEN_HOST_DEVICE inline void write_stamp(const StampArgs& args, uint32_t replay,
                                             uint64_t time_ns, Reserve&& reserve) noexcept {
  if (replay == 0) return;
  const uint64_t index = reserve(args.ring.next_index);
  const uint64_t tag = tag_of(index, args.ring.capacity_log2);
  uint64_t* const words = slot_at(args.ring, index);
  store_word(words + static_cast<int>(StampWord::kTime), tagged(time_ns, tag));
  store_word(words + static_cast<int>(StampWord::kWhich),
             tagged(stamp_content({args.graph, args.ordinal, replay}), tag));
}

}  // namespace pertoken::cuda
