// The statistics kernel's arithmetic and the host's side of it, on a processor over a fake driver:
// every count exactly as of the reference, sums to their stated error, for every pattern of the
// narrow formats, every kind of float32, strides, alignments and block counts; and what is lost is
// counted.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/float_value.h"
#include "core/tensor_stats.h"
#include "cuda/gpu_stats.h"
#include "emulated_kernels.h"
#include "tensor_values.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;
using namespace pertoken::cuda;

constexpr FloatFormat kFormats[] = {
    FloatFormat::kFloat32,        FloatFormat::kFloat16,        FloatFormat::kBFloat16,
    FloatFormat::kFloat8E4M3FN,   FloatFormat::kFloat8E4M3FNUZ, FloatFormat::kFloat8E5M2,
    FloatFormat::kFloat8E5M2FNUZ,
};

const std::byte kImage[16] = {};

// A GPU of the fake driver, with the kernels.
struct Gpu {
  FakeDriver driver;
  std::unique_ptr<GpuStats> stats;
  CUstream stream = nullptr;
  uint32_t launches = 0;

  Gpu() {
    add_stats_kernels(driver);
    std::string reason;
    stats = GpuStats::make(*driver.api(), kImage, reason);
    CHECK_EQ(reason, "");
    CHECK_EQ(driver.api()->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
  }

  StatsPlan plan(const TensorView& view, int multiprocessors = 4) {
    std::string reason;
    const auto plan = plan_stats(view, multiprocessors, reason);
    CHECK(plan.has_value());
    return plan.value_or(StatsPlan{});
  }

  CUresult launch(const StatsPlan& plan, FloatFormat format, CUstream on) {
    return stats->launch(plan, format, on, ++launches);
  }

  ExpHistogram count(const TensorView& view, int scale, int multiprocessors = 4) {
    const StatsPlan planned = plan(view, multiprocessors);
    CHECK_EQ(launch(planned, view.format, stream), CUDA_SUCCESS);
    driver.advance(100'000);
    StatsResult result;
    if (planned.blocks == 0) {
      CHECK(!stats->take(result));
      return ExpHistogram(scale);
    }
    CHECK(stats->take(result));
    CHECK_EQ(result.launch, launches);
    return result.histogram(scale, planned.repeats);
  }
};

// The kernels add doubles, each exact; so the error is that of the additions alone.
void check_same(const ExpHistogram& actual, const TensorView& view, int scale) {
  const ExpHistogram expected = reference_histogram_of(view, scale);
  CHECK(actual.positive() == expected.positive());
  CHECK(actual.negative() == expected.negative());
  CHECK_EQ(actual.count(), expected.count());
  CHECK_EQ(actual.zero_count(), expected.zero_count());
  CHECK_EQ(actual.nan_count(), expected.nan_count());
  CHECK_EQ(actual.pos_inf_count(), expected.pos_inf_count());
  CHECK_EQ(actual.neg_inf_count(), expected.neg_inf_count());
  if (expected.count() == 0) return;
  CHECK_EQ(actual.min(), expected.min());
  CHECK_EQ(actual.max(), expected.max());
  CHECK(!(actual.min() == 0 && std::signbit(actual.min())));
  long double sum = 0;
  long double size = 0;
  long double sum_sq = 0;
  TensorBlocks blocks(view);
  alignas(64) std::byte staging[kBlockValues * sizeof(double)];
  const auto bytes = static_cast<size_t>(bytes_of(view.format));
  for (auto block = blocks.next(staging); block.count != 0; block = blocks.next(staging)) {
    for (size_t i = 0; i < block.count; ++i) {
      const long double value = value_at(block.values + i * bytes, view.format);
      if (!std::isfinite(value)) continue;
      sum += value;
      size += std::abs(value);
      sum_sq += value * value;
    }
  }
  const auto repeats = static_cast<long double>(blocks.repeats());
  const auto n = static_cast<long double>(expected.count());
  const long double error = (n + 2) * 0x1p-53L;
  CHECK(std::abs(actual.sum() - sum * repeats) <= size * repeats * error);
  CHECK(std::abs(actual.sum_sq() - sum_sq * repeats) <= sum_sq * repeats * error);
}

template <typename Bits>
std::vector<std::byte> every_pattern() {
  std::vector<Bits> patterns;
  for (uint32_t bits = 0; bits < (1U << (8 * sizeof(Bits))); ++bits) {
    patterns.push_back(static_cast<Bits>(bits));
  }
  return bytes_of_all(patterns);
}

// In an order in which vectors without special values are there, too.
std::vector<std::byte> every_half_in_order() { return every_pattern<uint16_t>(); }

std::vector<std::byte> every_half_shuffled() {
  std::vector<uint16_t> patterns(65536);
  for (size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<uint16_t>(i);
  std::shuffle(patterns.begin(), patterns.end(), std::mt19937_64(1));
  return bytes_of_all(patterns);
}

}  // namespace

TEST(every_pattern_of_the_narrow_formats) {
  Gpu gpu;
  for (const auto& halves : {every_half_in_order(), every_half_shuffled()}) {
    for (const FloatFormat format : {FloatFormat::kFloat16, FloatFormat::kBFloat16}) {
      check_same(gpu.count(view_of(halves, format), 3), view_of(halves, format), 3);
    }
  }
  const auto bytes = every_pattern<uint8_t>();
  for (const FloatFormat format : kFormats) {
    if (bytes_of(format) != 1) continue;
    for (const int scale : {3, 0, -10}) {
      check_same(gpu.count(view_of(bytes, format), scale), view_of(bytes, format), scale);
    }
  }
}

// Nothing else counts with it: each pattern that is not special fills a tensor of its own.
TEST(each_pattern_of_a_16_bit_format_takes_the_slot_of_the_reference_on_the_quick_way) {
  const SlotCarries& carries = kSlotCarries;
  struct Warp {
    std::vector<uint32_t> slots{};
    void count(uint32_t slot) { slots.push_back(slot); }
    const SlotCarries& carries() const { return kSlotCarries; }
    uint32_t carry(uint32_t top) const { return kSlotCarries.of[top & (kCarries - 1)]; }
    bool any(bool here) const { return here; }
  };
  const auto check_format = [&]<FloatFormat Format>() {
    int special = 0;
    int wrong = 0;
    for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
      // Beside something else, so that a half that takes its neighbour's bits would show.
      const uint32_t word = pattern | (pattern ^ 0x0aa5U) << 16;
      const Vector vector = {{word, word, word, word}};
      const Vector only[1] = {{{pattern, 0, pattern << 16, 0}}};
      const uint32_t bits = widened_bits<Format>(pattern);
      const bool is_special = has_special<Format>(only);
      const uint32_t magnitude = bits & ~kFloat32Sign;
      wrong += is_special !=
               (magnitude >= kFloat32Infinity || (magnitude != 0 && magnitude < (1U << 23)));
      special += is_special;
      if (is_special) continue;
      Warp warp;
      StatsMoments moments = no_moments();
      take_plain_vector<Format>(vector, warp, moments);
      wrong += warp.slots[0] != slot_of(bits, carries);
      wrong += warp.slots[6] != slot_of(bits, carries);
    }
    CHECK_EQ(wrong, 0);
    CHECK(special > 0);
  };
  check_format.operator()<FloatFormat::kFloat16>();
  check_format.operator()<FloatFormat::kBFloat16>();
}

TEST(random_and_adversarial_values_at_every_scale_there_is) {
  Gpu gpu;
  for (int scale = kMinHistogramScale; scale <= kSlotScale; ++scale) {
    const auto seed = static_cast<uint64_t>(scale + 50);
    const auto normal = normal_float32(3001, seed);
    const auto adversarial = adversarial_float32(3001, seed);
    const auto bytes = random_bytes(3001 * 4, seed);
    const TensorView views[] = {view_of(normal, FloatFormat::kFloat32),
                                view_of(adversarial, FloatFormat::kFloat32)};
    for (const TensorView& view : views) check_same(gpu.count(view, scale), view, scale);
    for (const FloatFormat format : kFormats) {
      check_same(gpu.count(view_of(bytes, format), scale), view_of(bytes, format), scale);
    }
  }
  const auto values = normal_float32(10, 1);
  const StatsPlan plan = gpu.plan(view_of(values, FloatFormat::kFloat32));
  CHECK_EQ(gpu.launch(plan, FloatFormat::kFloat32, gpu.stream), CUDA_SUCCESS);
  gpu.driver.advance(100'000);
  StatsResult result;
  CHECK(gpu.stats->take(result));
  bool thrown = false;
  try {
    (void)result.histogram(4, 1);
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  CHECK(thrown);
}

TEST(every_length_from_every_alignment_with_few_and_many_blocks) {
  Gpu gpu;
  const auto bytes = random_bytes(70'000, 6);
  std::mt19937_64 random(7);
  std::vector<size_t> lengths = {511, 512, 513, 2047, 2048, 2049, 4096, 8191, 16'000};
  for (size_t length = 0; length <= 70; ++length) lengths.push_back(length);
  for (const size_t length : lengths) {
    for (const FloatFormat format : kFormats) {
      const auto value_bytes = static_cast<size_t>(bytes_of(format));
      const size_t shift = random() % 16 * value_bytes;
      const TensorView view = view_of(bytes.data() + shift, format, length);
      check_same(gpu.count(view, 3, random() % 2 == 0 ? 1 : 132), view, 3);
    }
  }
}

TEST(random_shapes_and_strides) {
  Gpu gpu;
  const auto bytes = random_bytes(1 << 20, 8);
  std::mt19937_64 random(9);
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    TensorView view;
    view.format = kFormats[random() % std::size(kFormats)];
    const int64_t value_bytes = bytes_of(view.format);
    view.dims = static_cast<int>(random() % 6);
    int64_t lowest = 0;
    int64_t span = 0;
    for (size_t i = 0; i < static_cast<size_t>(view.dims); ++i) {
      view.shape[i] = static_cast<int64_t>(random() % 9);
      const int64_t steps[] = {0, 1, 1, 2, 3, 9, 64, 700};
      view.strides_bytes[i] = value_bytes * steps[random() % std::size(steps)];
      if (random() % 4 == 0) view.strides_bytes[i] *= -1;
      const int64_t reach = view.strides_bytes[i] * (view.shape[i] - 1);
      lowest += std::min<int64_t>(reach, 0);
      span += std::abs(reach);
    }
    if (span + value_bytes + 64 > static_cast<int64_t>(bytes.size())) continue;
    const auto shift = static_cast<int64_t>(random() % 8) * value_bytes;
    view.data = bytes.data() + shift - lowest;
    std::string reason;
    if (!plan_stats(view, 4, reason)) {
      ++refused;
      continue;
    }
    check_same(gpu.count(view, 3, round % 3 == 0 ? 132 : 1), view, 3);
  }
  CHECK(refused < 100);
}

TEST(rows_of_a_larger_matrix_and_columns_of_it) {
  Gpu gpu;
  const auto values = normal_float32(size_t{64} * 1000, 10);
  TensorView view = view_of(values, FloatFormat::kFloat32);
  view.dims = 2;
  view.shape[0] = 64;
  view.shape[1] = 777;
  view.strides_bytes[0] = 4000;
  view.strides_bytes[1] = 4;
  check_same(gpu.count(view, 3), view, 3);
  CHECK_EQ(gpu.plan(view).layout.runs, 64U);
  view.strides_bytes[1] = 8;
  view.shape[1] = 400;
  check_same(gpu.count(view, 3), view, 3);
}

TEST(streams_that_overlap_have_workspaces_of_their_own_and_too_many_are_counted) {
  Gpu gpu;
  const auto values = normal_float32(500, 12);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  const StatsPlan plan = gpu.plan(view);
  std::vector<CUstream> streams(GpuStats::kStreams + 3);
  uint64_t refused = 0;
  StatsResult result;
  for (CUstream& stream : streams) {
    CHECK_EQ(gpu.driver.api()->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    refused += gpu.launch(plan, view.format, stream) != CUDA_SUCCESS;
    gpu.driver.advance(100'000);
    if (gpu.stats->take(result)) check_same(result.histogram(3, 1), view, 3);
  }
  CHECK_EQ(refused, 3U);
  CHECK_EQ(gpu.stats->losses().no_workspace, 3U);
  CHECK_EQ(gpu.launch(plan, view.format, streams[0]), CUDA_SUCCESS);
  CHECK_EQ(gpu.driver.misuses(), 0U);
}

TEST(rows_are_counted_apart_in_one_launch) {
  Gpu gpu;
  const auto bytes = random_bytes(200'000, 17);
  std::mt19937_64 random(18);
  StatsResult result;
  for (int round = 0; round < 60; ++round) {
    const FloatFormat format = kFormats[random() % std::size(kFormats)];
    const int64_t value_bytes = bytes_of(format);
    TensorView view = view_of(bytes.data(), format, 0);
    view.dims = 3;
    view.shape[0] = static_cast<int64_t>(1 + random() % 40);
    view.shape[1] = static_cast<int64_t>(1 + random() % 4);
    view.shape[2] = static_cast<int64_t>(1 + random() % 200);
    view.strides_bytes[2] = value_bytes;
    view.strides_bytes[1] = value_bytes * view.shape[2];
    view.strides_bytes[0] = view.strides_bytes[1] * view.shape[1];
    if (random() % 3 == 0) std::swap(view.strides_bytes[0], view.strides_bytes[1]);
    if (random() % 4 == 0) view.strides_bytes[0] = 0;
    if (random() % 4 == 0) {
      view.data += bytes.size() / 2;
      view.strides_bytes[0] *= -1;
    }
    std::string reason;
    const auto plan = plan_stats(view, random() % 2 == 0 ? 1 : 132, reason, true);
    CHECK(plan.has_value());
    CHECK_EQ(int64_t{plan->rows}, view.shape[0]);
    CHECK_EQ(gpu.launch(*plan, format, gpu.stream), CUDA_SUCCESS);
    gpu.driver.advance(1'000'000);
    for (int64_t row = 0; row < view.shape[0]; ++row) {
      CHECK(gpu.stats->take(result));
      CHECK_EQ(int64_t{result.row}, row);
      check_same(result.histogram(3, plan->repeats), slice_of(view, 0, row, row + 1), 3);
    }
    CHECK(!gpu.stats->take(result));
  }
  CHECK_EQ(gpu.stats->losses().no_workspace, 0U);
  CHECK_EQ(gpu.driver.calls("cuLaunchKernel"), 60U);
}

TEST(more_rows_than_there_are_workspaces_are_refused_and_counted) {
  Gpu gpu;
  const auto values = normal_float32(GpuStats::kWorkspaces + 1, 19);
  TensorView view = view_of(values, FloatFormat::kFloat32);
  std::string reason;
  const auto plan = plan_stats(view, 4, reason, true);
  CHECK_EQ(gpu.launch(*plan, view.format, gpu.stream), CUDA_ERROR_OUT_OF_MEMORY);
  CHECK_EQ(gpu.stats->losses().no_workspace, 1U);
  check_same(gpu.count(view, 3), view, 3);
}

TEST(results_that_nobody_takes_are_overwritten_and_counted) {
  Gpu gpu;
  const auto values = normal_float32(200, 13);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  const StatsPlan plan = gpu.plan(view);
  std::mt19937_64 random(14);
  StatsResult result;
  uint64_t taken = 0;
  uint32_t last = 0;
  for (int round = 0; round < 60; ++round) {
    const auto more = static_cast<int>(random() % 150);
    for (int i = 0; i < more; ++i) gpu.launch(plan, view.format, gpu.stream);
    gpu.driver.advance(10'000'000);
    while (gpu.stats->take(result)) {
      ++taken;
      CHECK(result.launch > last);
      last = result.launch;
      CHECK_EQ(result.histogram(3, 1).count(), 200U);
    }
  }
  CHECK_EQ(last, gpu.launches);
  CHECK_EQ(taken + gpu.stats->losses().lost, gpu.launches);
  CHECK(gpu.stats->losses().lost > 0);
}

TEST(a_captured_launch_counts_what_each_replay_finds_and_is_switched_without_capturing_again) {
  Gpu gpu;
  const DriverApi& api = *gpu.driver.api();
  std::vector<float> values(1000, 1.0F);
  const TensorView view = view_of(reinterpret_cast<const std::byte*>(values.data()),
                                  FloatFormat::kFloat32, values.size());
  const StatsPlan plan = gpu.plan(view);
  uint32_t word = 0;
  CHECK_EQ(api.cuStreamBeginCapture_v2(gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK_EQ(gpu.stats->launch(plan, view.format, gpu.stream, 5, &word), CUDA_SUCCESS);
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(gpu.stream, &graph), CUDA_SUCCESS);
  CHECK_EQ(gpu.driver.captures_broken(), 0U);
  CUgraphExec exec = nullptr;
  CHECK_EQ(api.cuGraphInstantiateWithFlags(&exec, graph, 0), CUDA_SUCCESS);
  StatsResult result;
  for (uint32_t replay = 1; replay <= 20; ++replay) {
    word = replay % 3 == 0 ? replay : 0;
    values.assign(values.size(), static_cast<float>(replay));
    CHECK_EQ(api.cuGraphLaunch(exec, gpu.stream), CUDA_SUCCESS);
    gpu.driver.advance(1'000'000);
    CHECK_EQ(gpu.stats->take(result), replay % 3 == 0);
    if (replay % 3 != 0) continue;
    CHECK_EQ(result.launch, 5U);
    CHECK_EQ(result.replay, replay);
    CHECK_EQ(result.histogram(3, 1).max(), static_cast<double>(replay));
    CHECK_EQ(result.histogram(3, 1).count(), 1000U);
  }
}

TEST(blocks_that_disagree_leave_no_result_and_no_trace) {
  Gpu gpu;
  const auto values = normal_float32(4000, 15);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  StatsPlan plan = gpu.plan(view);
  CHECK(plan.blocks > 1);
  StatsArgs seen{};
  gpu.driver.add_kernel(stats_kernel_of(FloatFormat::kFloat32),
                        {{sizeof(StatsArgs)}, 3000, [&](const FakeLaunch& launch) {
                           seen = launch.parameter<StatsArgs>(0);
                         }});
  uint32_t word = 0;
  CHECK_EQ(gpu.stats->launch(plan, view.format, gpu.stream, 9, &word), CUDA_SUCCESS);
  gpu.driver.advance(100'000);
  for (uint32_t block = 0; block < plan.blocks; ++block) {
    word = block % 2;
    run_stats_block<FloatFormat::kFloat32>(seen, 0, block, plan.blocks);
  }
  StatsResult result;
  CHECK(!gpu.stats->take(result));
  CHECK_EQ(gpu.stats->losses().discarded, 1U);
  word = 1;
  run_stats<FloatFormat::kFloat32>(seen, plan.blocks);
  CHECK(gpu.stats->take(result));
  check_same(result.histogram(3, 1), view, 3);
}

TEST(a_driver_that_refuses_is_counted_and_one_that_cannot_be_set_up_says_why) {
  Gpu gpu;
  const auto values = normal_float32(100, 16);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  gpu.driver.fail("cuLaunchKernel", CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK_EQ(gpu.launch(gpu.plan(view), view.format, gpu.stream), CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK_EQ(gpu.stats->losses().not_launched, 1U);
  check_same(gpu.count(view, 3), view, 3);
  std::string reason;
  CHECK(GpuStats::make(*gpu.driver.api(), {}, reason) == nullptr);
  CHECK_EQ(reason, "this build has no kernels for GPUs");
  for (const char* symbol : {"cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc_v2",
                             "cuMemHostRegister_v2", "cuStreamCreate", "cuMemsetD8Async"}) {
    gpu.driver.fail(symbol, CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(GpuStats::make(*gpu.driver.api(), kImage, reason) == nullptr);
    CHECK(reason.find("the kernels cannot be set up") == 0);
  }
}
