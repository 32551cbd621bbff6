// What the threads of a block of the statistics kernel do between its barriers. The kernel
// (kernels/gpu_stats.cu) adds the barriers, the shared memory and the atomics; the tests run the
// same functions on a processor, one thread of a block after the other. Pure; any thread.
//
// Counts of 16- and 32-bit values go to one table of slots a block: an increment by 1 whose result
// nobody reads is one instruction, for which lanes that meet in a counter are counted together. The
// 256 patterns of a byte have a counter for each lane, in that lane's own bank of shared memory:
// nothing ever collides, whatever the data, and moments follow from the counts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float_bits.h"
#include "cuda/stats_layout.h"
#include "cuda/stats_record.h"
#include "cuda/stats_values.h"
#include "cuda/tagged_words.h"

namespace pertoken::cuda {

// In device memory, as many for each stream that launches as it counts rows at once; all zero
// between launches.
struct StatsWorkspace {
  uint32_t counts[kSlots];
  // Blocks that are done; those that were told not to count, once more above 16 bits.
  uint32_t done;
  StatsMoments of_block[kMaxStatsBlocks];
};

inline constexpr uint32_t kBlockDone = 1;
inline constexpr uint32_t kBlockSkipped = 0x10001;
// In the place of the number of filled slots: blocks of this launch disagreed, there is no result.
inline constexpr uint32_t kNoResult = 0xffff;

// A grid has a row of blocks for each row of the tensor that is counted apart. Each leaves a
// record.
struct StatsArgs {
  StatsLayout layout;
  SlotCarries carries;
  DeviceRing ring;
  StatsWorkspace* workspaces;  // one a row
  // Null outside graphs. In memory of the device, written in the order of the stream: what a replay
  // is known by, 0 where it is not counted. So a graph is switched without being captured again.
  const uint32_t* replay;
  uint32_t launch;
  FloatFormat format;
};

struct SlotTable {
  uint32_t counts[kSlots];

  static PERTOKEN_HOST_DEVICE uint32_t place(uint32_t slot, uint32_t) noexcept { return slot; }

  template <typename Add>
  PERTOKEN_HOST_DEVICE void flush(uint32_t thread, uint32_t threads, const StatsArgs&, Add&& add,
                                  StatsMoments&) const noexcept {
    for (uint32_t slot = thread; slot < kSlots; slot += threads) {
      if (counts[slot] != 0) add(slot, counts[slot]);
    }
  }
};

PERTOKEN_HOST_DEVICE inline uint32_t bits_of_byte(FloatFormat format, uint32_t pattern) noexcept {
  switch (format) {
    case FloatFormat::kFloat8E4M3FN:
      return widened_bits<FloatFormat::kFloat8E4M3FN>(pattern);
    case FloatFormat::kFloat8E4M3FNUZ:
      return widened_bits<FloatFormat::kFloat8E4M3FNUZ>(pattern);
    case FloatFormat::kFloat8E5M2:
      return widened_bits<FloatFormat::kFloat8E5M2>(pattern);
    default:
      return widened_bits<FloatFormat::kFloat8E5M2FNUZ>(pattern);
  }
}

// Of all formats of a byte: they differ only when the patterns are read out.
struct PatternTable {
  uint32_t counts[256 * kWarpLanes];

  static PERTOKEN_HOST_DEVICE uint32_t place(uint32_t pattern, uint32_t lane) noexcept {
    return pattern * kWarpLanes | lane;
  }

