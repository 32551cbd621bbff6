// What logits said of tokens, told before and after it is known which tokens were committed.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/committed_logits.h"

namespace pertoken {
namespace {

constexpr float kUnknown = TokenLogits::kUnknown;

const ValueTotals& of(const CommittedLogits& logits, StepKind kind, LogitSignal signal) {
  return logits.totals()[static_cast<size_t>(kind) * CommittedLogits::kSignals +
                         static_cast<size_t>(signal)];
}

uint64_t counted(const CommittedLogits& logits) {
  uint64_t all = 0;
  for (const ValueTotals& totals : logits.totals()) all += totals.observations;
  return all;
}

CommittedLogits following() {
  CommittedLogits logits;
  logits.follow();
  return logits;
}

TokenLogits told(int64_t step, uint32_t row, uint32_t place, float value, float weight,
                 float logprob) {
  return {step, row, place, value, value / 2, 2 * value, logprob, weight};
}

// Sums of small multiples of powers of two are exact, in any order.
struct Sums {
  uint64_t observations = 0;
  double weight = 0;
  double weighted_sum = 0;
  double weighted_sum_sq = 0;

  void add(double of_one, double value) {
    ++observations;
    weight += of_one;
    weighted_sum += of_one * value;
    weighted_sum_sq += of_one * value * value;
  }

