#include "cuda/stats_plan.h"

#include <algorithm>

namespace pertoken::cuda {
namespace {

constexpr uint64_t kWarpsABlock = kStatsThreads / kWarpLanes;
constexpr uint64_t kBlocksAMultiprocessor = 2;
// Counters of 32 bits must not overflow.
constexpr uint64_t kMostValues = (uint64_t{1} << 32) - 1;
constexpr int64_t kMostRows = 65535;
// Vectors of a unit, and how many units each warp of a full GPU must get for it to be worth it.
// Long units cost less and keep more loads under way, but some warps get one more than others; of a
// small tensor a unit is one load a lane, so that all multiprocessors take part.
struct UnitSize {
  uint32_t vectors;
  uint64_t least_units_a_warp;
};
constexpr UnitSize kUnitSizes[] = {
    {2 * kVectorsAhead * kWarpLanes, 2}, {kVectorsAhead * kWarpLanes, 1}, {kWarpLanes, 0}};

constexpr uint64_t divided_up(uint64_t a, uint64_t b) noexcept { return (a + b - 1) / b; }

bool is_aligned(const StatsLayout& layout) noexcept {
  uint64_t low_bits = layout.first;
  for (int dim = 0; dim < layout.outer_dims; ++dim) {
    low_bits |= static_cast<uint64_t>(layout.outer_strides_bytes[dim]);
  }
  return low_bits % kVectorBytes == 0;
}

// Vectors that a dense run may touch, or values of another one.
uint64_t steps_of_run(const StatsLayout& layout, int value_bytes) noexcept {
  if (layout.stride_bytes != value_bytes) return layout.run_values;
  const uint64_t whole =
      divided_up(layout.run_values * static_cast<uint64_t>(value_bytes), kVectorBytes);
  return is_aligned(layout) ? whole : whole + 1;
}

}  // namespace

const char* stats_kernel_of(FloatFormat format) noexcept {
  switch (format) {
    case FloatFormat::kFloat64:
      return nullptr;
    case FloatFormat::kFloat32:
      return "pertoken_stats_float32";
    case FloatFormat::kFloat16:
      return "pertoken_stats_float16";
    case FloatFormat::kBFloat16:
      return "pertoken_stats_bfloat16";
    default:
      return "pertoken_stats_float8";
  }
}

std::optional<StatsPlan> plan_stats(const TensorView& view, int multiprocessors,
                                    std::string& reason, bool by_row) {
  StatsPlan plan;
  if (by_row) {
    if (view.dims < 1 || view.shape[0] < 0 || view.shape[0] > kMostRows) {
      reason = "a batch of more than 65,535 rows is not counted by row";
      return std::nullopt;
    }
    plan.rows = static_cast<uint32_t>(view.shape[0]);
    if (plan.rows == 0) return plan;
  }
  const TensorBlocks blocks(by_row ? slice_of(view, 0, 0, 1) : view);
  plan.repeats = blocks.repeats();
  if (stats_kernel_of(view.format) == nullptr) {
    reason = "there is no kernel for float64 on a GPU; convert it to float32";
    return std::nullopt;
  }
  const uint64_t values = blocks.values_left();
  if (values == 0) return plan;
  if (values * plan.rows > kMostValues) {
    reason = "a tensor of 2^32 values or more is not counted in one piece; pass parts of it";
    return std::nullopt;
  }
  const auto shape = blocks.shape();
  const auto strides = blocks.strides_bytes();
  const size_t row_dims = by_row ? 1 : 0;
  if (row_dims + shape.size() > kOuterDims + 1) {
    reason =
        "the tensor's memory has more than 5 dimensions that cannot be joined; pass "
        "tensor.contiguous()";
    return std::nullopt;
  }
  const int value_bytes = bytes_of(view.format);
  StatsLayout& layout = plan.layout;
  layout.first = reinterpret_cast<uintptr_t>(blocks.first());
  uint64_t low_bits = layout.first | static_cast<uint64_t>(by_row ? view.strides_bytes[0] : 0);
  for (const int64_t stride : strides) low_bits |= static_cast<uint64_t>(stride);
  if (low_bits % static_cast<uint64_t>(value_bytes) != 0) {
    reason = "the tensor's values are not aligned to their size; pass tensor.clone()";
    return std::nullopt;
  }
  layout.run_values = static_cast<uint32_t>(shape.back());
  layout.stride_bytes = strides.back();
  layout.runs = 1;
  layout.outer_dims = static_cast<int32_t>(row_dims + shape.size() - 1);
  if (by_row) {
    layout.outer_shape[0] = plan.rows;
    layout.outer_strides_bytes[0] = view.strides_bytes[0];
  }
  for (size_t dim = 0; dim + 1 < shape.size(); ++dim) {
    layout.outer_shape[row_dims + dim] = static_cast<uint32_t>(shape[dim]);
    layout.outer_strides_bytes[row_dims + dim] = strides[dim];
    layout.runs *= static_cast<uint32_t>(shape[dim]);
  }
  const uint64_t most_blocks = std::clamp<uint64_t>(
      static_cast<uint64_t>(std::max(multiprocessors, 1)) * kBlocksAMultiprocessor / plan.rows, 1,
      kMaxStatsBlocks);
  const uint64_t steps = steps_of_run(layout, value_bytes);
  for (const UnitSize& size : kUnitSizes) {
    layout.unit_size = size.vectors;
    layout.units_a_run = static_cast<uint32_t>(divided_up(steps, size.vectors));
    if (uint64_t{layout.runs} * layout.units_a_run >=
        most_blocks * kWarpsABlock * size.least_units_a_warp) {
      break;
    }
  }
  const uint64_t units = uint64_t{layout.runs} * layout.units_a_run;
  plan.blocks =
      static_cast<uint32_t>(std::min<uint64_t>(divided_up(units, kWarpsABlock), most_blocks));
  return plan;
}

}  // namespace pertoken::cuda
