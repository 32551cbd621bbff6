// The reference: value by value, through ExpHistogram::record().
#include "core/float_environment.h"
#include "core/float_value.h"
#include "core/tensor_stats.h"

namespace pertoken {

ExpHistogram reference_histogram_of(const TensorView& view, int scale) {
  const FloatEnvironment environment;
  ExpHistogram histogram(scale);
  TensorBlocks blocks(view);
  const auto bytes = static_cast<size_t>(bytes_of(view.format));
  alignas(64) std::byte staging[kBlockValues * sizeof(double)];
  for (auto block = blocks.next(staging); block.count != 0; block = blocks.next(staging)) {
    for (size_t i = 0; i < block.count; ++i) {
      histogram.record(value_at(block.values + i * bytes, view.format), blocks.repeats());
    }
  }
  return histogram;
}

}  // namespace pertoken
