#include "core/logit_stats.h"

#include <algorithm>
#include <array>

#include "core/float_environment.h"
#include "core/float_value.h"
#include "core/logit_kernels.h"

namespace pertoken {
namespace {

using Staging = std::array<std::byte, kBlockValues * sizeof(double)>;

const LogitKernels& kernels_of(InstructionSet set) noexcept {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return kAvx512LogitKernels;
  if (set == InstructionSet::kAvx2) return kAvx2LogitKernels;
#endif
  (void)set;
  return kPortableLogitKernels;
}

LogitKernels::Widen widen_of(const LogitKernels& kernels, FloatFormat format) noexcept {
  switch (format) {
    case FloatFormat::kFloat32:
      return kernels.float32;
    case FloatFormat::kFloat16:
      return kernels.float16;
    case FloatFormat::kBFloat16:
      return kernels.bfloat16;
    default:
      return nullptr;
  }
}

// One after the other; false where one is NaN or plus infinity.
bool add_each(const std::byte* logits, size_t count, FloatFormat format,
              SoftmaxSums& sums) noexcept {
  const auto bytes = static_cast<size_t>(bytes_of(format));
  for (size_t i = 0; i < count; ++i) {
    const double logit = value_at(logits + i * bytes, format);
    if (!(logit <= std::numeric_limits<double>::max())) return false;
    sums.add(logit);
  }
  return true;
}

bool add_chunks(const std::byte* logits, size_t count, LogitKernels::Widen widen,
                const LogitKernels& kernels, size_t bytes, SoftmaxSums& sums) noexcept {
  alignas(64) float widened[kLogitChunk];
  for (size_t done = 0; done < count; done += kLogitChunk) {
    const size_t chunk = std::min(count - done, kLogitChunk);
    const TwoLargest largest = widen(logits + done * bytes, chunk, widened);
    if (largest.has_wrong) return false;
    sums.raise(largest.first, largest.second);
    if (sums.max == SoftmaxSums::kLowest) continue;
    const ExpSums added = kernels.add(widened, chunk, static_cast<float>(sums.max));
    sums.exps += added.exps;
    sums.weighted += added.weighted;
  }
  return true;
}

LogitStats stats_of(SoftmaxSums& sums, uint64_t repeats) noexcept {
  sums.repeat(static_cast<double>(repeats));
  return sums.stats();
}

}  // namespace

LogitStats logit_stats(const TensorView& logits, InstructionSet set) {
  const LogitKernels& kernels = kernels_of(set);
  const LogitKernels::Widen widen = widen_of(kernels, logits.format);
  if (widen == nullptr) return reference_logit_stats(logits);
  const FloatEnvironment environment;
  TensorBlocks blocks(logits);
  const auto bytes = static_cast<size_t>(bytes_of(logits.format));
  Staging staging;
  SoftmaxSums sums;
  for (auto block = blocks.next(staging.data()); block.count != 0;
       block = blocks.next(staging.data())) {
    const size_t whole = block.count / kLogitLanes * kLogitLanes;
    if (!add_chunks(block.values, whole, widen, kernels, bytes, sums) ||
        !add_each(block.values + whole * bytes, block.count - whole, logits.format, sums)) {
      return {};
    }
  }
  return stats_of(sums, blocks.repeats());
}

LogitStats reference_logit_stats(const TensorView& logits) {
  const FloatEnvironment environment;
  TensorBlocks blocks(logits);
  Staging staging;
  SoftmaxSums sums;
  for (auto block = blocks.next(staging.data()); block.count != 0;
       block = blocks.next(staging.data())) {
    if (!add_each(block.values, block.count, logits.format, sums)) return {};
  }
  return stats_of(sums, blocks.repeats());
}

}  // namespace pertoken
