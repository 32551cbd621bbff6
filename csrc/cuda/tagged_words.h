// Words that a kernel writes into pinned host memory and a thread of the host reads without a sync.
// Shared by kernels, host and tests. Pure; any thread.
//
// A slot of a ring is several 64-bit words. Each carries 48 bits of content and, above them, the
// tag of the lap of the ring that wrote it. A store of 64 bits is never torn, so a word says by
// itself whether it is of the lap that is wanted, of an earlier one (not written yet) or of a later
// one (overwritten), in whatever order the words arrive. So a kernel needs no fence towards the
// host, which would take longer than the rest of a time stamp, and nobody ever waits.
#pragma once

#include <cstdint>

#include "core/float_bits.h"

#if !defined(__CUDACC__)
#include <atomic>
#endif

namespace pertoken::cuda {

inline constexpr int kContentBits = 48;
inline constexpr uint64_t kContentMask = (uint64_t{1} << kContentBits) - 1;
// Tags run from 1 on, so that memory of zeros holds none, and then over again.
inline constexpr uint64_t kTags = 65535;

// Where a ring lies, and the number of the next slot, which only kernels move. The ring overwrites:
// a kernel would have to read the host's memory to learn of a reader, a microsecond each time.
struct DeviceRing {
  uint64_t* words;       // pinned, zeroed
  uint64_t* next_index;  // device memory
  uint32_t words_a_slot;
  uint32_t capacity_log2;
};

PERTOKEN_HOST_DEVICE constexpr uint64_t tag_of(uint64_t index, uint32_t capacity_log2) noexcept {
  return (index >> capacity_log2) % kTags + 1;
}

PERTOKEN_HOST_DEVICE constexpr uint64_t tagged(uint64_t content, uint64_t tag) noexcept {
  return (content & kContentMask) | tag << kContentBits;
}

PERTOKEN_HOST_DEVICE inline uint64_t* slot_at(const DeviceRing& ring, uint64_t index) noexcept {
  const uint64_t slot = index & ((uint64_t{1} << ring.capacity_log2) - 1);
  return ring.words + slot * ring.words_a_slot;
}

// Pairs with the loads of TaggedReader::take().
PERTOKEN_HOST_DEVICE inline void store_word(uint64_t* at, uint64_t word) noexcept {
#if defined(__CUDA_ARCH__)
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
#elif defined(__CUDACC__)
  *at = word;
#else
  std::atomic_ref<uint64_t>(*at).store(word, std::memory_order_relaxed);
#endif
}

}  // namespace pertoken::cuda