  void check(const ValueTotals& got) const {
    CHECK_EQ(got.observations, observations);
    CHECK_EQ(got.values.count(), observations);
    CHECK_EQ(got.weight, weight);
    CHECK_EQ(got.weighted_count, weight);
    CHECK_EQ(got.weighted_sum, weighted_sum);
    CHECK_EQ(got.weighted_sum_sq, weighted_sum_sq);
  }
};

// Steps of several rows and places, of which each row commits some, none, or more than its logits
// choose; some tokens are told twice. Told and committed in any order, but the second telling.
void check_schedule(uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  CommittedLogits logits = following();
  std::array<std::array<Sums, CommittedLogits::kSignals>, kStepKinds> expected{};
  std::vector<std::function<void()>> events;
  std::vector<std::function<void()>> later;
  for (int64_t step = 0; step < 40; ++step) {
    const auto kind = static_cast<StepKind>(below(3));
    const uint32_t rows = 1 + below(4);
    const uint32_t places = 1 + below(3);
    const auto weight = static_cast<float>(1 + below(4));
    const bool is_committed = below(8) != 0;
    for (uint32_t row = 0; row < rows; ++row) {
      const uint32_t tokens = below(places + 2);
      for (uint32_t place = 0; place < places; ++place) {
        const float value = static_cast<float>(1 + below(8)) / 8;
        const float logprob = below(3) == 0 ? kUnknown : -value;
        const bool is_told_twice = below(3) == 0;
        events.emplace_back([=, &logits] {
          logits.see(told(step, row, place, value, weight, is_told_twice ? kUnknown : logprob));
        });
        if (is_told_twice) {
          later.emplace_back(
              [=, &logits] { logits.see(told(step, row, place, value, weight, logprob)); });
        }
        if (!is_committed || tokens > places || place >= tokens) continue;
        auto& sums = expected[static_cast<size_t>(kind)];
        sums[0].add(weight, value);
        sums[1].add(weight, value / 2);
        sums[2].add(weight, 2 * value);
        if (!std::isnan(logprob)) sums[3].add(weight, logprob);
      }
      if (!is_committed) continue;
      events.emplace_back([=, &logits] { logits.commit(step, kind, row, tokens); });
    }
  }
  std::shuffle(events.begin(), events.end(), random);
  std::shuffle(later.begin(), later.end(), random);
  for (const auto& event : events) event();
  for (const auto& event : later) event();
  for (size_t kind = 0; kind < kStepKinds; ++kind) {
    for (size_t signal = 0; signal < CommittedLogits::kSignals; ++signal) {
      expected[kind][signal].check(
          of(logits, static_cast<StepKind>(kind), static_cast<LogitSignal>(signal)));
    }
  }
}

TEST(told_and_committed_in_any_order_are_what_they_are_together) {
  for (uint32_t seed = 0; seed < 300; ++seed) check_schedule(seed);
}

TEST(weighted_sums_of_the_steps_that_are_read_are_unbiased) {
  constexpr int kSeeds = 400;
  constexpr int kSteps = 500;
  double truth = 0;
  std::vector<double> sums;
  std::vector<double> counts;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> coin(0, 1);
    CommittedLogits logits = following();
    truth = 0;
    for (int64_t step = 0; step < kSteps; ++step) {
      // What is seldom read differs from what is often read.
      const bool is_rare = step % 7 == 0;
      const double probability = is_rare ? 0.125 : 0.5;
      const float value = is_rare ? 0.75F : 0.25F;
      truth += value;
      if (coin(random) < probability) {
        logits.see(told(step, 0, 0, value, static_cast<float>(1 / probability), -value));
      }
      logits.commit(step, StepKind::kDecode, 0, 1);
    }
    sums.push_back(of(logits, StepKind::kDecode, LogitSignal::kTop1Prob).weighted_sum);
    counts.push_back(of(logits, StepKind::kDecode, LogitSignal::kTop1Prob).weight);
  }
  const auto check_mean = [](const std::vector<double>& values, double right) {
    double mean = 0;
    for (const double value : values) mean += value / kSeeds;
    double square = 0;
    for (const double value : values) square += (value - mean) * (value - mean) / (kSeeds - 1);
    CHECK(std::abs(mean - right) < 4 * std::sqrt(square / kSeeds));
    CHECK(square > 0);
  };
  check_mean(sums, truth);
  check_mean(counts, kSteps);
}

TEST(what_is_unknown_or_infinite_is_no_number_of_the_sums) {
  CommittedLogits logits = following();
  const float infinity = std::numeric_limits<float>::infinity();
  logits.see(told(0, 0, 0, 0.5F, 2, -infinity));
  logits.commit(0, StepKind::kDecode, 0, 1);
  TokenLogits spoiled = told(1, 0, 0, kUnknown, 2, kUnknown);
  logits.see(spoiled);
  logits.commit(1, StepKind::kDecode, 0, 1);
  const ValueTotals& logprob = of(logits, StepKind::kDecode, LogitSignal::kLogprob);
  CHECK_EQ(logprob.observations, uint64_t{1});
  CHECK_EQ(logprob.weight, 2.0);
  CHECK_EQ(logprob.weighted_count, 0.0);
  CHECK_EQ(logprob.weighted_sum, 0.0);
  CHECK_EQ(logprob.values.neg_inf_count(), uint64_t{1});
  CHECK_EQ(of(logits, StepKind::kDecode, LogitSignal::kEntropy).observations, uint64_t{1});
}

TEST(damaged_tokens_are_left_out) {
  CommittedLogits logits = following();
  const float infinity = std::numeric_limits<float>::infinity();
  int64_t step = 0;
  for (const float weight : {0.0F, 0.5F, -2.0F, kUnknown, infinity, 2e12F}) {
    logits.see(told(step, 0, 0, 0.5F, weight, -1));
    logits.commit(step++, StepKind::kDecode, 0, 1);
  }
  logits.see(told(step, CommittedLogits::kMostRows, 0, 0.5F, 1, -1));
  logits.commit(step, StepKind::kDecode, CommittedLogits::kMostRows, 1);
  logits.see(told(kNoStep, 0, 0, 0.5F, 1, -1));
  logits.commit(kNoStep, StepKind::kDecode, 0, 1);
  CHECK_EQ(counted(logits), uint64_t{0});
}

TEST(nothing_is_taken_where_nobody_reads_logits) {
  CommittedLogits logits;
  logits.see(told(0, 0, 0, 0.5F, 1, -1));
  logits.commit(0, StepKind::kDecode, 0, 1);
  CHECK_EQ(counted(logits), uint64_t{0});
}

// Of more steps than are told apart, the oldest are given up, however much they take; a newer one
// loses nothing for them.
TEST(what_waits_is_bounded) {
  for (const uint32_t rows : {1U, 2048U}) {
    CommittedLogits logits = following();
    const int64_t held = std::min(
        CommittedLogits::kSteps,
        static_cast<int64_t>(CommittedLogits::kWaitingBytes / (rows * sizeof(TokenLogits))));
    const int64_t steps = 2 * held + 100;
    for (int64_t step = 0; step < steps; ++step) {
      for (uint32_t row = 0; row < rows; ++row) logits.see(told(step, row, 0, 0.5F, 1, -1));
    }
    for (int64_t step = 0; step < steps; ++step) {
      for (uint32_t row = 0; row < rows; ++row) logits.commit(step, StepKind::kDecode, row, 1);
    }
    const auto left = static_cast<int64_t>(counted(logits) / CommittedLogits::kSignals / rows);
    CHECK(left <= held + 1);
    CHECK(left >= held - 2);
    logits.see(told(steps, 0, 0, 0.5F, 1, -1));
    const uint64_t before = counted(logits);
    logits.commit(steps, StepKind::kDecode, 0, 1);
    CHECK_EQ(counted(logits), before + CommittedLogits::kSignals);
    // One that was given up does not come back, and takes nobody's place.
    logits.see(told(0, 0, 0, 0.5F, 1, -1));
    logits.commit(0, StepKind::kDecode, 0, 1);
    CHECK_EQ(counted(logits), before + CommittedLogits::kSignals);
  }
}

// Steps that are never read leave room for those that are.
TEST(steps_that_are_not_read_do_not_fill_the_room) {
  CommittedLogits logits = following();
  constexpr uint32_t kRows = 4096;
  for (int64_t step = 0; step < 3000; ++step) {
    if (step % 16 == 0) {
      for (uint32_t row = 0; row < kRows; ++row) logits.see(told(step, row, 0, 0.5F, 16, -1));
    }
    for (uint32_t row = 0; row < kRows; ++row) logits.commit(step, StepKind::kDecode, row, 1);
  }
  CHECK_EQ(counted(logits), uint64_t{4} * kRows * (3000 / 16 + 1));
}

}  // namespace
}  // namespace pertoken