  template <typename Add>
  PERTOKEN_HOST_DEVICE void flush(uint32_t thread, uint32_t threads, const StatsArgs& args,
                                  Add&& add, StatsMoments& moments) const noexcept {
    for (uint32_t pattern = thread; pattern < 256; pattern += threads) {
      uint32_t n = 0;
      // Begun at another lane by each thread, so that they read different banks.
      for (uint32_t i = 0; i < kWarpLanes; ++i)
        n += counts[place(pattern, (i + thread) % kWarpLanes)];
      if (n == 0) continue;
      const uint32_t bits = bits_of_byte(args.format, pattern);
      add(slot_of(bits, args.carries), n);
      if (is_finite(bits)) add_finite(moments, float_of(bits), n);
    }
  }
};

template <FloatFormat Format, bool = bytes_of(Format) == 1>
struct TableOf {
  using Type = SlotTable;
};
template <FloatFormat Format>
struct TableOf<Format, true> {
  using Type = PatternTable;
};

// A block's shared memory.
template <FloatFormat Format>
struct StatsShared {
  using Table = TableOf<Format>::Type;
  Table table;
  SlotCarries carries;
  StatsMoments of_warp[kStatsThreads / kWarpLanes];
  uint64_t index;   // of the record
  uint32_t filled;  // slots that were written to it
  uint32_t done;    // what the workspace's said before this block
  uint32_t replay;
  uint32_t is_on;
};

template <FloatFormat Format>
PERTOKEN_HOST_DEVICE inline void clear(StatsShared<Format>& shared, const SlotCarries& carries,
                                       uint32_t thread, uint32_t threads) noexcept {
  constexpr uint32_t kCounters = sizeof(shared.table) / sizeof(uint32_t);
  for (uint32_t i = thread; i < kCounters; i += threads) shared.table.counts[i] = 0;
  if (thread < kCarries) shared.carries.of[thread] = carries.of[thread];
  if (thread == 0) shared.filled = 0;
}

template <FloatFormat Format, typename Warp>
PERTOKEN_HOST_DEVICE inline void take_value(uint64_t address, Warp& warp,
                                            StatsMoments& moments) noexcept {
  if constexpr (bytes_of(Format) == 1) {
    warp.count(uint32_t{load_value<uint8_t>(address)});
  } else if constexpr (Format == FloatFormat::kFloat32) {
    take_bits(load_value<uint32_t>(address), warp, moments);
  } else {
    const uint32_t raw = load_value<uint16_t>(address);
    take_bits(Format == FloatFormat::kBFloat16 ? raw << 16 : bits_of_half(raw), warp, moments);
  }
}

// All lanes together, each with its vectors. False, and nothing is counted, where one of them holds
// a special value.
template <FloatFormat Format, int Vectors, typename Warp>
PERTOKEN_HOST_DEVICE inline bool take_vectors(uint64_t address, Warp& warp,
                                              StatsMoments& moments) noexcept {
  Vector vectors[Vectors];
  PERTOKEN_UNROLL
  for (int i = 0; i < Vectors; ++i) vectors[i] = load_vector(address + i * kWarpBytes);
  if constexpr (bytes_of(Format) == 1) {
    PERTOKEN_UNROLL
    for (int i = 0; i < Vectors * kVectorBytes; ++i) {
      warp.count(vectors[i / kVectorBytes].words[i / 4 % 4] >> (i % 4 * 8) & 0xffU);
    }
  } else {
    if (warp.any(has_special<Format>(vectors))) return false;
    PERTOKEN_UNROLL
    for (int i = 0; i < Vectors; ++i) take_plain_vector<Format>(vectors[i], warp, moments);
  }
  return true;
}

// A lane's share of a unit of the run that begins at `begin`. What is not the lane's own, its
// address, is the same in all lanes, so they go the same way: whole vectors at once, or, at the
// ends of a run, where values are special and where they do not lie side by side, value by value,
// in code that is short rather than quick.
template <FloatFormat Format, typename Warp>
PERTOKEN_HOST_DEVICE inline void read_unit(const StatsLayout& layout, uint64_t begin, uint32_t unit,
                                           uint32_t lane, Warp& warp,
                                           StatsMoments& moments) noexcept {
  const bool is_dense = layout.stride_bytes == bytes_of(Format);
  const auto stride = static_cast<uint64_t>(layout.stride_bytes);
  const uint64_t end = begin + layout.run_values * stride;
  const uint64_t unit_bytes = layout.unit_size * (is_dense ? kVectorBytes : stride);
  uint64_t at = (is_dense ? begin & ~uint64_t{kVectorBytes - 1} : begin) + unit * unit_bytes;
  const uint64_t unit_end = at + unit_bytes < end ? at + unit_bytes : end;
  PERTOKEN_NO_UNROLL
  while (at < unit_end) {
    uint64_t own = at + lane * (is_dense ? kVectorBytes : stride);
    uint32_t parts = 1;
    if (is_dense && at >= begin) {
      if (at + kVectorsAhead * kWarpBytes <= unit_end) {
        parts = kVectorsAhead;
        if (take_vectors<Format, kVectorsAhead>(own, warp, moments)) {
          at += kVectorsAhead * kWarpBytes;
          continue;
        }
      } else if (at + kWarpBytes <= unit_end) {
        if (take_vectors<Format, 1>(own, warp, moments)) {
          at += kWarpBytes;
          continue;
        }
      }
    }
    PERTOKEN_NO_UNROLL
    for (uint32_t part = 0; part < parts; ++part) {
      const uint64_t from = own < begin ? begin : own;
      const uint64_t to = is_dense && own + kVectorBytes < unit_end ? own + kVectorBytes : unit_end;
      const uint64_t step = is_dense ? stride : kWarpLanes * stride;
      PERTOKEN_NO_UNROLL
      for (uint64_t value = from; value < to; value += step) {
        take_value<Format>(value, warp, moments);
      }
      own += kWarpBytes;
    }
    at = is_dense ? at + parts * kWarpBytes : unit_end;
  }
}

// A lane's share of all units of a row: warps take them in turn.
template <FloatFormat Format, typename Warp>
PERTOKEN_HOST_DEVICE inline void read_units(const StatsLayout& layout, uint32_t row,
                                            uint32_t number_of_warp, uint32_t warps, uint32_t lane,
                                            Warp& warp, StatsMoments& moments) noexcept {
  const uint64_t units = uint64_t{layout.runs} * layout.units_a_run;
  PERTOKEN_NO_UNROLL
  for (uint64_t number = number_of_warp; number < units; number += warps) {
    const auto in_all = static_cast<uint32_t>(number);
    const uint32_t run = layout.runs == 1 ? 0 : in_all / layout.units_a_run;
    const uint32_t unit = in_all - run * layout.units_a_run;
    const uint64_t begin = address_of_run(layout, row * layout.runs + run);
    read_unit<Format>(layout, begin, unit, lane, warp, moments);
  }
}

// Moves what a workspace counted to a record, which has room for all slots; `next` gives places in
// it, from 0 on.
template <typename Next>
PERTOKEN_HOST_DEVICE inline void write_slots(StatsWorkspace& workspace, uint64_t* record,
                                             uint64_t tag, uint32_t thread, uint32_t threads,
                                             Next&& next) noexcept {
  for (uint32_t slot = thread; slot < kSlots; slot += threads) {
    const uint32_t n = workspace.counts[slot];
    if (n == 0) continue;
    workspace.counts[slot] = 0;
    store_word(record + kStatsHeaderWords + next(), tagged(uint64_t{slot} << 32 | n, tag));
  }
}

PERTOKEN_HOST_DEVICE inline void write_header(const StatsArgs& args, uint32_t row, uint32_t replay,
                                              uint64_t* record, uint64_t tag, uint32_t filled,
                                              const StatsMoments& moments) noexcept {
  const auto write = [&](StatsWord word, uint64_t content) {
    store_word(record + static_cast<uint32_t>(word), tagged(content, tag));
  };
  const uint64_t sum = bits_of(moments.sum);
  const uint64_t sum_sq = bits_of(moments.sum_sq);
  write(StatsWord::kLaunch, uint64_t{filled} << 32 | args.launch);
  write(StatsWord::kReplay, uint64_t{row} << 32 | replay);
  write(StatsWord::kSum, sum >> 32);
  write(StatsWord::kSumLow, sum & 0xffffffffU);
  write(StatsWord::kSumSq, sum_sq >> 32);
  write(StatsWord::kSumSqLow, sum_sq & 0xffffffffU);
  write(StatsWord::kMin, bits_of(moments.min));
  write(StatsWord::kMax, bits_of(moments.max));
}

}  // namespace pertoken::cuda
