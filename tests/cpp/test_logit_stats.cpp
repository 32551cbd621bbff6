// The kernels of every set of instructions that this processor has, against the reference; and the
// reference against what is known in closed form.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/logit_stats.h"
#include "core/softmax_sums.h"
#include "tensor_values.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

using namespace pertoken::testing;
using pertoken::FloatFormat;
using pertoken::InstructionSet;
using pertoken::logit_stats;
using pertoken::LogitStats;
using pertoken::reference_logit_stats;
using pertoken::TensorView;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<InstructionSet> sets_here() {
  std::vector<InstructionSet> sets;
  for (const auto set :
       {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    if (pertoken::is_supported(set)) sets.push_back(set);
  }
  return sets;
}

void check_close(double actual, double expected) {
  if (std::isnan(expected)) {
    CHECK(std::isnan(actual));
  } else {
    CHECK(std::abs(actual - expected) <= 2e-6 * std::max(1.0, std::abs(expected)));
  }
}

void check_close(const LogitStats& actual, const LogitStats& expected) {
  check_close(actual.top1_prob, expected.top1_prob);
  check_close(actual.margin, expected.margin);
  check_close(actual.entropy, expected.entropy);
  check_close(actual.log_sum, expected.log_sum);
}

void check_all(const TensorView& view) {
  const LogitStats expected = reference_logit_stats(view);
  for (const InstructionSet set : sets_here()) check_close(logit_stats(view, set), expected);
}

LogitStats reference_of(const std::vector<float>& logits) {
  const auto bytes = bytes_of_all(logits);
  return reference_logit_stats(view_of(bytes.data(), FloatFormat::kFloat32, logits.size()));
}

void check_values(const std::vector<float>& logits, const LogitStats& expected) {
  check_close(reference_of(logits), expected);
  const auto bytes = bytes_of_all(logits);
  check_all(view_of(bytes.data(), FloatFormat::kFloat32, logits.size()));
}

void check_unknown(const std::vector<float>& logits) { check_values(logits, LogitStats{}); }

std::vector<float> random_logits(size_t count, uint64_t seed, float spread) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

TEST(what_is_known_in_closed_form) {
  check_values({3.5F}, {.top1_prob = 1, .margin = 1, .entropy = 0, .log_sum = 3.5});
  check_values(
      {-7, -7},
      {.top1_prob = 0.5, .margin = 0, .entropy = std::log(2), .log_sum = -7 + std::log(2)});
  for (const size_t count : {size_t{3}, size_t{16}, size_t{17}, size_t{5000}, size_t{300'001}}) {
    const auto n = static_cast<double>(count);
    check_values(
        std::vector<float>(count, 2),
        {.top1_prob = 1 / n, .margin = 0, .entropy = std::log(n), .log_sum = 2 + std::log(n)});
  }
  const double p = 3.0 / 4;
  check_values({0, static_cast<float>(std::log(3.0))},
               {.top1_prob = p,
                .margin = 0.5,
                .entropy = -p * std::log(p) - (1 - p) * std::log(1 - p),
                .log_sum = std::log(4.0)});
}

TEST(masked_logits_have_no_part_in_it) {
  for (const size_t count : {size_t{1}, size_t{40}, size_t{4096}, size_t{9000}}) {
    std::vector<float> logits(count, -kInfinity);
    check_unknown(logits);
    logits[count / 2] = -1e30F;
    check_values(logits, {.top1_prob = 1, .margin = 1, .entropy = 0, .log_sum = double{-1e30F}});
    if (count < 2) continue;
    logits.back() = -1e30F;
    check_values(logits, {.top1_prob = 0.5,
                          .margin = 0,
                          .entropy = std::log(2),
                          .log_sum = double{-1e30F} + std::log(2)});
  }
}

TEST(a_nan_or_an_infinity_anywhere_is_told) {
  for (const size_t count : {size_t{1}, size_t{16}, size_t{33}, size_t{5000}}) {
    for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
      for (const size_t at : {size_t{0}, count / 2, count - 1}) {
        std::vector<float> logits = random_logits(count, at, 1);
        logits[at] = wrong;
        check_unknown(logits);
      }
    }
  }
}

TEST(every_size_round_a_vector_a_chunk_and_a_block) {
  for (const size_t size : {size_t{16}, size_t{1024}, size_t{4096}, size_t{8192}}) {
    for (size_t count = size - 3; count <= size + 18; ++count) {
      const auto bytes = bytes_of_all(random_logits(count, count, 4));
      check_all(view_of(bytes.data(), FloatFormat::kFloat32, count));
    }
  }
}

// The largest rises along the way, falls, or jumps by more than a float32's exponential can hold.
TEST(wherever_the_largest_is) {
  for (const float slope : {0.001F, -0.001F, 0.5F, -0.5F, 1e30F, -1e30F}) {
    std::vector<float> logits = random_logits(10'007, 5, 1);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] += slope * static_cast<float>(i);
    const auto bytes = bytes_of_all(logits);
    check_all(view_of(bytes.data(), FloatFormat::kFloat32, logits.size()));
  }
  check_values({std::numeric_limits<float>::lowest(), std::numeric_limits<float>::max()},
               {.top1_prob = 1,
                .margin = 1,
                .entropy = 0,
                .log_sum = double{std::numeric_limits<float>::max()}});
}

TEST(two_largest_wherever_they_are) {
  for (size_t first = 0; first < 50; ++first) {
    for (size_t second = 0; second < 50; second += 7) {
      if (first == second) continue;
      std::vector<float> logits(50, -2);
      logits[first] = 3;
      logits[second] = 2.5F;
      const auto bytes = bytes_of_all(logits);
      const TensorView view = view_of(bytes.data(), FloatFormat::kFloat32, logits.size());
      const LogitStats stats = reference_logit_stats(view);
      check_close(stats.margin, stats.top1_prob * (1 - std::exp(-0.5)));
      check_all(view);
    }
  }
}

TEST(all_formats_and_bits) {
  for (const FloatFormat format :
       {FloatFormat::kFloat64, FloatFormat::kFloat32, FloatFormat::kFloat16, FloatFormat::kBFloat16,
        FloatFormat::kFloat8E4M3FN, FloatFormat::kFloat8E5M2}) {
    const auto bytes_each = static_cast<size_t>(bytes_of(format));
    for (uint64_t seed = 0; seed < 40; ++seed) {
      // Random bits are rarely all finite: few of them, so that some are.
      const size_t count = 1 + seed * 7;
      const auto bytes = random_bytes(count * bytes_each, seed);
      check_all(view_of(bytes.data(), format, count));
    }
  }
}

TEST(strides) {
  const std::vector<float> logits = random_logits(30'000, 9, 3);
  const auto bytes = bytes_of_all(logits);
  for (const int64_t stride : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}}) {
    TensorView view = view_of(bytes.data(), FloatFormat::kFloat32, 4100);
    view.strides_bytes[0] = stride * 4;
    check_all(view);
  }
  TensorView same = view_of(bytes.data(), FloatFormat::kFloat32, 1000);
  same.strides_bytes[0] = 0;
  check_close(reference_logit_stats(same), {.top1_prob = 0.001,
                                            .margin = 0,
                                            .entropy = std::log(1000.0),
                                            .log_sum = double{logits[0]} + std::log(1000.0)});
  check_all(same);
}

TEST(nothing_says_nothing) {
  check_close(logit_stats(view_of(nullptr, FloatFormat::kFloat32, 0)), {});
  check_close(logit_stats(view_of(nullptr, FloatFormat::kFloat64, 0)), {});
}

#if defined(__x86_64__)
TEST(the_hosts_floating_point_settings_do_not_matter_and_stay) {
  const std::vector<float> logits(2000, -88.5F);
  const auto bytes = bytes_of_all(logits);
  const TensorView view = view_of(bytes.data(), FloatFormat::kFloat32, logits.size());
  const uint32_t host = _mm_getcsr();
  _mm_setcsr(host | 0x8040 | 0x2000);  // flush and round down
  const uint32_t set = _mm_getcsr();
  const LogitStats stats = logit_stats(view);
  const uint32_t after = _mm_getcsr();
  _mm_setcsr(host);
  CHECK_EQ(after, set);
  check_close(stats, reference_logit_stats(view));
}
#endif

}  // namespace
