#include "core/tensor_stats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "core/float_environment.h"
#include "core/float_value.h"
#include "core/slot_counts.h"
#include "core/slot_kernels.h"

namespace pertoken {
namespace {

// Neighbouring values are counted in different tables: a store that the next load of the same
// counter waits for would else make a constant tensor slow.
constexpr size_t kTables = 4;
// Of a tensor of one block only so many, since reading a table takes longer than what is counted.
constexpr size_t kSmallTables = 2;
// As many blocks as cannot overflow a counter of 32 bits.
constexpr uint64_t kBlocksBeforeDrain = uint64_t{1} << 19;

// What is allocated for the buckets of one sign at first.
constexpr size_t kUsualBuckets = 160;

// What a thread works in, made at its first tensor and kept. The tables are all zero between two
// calls, so that a small tensor does not pay for clearing them.
struct Scratch {
  alignas(64) uint32_t tables[kTables][kSlots] = {};
  alignas(64) uint16_t slots[kBlockValues];
  alignas(64) std::byte staging[kBlockValues * sizeof(double)];
};

Scratch& thread_scratch() {
  thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

// A sum with the rounding errors of its additions (Neumaier).
class CompensatedSum {
 public:
  void add(double value) noexcept {
    const double sum = sum_ + value;
    lost_ += std::abs(sum_) >= std::abs(value) ? (sum_ - sum) + value : (value - sum) + sum_;
    sum_ = sum;
  }
  double value() const noexcept { return std::isfinite(sum_) ? sum_ + lost_ : sum_; }

 private:
  double sum_ = 0;
  double lost_ = 0;
};

double sum_of_lanes(std::array<double, kLanes> lanes) noexcept {
  for (size_t width = kLanes / 2; width != 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

class Moments {
 public:
  void add(const LaneMoments& block) noexcept {
    sum_.add(sum_of_lanes(block.sum));
    sum_sq_.add(sum_of_lanes(block.sum_sq));
    min_ = std::min(min_, block.min);
    max_ = std::max(max_, block.max);
  }
  void give(HistogramParts& parts, uint64_t repeats) const noexcept {
    const auto times = static_cast<double>(repeats);
    parts.sum = sum_.value() * times;
    parts.sum_sq = sum_sq_.value() * times;
    parts.min = min_ + 0.0;  // not -0.0
    parts.max = max_ + 0.0;
  }

 private:
  CompensatedSum sum_;
  CompensatedSum sum_sq_;
  double min_ = std::numeric_limits<double>::infinity();
  double max_ = -std::numeric_limits<double>::infinity();
};

// `coming` is what is read next, as many values of so many bytes, or null: counting waits for no
// memory, so that it is the time to fetch them.
template <size_t Tables>
void count_slots(const uint16_t* slots, size_t count, Scratch& scratch, const std::byte* coming,
                 size_t value_bytes) noexcept {
  static_assert(Tables <= kTables && 4 % Tables == 0);
  constexpr size_t kGroup = 16;  // as many values as a cache line has, or half as many
  auto& tables = scratch.tables;
  size_t i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    if (coming != nullptr) __builtin_prefetch(coming + i * value_bytes);
    for (size_t j = i; j < i + kGroup; j += 4) {
      uint64_t four;
      std::memcpy(&four, slots + j, sizeof(four));
      ++tables[0][four & 0xffff];
      ++tables[1 % Tables][four >> 16 & 0xffff];
      ++tables[2 % Tables][four >> 32 & 0xffff];
      ++tables[3 % Tables][four >> 48];
    }
  }
  for (; i < count; ++i) ++tables[0][slots[i]];
}

// Moves what the tables hold to the parts: subnormals first, so that buckets grow upwards.
template <size_t Tables>
void drain(Scratch& scratch, HistogramParts& parts, uint64_t repeats) {
  constexpr int kGroup = 32;
  static_assert(kSlots % kGroup == 0 && kSubnormalSlots % kGroup == 0);
  auto& tables = scratch.tables;
  for (int k = 0; k < kSlots; k += kGroup) {
    const int group =
        k < kSlots - kSubnormalSlots ? k + kSubnormalSlots : k - (kSlots - kSubnormalSlots);
    uint32_t any = 0;
    for (size_t table = 0; table < Tables; ++table) {
      for (int i = 0; i < kGroup; ++i) any |= tables[table][group + i];
    }
    if (any == 0) continue;
    for (int slot = group; slot < group + kGroup; ++slot) {
      uint64_t n = 0;
      for (size_t table = 0; table < Tables; ++table) {
        n += tables[table][slot];
        tables[table][slot] = 0;
      }
      if (n != 0) add_slot(parts, slot, n * repeats);
    }
  }
}

template <size_t Tables>
void count_blocks(TensorBlocks& blocks, SlotKernel kernel, Scratch& scratch, Moments& moments,
                  HistogramParts& parts, size_t value_bytes) {
  uint64_t since_drain = 0;
  for (auto block = blocks.next(scratch.staging); block.count != 0;
       block = blocks.next(scratch.staging)) {
    LaneMoments of_block;
    kernel(block.values, block.count, scratch.slots, of_block);
    moments.add(of_block);
    // Of values that lie one after the other; what lies behind the last of them is not touched.
    const bool goes_on = block.values != scratch.staging && blocks.values_left() >= block.count;
    count_slots<Tables>(scratch.slots, block.count, scratch, goes_on ? blocks.first() : nullptr,
                        value_bytes);
    if (++since_drain == kBlocksBeforeDrain) {
      drain<Tables>(scratch, parts, blocks.repeats());
      since_drain = 0;
    }
  }
  drain<Tables>(scratch, parts, blocks.repeats());
}

HistogramParts parts_by_slots(TensorBlocks& blocks, SlotKernel kernel, int scale,
                              FloatFormat format) {
  HistogramParts parts{.scale = scale};
  parts.positive.counts.reserve(kUsualBuckets);
  parts.negative.counts.reserve(kUsualBuckets);
  Scratch& scratch = thread_scratch();
  Moments moments;
  const bool is_small = blocks.values_left() <= kBlockValues;
  const auto value_bytes = static_cast<size_t>(bytes_of(format));
  try {
    if (is_small) {
      count_blocks<kSmallTables>(blocks, kernel, scratch, moments, parts, value_bytes);
    } else {
      count_blocks<kTables>(blocks, kernel, scratch, moments, parts, value_bytes);
    }
  } catch (...) {
    for (auto& table : scratch.tables) std::fill(std::begin(table), std::end(table), 0);
    throw;
  }
  moments.give(parts, blocks.repeats());
  return parts;
}

// For scales finer than that of the slots, and for doubles.
template <FloatFormat Format>
HistogramParts parts_by_index(TensorBlocks& blocks, int scale) {
  HistogramParts parts{.scale = scale};
  Scratch& scratch = thread_scratch();
  Moments moments;
  const uint64_t repeats = blocks.repeats();
  for (auto block = blocks.next(scratch.staging); block.count != 0;
       block = blocks.next(scratch.staging)) {
    LaneMoments of_block;
    for (size_t i = 0; i < block.count; ++i) {
      const double value =
          value_at<Format>(block.values + i * static_cast<size_t>(bytes_of(Format)));
      if (value == 0) {
        parts.zeros += repeats;
      } else if (std::isfinite(value)) [[likely]] {
        Buckets& side = value > 0 ? parts.positive : parts.negative;
        side.add(bucket_index(std::abs(value), scale), repeats);
        of_block.sum[i % kLanes] += value;
        of_block.sum_sq[i % kLanes] += value * value;
      } else {
        (std::isnan(value) ? parts.nans : value > 0 ? parts.pos_infs : parts.neg_infs) += repeats;
        continue;
      }
      of_block.min = std::min(of_block.min, value);
      of_block.max = std::max(of_block.max, value);
    }
    moments.add(of_block);
  }
  moments.give(parts, repeats);
  return parts;
}

// A counter for each of 256 patterns says all.
ExpHistogram histogram_of_bytes(TensorBlocks& blocks, FloatFormat format, int scale) {
  ExpHistogram histogram(scale);
  Scratch& scratch = thread_scratch();
  std::array<uint64_t, 256> counts{};
  bool is_last = false;
  while (!is_last) {
    std::array<std::array<uint32_t, 256>, kTables> tables{};
    for (uint64_t number = 0; number < kBlocksBeforeDrain && !is_last; ++number) {
      const auto block = blocks.next(scratch.staging);
      is_last = block.count == 0;
      for (size_t i = 0; i < block.count; ++i) {
        ++tables[i % kTables][std::to_integer<size_t>(block.values[i])];
      }
    }
    for (const auto& table : tables) {
      for (size_t pattern = 0; pattern < counts.size(); ++pattern) {
        counts[pattern] += table[pattern];
      }
    }
  }
  for (size_t pattern = 0; pattern < counts.size(); ++pattern) {
    if (counts[pattern] == 0) continue;
    const std::array<std::byte, sizeof(double)> bits = {static_cast<std::byte>(pattern)};
    histogram.record(value_at(bits.data(), format), counts[pattern] * blocks.repeats());
  }
  return histogram;
}

const SlotKernels& kernels_of(InstructionSet set) noexcept {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return kAvx512SlotKernels;
  if (set == InstructionSet::kAvx2) return kAvx2SlotKernels;
#endif
  (void)set;
  return kPortableSlotKernels;
}

}  // namespace

bool is_supported(InstructionSet set) noexcept {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (set == InstructionSet::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
#endif
  return set == InstructionSet::kPortable;
}

InstructionSet best_instruction_set() noexcept {
  static const InstructionSet best = is_supported(InstructionSet::kAvx512) ? InstructionSet::kAvx512
                                     : is_supported(InstructionSet::kAvx2)
                                         ? InstructionSet::kAvx2
                                         : InstructionSet::kPortable;
  return best;
}

ExpHistogram histogram_of(const TensorView& view, int scale, InstructionSet set) {
  const FloatEnvironment environment;
  TensorBlocks blocks(view);
  // Also says early that a scale is out of range.
  ExpHistogram none(scale);
  if (blocks.values_left() == 0) return none;
  if (bytes_of(view.format) == 1) return histogram_of_bytes(blocks, view.format, scale);
  const bool has_slots = scale <= kSlotScale;
  const SlotKernels& kernels = kernels_of(set);
  switch (view.format) {
    case FloatFormat::kFloat32:
      return ExpHistogram(has_slots ? parts_by_slots(blocks, kernels.float32, scale, view.format)
                                    : parts_by_index<FloatFormat::kFloat32>(blocks, scale));
    case FloatFormat::kFloat16:
      return ExpHistogram(has_slots ? parts_by_slots(blocks, kernels.float16, scale, view.format)
                                    : parts_by_index<FloatFormat::kFloat16>(blocks, scale));
    case FloatFormat::kBFloat16:
      return ExpHistogram(has_slots ? parts_by_slots(blocks, kernels.bfloat16, scale, view.format)
                                    : parts_by_index<FloatFormat::kBFloat16>(blocks, scale));
    default:
      return ExpHistogram(parts_by_index<FloatFormat::kFloat64>(blocks, scale));
  }
}

}  // namespace pertoken
