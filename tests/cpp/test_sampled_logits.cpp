// The sampler where logits are read as well: one budget for all three details, what reading costs,
// which falls behind the step and on the next one, and what the steps that were read say of all.
#include <array>
#include <cmath>
#include <random>

#include "check.h"
#include "sampled_world.h"

namespace pertoken {
namespace {

// Nothing is observed where `observe_ns` is negative.
World reading(double budget, double prior_ns, uint64_t seed = 1, double observe_ns = -1) {
  const Cost cost{.drain_observed_ns = 20'000};
  return World(with_logits(options(budget, layers(17), cost, seed, observe_ns), prior_ns), cost);
}

TEST(one_budget_is_held_for_spans_observations_and_logits) {
  for (const double budget : {0.002, 0.01, 0.05}) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      // What reading takes is known about, or not at all.
      World world = reading(budget, seed % 2 == 0 ? 100'000 : 2'000, seed, 60'000);
      world.observe_ns = lognormal(60'000, 0.3, seed);
      world.logits_ns = lognormal(100'000, 0.3, seed + 50);
      const auto usual = lognormal(1.1 * kMillisecond, 0.1, seed);
      // What 0.2 % of 200 such steps pays besides the spans is less than one step's logits.
      const bool is_tiny = budget < 0.01;
      CHECK(world.share(200, StepKind::kDecode, usual) <= (is_tiny ? 2 : 1) * budget);
      CHECK(world.share(2000, StepKind::kDecode, usual) <= budget);
      CHECK(world.share(1000, StepKind::kDecode, lognormal(11e6, 0.1, seed)) <= budget);
      CHECK(world.share(is_tiny ? 2000 : 1000, StepKind::kDecode, usual) <= budget);
    }
  }
}

TEST(logits_get_their_part_of_the_budget_and_only_in_steps_that_can_be_read) {
  World world = reading(0.015, 80'000, 1, 80'000);
  world.observe_ns = [] { return 60'000.0; };
  world.logits_ns = [] { return 80'000.0; };
  const auto work = [] { return 1.1 * kMillisecond; };
  world.share(2000, StepKind::kDecode, work);
  world.observe_spent_ns = world.read_spent_ns = 0;
  const double share = world.share(10'000, StepKind::kDecode, work);
  CHECK(share <= 0.015 && share > 0.006);
  // 17 spans cost 2.6 us a step, of 2.5 us that are theirs: the others need all of their parts.
  CHECK(world.rate(StepKind::kDecode) * Sampler::kDeadBand > Sampler::kMostProbability);
  CHECK(world.observe_spent_ns > 0.2 * world.spent_ns);
  CHECK(world.read_spent_ns > 0.2 * world.spent_ns);
  // Where nobody can read them, the others have it all.
  World unread = reading(0.002, 80'000);
  World without(options(0.002, layers(17), {}, 1), {});
  unread.have_logits = false;
  unread.share(3000, StepKind::kOther, work);
  without.share(3000, StepKind::kOther, work);
  const DetailReport row = unread.logits(StepKind::kOther);
  CHECK_EQ(row.decided, 0u);
  const double used = unread.share(5000, StepKind::kOther, work);
  CHECK(std::abs(used - without.share(5000, StepKind::kOther, work)) < 0.0001);
}

TEST(what_logits_cost_is_taken_from_where_they_are_read_and_corrected_by_the_step_behind) {
  for (const bool are_declared : {false, true}) {
    World world = reading(0.05, 1'000);
    world.are_declared = are_declared;
    std::mt19937_64 random(5);
    std::normal_distribution<double> normal(0, 8'000);
    world.noise_ns = [&] { return random() % 100 == 0 ? 5e6 : normal(random); };
    world.logits_ns = [] { return 40'000.0; };
    world.logits_besides = 2;  // as much again, twice, in the step behind
    const auto work = [] { return 2 * kMillisecond; };
    world.share(20'000, StepKind::kDecode, work);
    CHECK(world.share(4000, StepKind::kDecode, work) <= 0.055);
    const DetailReport row = world.logits(StepKind::kDecode);
    CHECK(row.is_measured);
    const double each_ns = row.measured_ns / static_cast<double>(row.detailed[0]);
    CHECK(std::abs(each_ns - 120'000) < 15'000);
    CHECK(row.low_ns <= row.measured_ns && row.measured_ns <= row.high_ns);
    // Spans are not blamed for it.
    const DetailReport spans = world.spans(StepKind::kDecode);
    CHECK(spans.detail_ns / static_cast<double>(spans.detailed[0]) < 10'000);
  }
}

TEST(logits_that_cost_far_more_than_was_known_are_paid_back) {
  uint64_t read = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    World world = reading(0.01, 1'000, seed);
    world.logits_ns = [] { return 5 * kMillisecond; };
    CHECK(world.share(20'000, StepKind::kDecode, [] { return kMillisecond; }) <= 0.0105);
    read += world.logits(StepKind::kDecode).detailed[0];
  }
  CHECK(read > 30);
}

TEST(no_more_logits_are_read_than_of_one_step_in_so_many) {
  World world(with_logits(options(1, layers(17), {}, 1), 1'000, 1.0 / 16), {});
  const int seen = steps_with(world, &World::read, 16'000);
  CHECK(seen > 800 && seen < 1200);
  const DetailReport row = world.logits(StepKind::kDecode);
  CHECK_EQ(row.rates[0], 1.0 / 16);
}

TEST(first_steps_of_a_request_are_read_with_a_higher_probability_which_they_carry) {
  World world = reading(0.01, 100'000);
  world.logits_ns = [] { return 100'000.0; };
  world.share(3000, StepKind::kDecode, [] { return 2 * kMillisecond; });
  std::array<double, 2> seen{};
  std::array<double, 2> weights{};
  std::array<int, 2> steps{};
  for (int i = 0; i < 40'000; ++i) {
    const bool is_first = i % 100 == 0;
    world.step(StepKind::kDecode, 2e6, is_first);
    ++steps[is_first];
    seen[is_first] += world.read.level >= 0;
    weights[is_first] += world.read.weight;
  }
  CHECK(seen[1] / steps[1] > 2 * seen[0] / steps[0]);
  CHECK(std::abs(weights[1] / steps[1] - 1) < 0.3);
}

// Means over seeds of weighted sums over the steps that were read, over those that had spans as
// well, and over those that had all, against the true ones; in standard errors. `work` says of each
// step how long it works, and its value.
void check_read_unbiased(
    const std::function<std::pair<double, double>(int step, const World& world)>& work) {
  constexpr int kSeeds = 500;
  EstimateErrors<3> errors;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    World world = reading(0.03, 40'000, 15'485'863 * seed, 10'000);
    double work_ns = 0;
    world.observe_ns = [&] { return 0.01 * work_ns; };
    world.logits_ns = [&] { return 0.05 * work_ns; };
    std::array<double, 3> estimate{};
    double truth = 0;
    for (int i = 0; i < 6000; ++i) {
      const auto [takes_ns, value] = work(i, world);
      work_ns = takes_ns;
      const SampleChoice spans = world.step(StepKind::kDecode, work_ns);
      truth += value;
      estimate[0] += world.read.weight * value;
      estimate[1] += world.read.weight * spans.weight * value;
      estimate[2] += world.read.weight * spans.weight * world.observed.weight * value;
    }
    errors.add(estimate, truth);
  }
  for (size_t i = 0; i < 3; ++i) {
    // Products of weights are far larger than each.
    CHECK(errors.deviation(i) < (i == 0 ? 0.05 : 0.2));
    CHECK(std::abs(errors.mean(i)) < 4 * errors.deviation(i) + 1e-9);
  }
}

TEST(weighted_sums_of_logits_are_unbiased_in_bursts_of_slow_steps) {
  check_read_unbiased([](int step, const World&) {
    const bool is_slow = step / 40 % 5 == 0 || step % 8 == 0;
    return std::pair(is_slow ? 3 * kMillisecond : 0.5 * kMillisecond, is_slow ? 4.0 : 1.0);
  });
}

TEST(weighted_sums_of_logits_are_unbiased_while_the_rates_change) {
  check_read_unbiased([](int step, const World&) {
    const double scale = step / 500 % 2 == 0 ? 10 : 1;
    return std::pair(scale * 300'000, scale);
  });
}

TEST(weighted_sums_of_logits_are_unbiased_where_being_read_makes_the_next_step_slow) {
  check_read_unbiased([](int, const World& world) {
    const double value = world.read.level >= 0 ? 3 : 1;
    return std::pair(value * 500'000, value);
  });
}

TEST(weighted_sums_of_logits_are_unbiased_when_the_period_is_that_of_the_sampling) {
  check_read_unbiased([](int step, const World&) {
    const double slow = step % 8 == 0 ? 5 : 1;
    return std::pair(slow * 200'000, slow);
  });
}

}  // namespace
}  // namespace pertoken
