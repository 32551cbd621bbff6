// How tensors are divided among the warps of a GPU, and which are refused.
#include <cstdint>
#include <string>

#include "check.h"
#include "cuda/stats_plan.h"
#include "tensor_values.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;
using namespace pertoken::cuda;

}  // namespace

TEST(what_cannot_be_counted_is_refused_with_a_reason) {
  const auto bytes = random_bytes(4096, 11);
  std::string reason;
  CHECK(!plan_stats(view_of(bytes, FloatFormat::kFloat64), 4, reason));
  CHECK(reason.find("float64") != std::string::npos);
  CHECK(!plan_stats(view_of(bytes.data() + 1, FloatFormat::kFloat32, 4), 4, reason));
  CHECK(reason.find("not aligned") != std::string::npos);
  TensorView huge = view_of(bytes.data(), FloatFormat::kBFloat16, size_t{1} << 32);
  CHECK(!plan_stats(huge, 4, reason));
  CHECK(reason.find("2^32") != std::string::npos);
  TensorView holes = view_of(bytes.data(), FloatFormat::kFloat8E5M2, 2);
  holes.dims = 6;
  for (size_t i = 0; i < 6; ++i) {
    holes.shape[i] = 2;
    holes.strides_bytes[i] = int64_t{3} << (2 * i);
  }
  CHECK(!plan_stats(holes, 4, reason));
  CHECK(reason.find("contiguous") != std::string::npos);
}

TEST(a_plan_keeps_every_multiprocessor_busy_and_no_more) {
  const auto plan_of = [](size_t values, int multiprocessors) {
    std::string reason;
    const TensorView view = view_of(nullptr, FloatFormat::kBFloat16, values);
    return plan_stats(view, multiprocessors, reason).value_or(StatsPlan{});
  };
  const StatsPlan large = plan_of(size_t{1} << 25, 132);
  CHECK_EQ(large.blocks, 264U);
  CHECK_EQ(large.layout.unit_size, 256U);
  const StatsPlan medium = plan_of(size_t{1} << 23, 132);
  CHECK_EQ(medium.blocks, 264U);
  CHECK_EQ(medium.layout.unit_size, 128U);
  const StatsPlan decode = plan_of(size_t{32} * 4096, 132);
  CHECK_EQ(decode.blocks, 32U);
  CHECK_EQ(decode.layout.unit_size, 32U);
  CHECK_EQ(plan_of(1, 132).blocks, 1U);
  CHECK_EQ(plan_of(0, 132).blocks, 0U);
  CHECK(plan_of(size_t{1} << 30, 100'000).blocks <= static_cast<uint32_t>(kMaxStatsBlocks));
}

TEST(rows_share_the_multiprocessors_and_too_many_are_refused) {
  TensorView view = view_of(nullptr, FloatFormat::kBFloat16, size_t{1} << 20);
  view.dims = 2;
  view.shape[1] = int64_t{1} << 20;
  view.strides_bytes[1] = 2;
  view.shape[0] = 8;
  view.strides_bytes[0] = int64_t{2} << 20;
  std::string reason;
  const StatsPlan plan = plan_stats(view, 132, reason, true).value_or(StatsPlan{});
  CHECK_EQ(plan.rows, 8U);
  CHECK_EQ(plan.blocks, 33U);
  view.shape[1] = 1;
  view.shape[0] = 65536;
  CHECK(!plan_stats(view, 132, reason, true));
  CHECK(reason.find("65,535 rows") != std::string::npos);
  view.shape[0] = 0;
  CHECK_EQ(plan_stats(view, 132, reason, true).value_or(StatsPlan{}).blocks, 0U);
}
