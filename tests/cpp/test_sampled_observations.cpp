// The sampler where steps get spans and are observed: one budget for both, and what each of them
// says of all steps, alone and together.
#include <array>
#include <cmath>
#include <random>

#include "check.h"
#include "sampled_world.h"

namespace pertoken {
namespace {

World observing(double budget, double prior_ns, uint64_t seed = 1, double most = 1) {
  const Cost cost{.drain_observed_ns = 20'000};
  return World(options(budget, layers(17), cost, seed, prior_ns, most), cost);
}

TEST(one_budget_is_held_for_spans_and_observations) {
  for (const double budget : {0.01, 0.05}) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      // What observing takes is known about, or not at all.
      World world = observing(budget, seed % 2 == 0 ? 80'000 : 5'000, seed);
      world.observe_ns = lognormal(60'000, 0.3, seed);
      const auto usual = lognormal(1.1 * kMillisecond, 0.1, seed);
      CHECK(world.share(200, StepKind::kDecode, usual) <= budget);
      CHECK(world.share(2000, StepKind::kDecode, usual) <= budget);
      CHECK(world.share(1000, StepKind::kDecode, lognormal(11e6, 0.1, seed)) <= budget);
      CHECK(world.share(1000, StepKind::kDecode, usual) <= budget);
    }
  }
}

TEST(each_detail_gets_its_part_of_the_budget_and_what_the_other_cannot_use) {
  World world = observing(0.015, 80'000);
  world.observe_ns = [] { return 60'000.0; };
  const auto work = [] { return 1.1 * kMillisecond; };
  world.share(2000, StepKind::kDecode, work);
  world.observe_spent_ns = 0;
  const double share = world.share(5000, StepKind::kDecode, work);
  CHECK(share <= 0.015 && share > 0.006);
  // 17 spans cost 2.4 us a step, observing 80 us: the one can be had nearly always.
  CHECK_EQ(world.rate(StepKind::kDecode), Sampler::kMostProbability);
  CHECK(world.observations(StepKind::kDecode).rates[0] > 0.03);
  CHECK(world.observe_spent_ns > 0.3 * world.spent_ns);
  // Where nothing is observed, all of it is there for the spans.
  World alone(options(0.002, layers(100), {}, 1, 0), {});
  CHECK(!alone.sampler().observes());
  alone.sampler().begin_observing();
  World without(0.002, layers(100));
  const double used = alone.share(5000, StepKind::kDecode, work);
  CHECK(std::abs(used - without.share(5000, StepKind::kDecode, work)) < 0.0002);
}

TEST(what_observing_costs_is_taken_from_the_steps_and_corrected_by_pairs) {
  World world = observing(0.05, 1'000);
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal(0, 8'000);
  world.noise_ns = [&] { return random() % 100 == 0 ? 5e6 : normal(random); };
  world.observe_ns = [] { return 40'000.0; };
  world.observe_besides = 2;  // as much again, twice, in the calls that follow
  const auto work = [] { return 2 * kMillisecond; };
  world.share(8000, StepKind::kDecode, work);
  CHECK(world.share(4000, StepKind::kDecode, work) <= 0.055);
  const DetailReport row = world.observations(StepKind::kDecode);
  CHECK(row.is_measured);
  const double each_ns = row.measured_ns / static_cast<double>(row.detailed[0]);
  CHECK(std::abs(each_ns - 140'000) < 20'000);  // with the drain thread's
  CHECK(row.low_ns <= row.measured_ns && row.measured_ns <= row.high_ns);
}

TEST(an_observation_that_costs_far_more_than_was_known_is_paid_back) {
  uint64_t observed = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    World world = observing(0.01, 1'000, seed);
    world.observe_ns = [] { return 5 * kMillisecond; };
    CHECK(world.share(20'000, StepKind::kDecode, [] { return kMillisecond; }) <= 0.0105);
    observed += world.observations(StepKind::kDecode).detailed[0];
  }
  CHECK(observed > 30);
}

TEST(no_more_steps_are_observed_than_one_in_so_many) {
  World world = observing(1, 1'000, 1, 1.0 / 16);
  const int seen = steps_with(world, &World::observed, 16'000);
  CHECK(seen > 800 && seen < 1200);
  const DetailReport row = world.observations(StepKind::kDecode);
  CHECK_EQ(row.rates[0], 1.0 / 16);
}

TEST(weighted_sums_of_both_details_are_unbiased_and_so_are_those_of_steps_that_have_both) {
  constexpr int kSeeds = 200;
  EstimateErrors<3> errors;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    World world = observing(0.03, 40'000, 104'729 * seed);
    // Slow steps cost more to observe, come in bursts, and have another value.
    double work_ns = 0;
    world.observe_ns = [&] { return 0.05 * work_ns; };
    std::array<double, 3> estimate{};
    double truth = 0;
    for (int i = 0; i < 3000; ++i) {
      const bool is_slow = i / 40 % 5 == 0 || i % 8 == 0;
      work_ns = is_slow ? 3 * kMillisecond : 0.5 * kMillisecond;
      const double value = is_slow ? 4 : 1;
      const SampleChoice spans = world.step(StepKind::kDecode, work_ns);
      truth += value;
      estimate[0] += spans.weight * value;
      estimate[1] += world.observed.weight * value;
      estimate[2] += spans.weight * world.observed.weight * value;
    }
    errors.add(estimate, truth);
  }
  for (size_t i = 0; i < 3; ++i) {
    CHECK(errors.deviation(i) < 0.05);
    CHECK(std::abs(errors.mean(i)) < 4 * errors.deviation(i) + 1e-9);
  }
}

TEST(what_was_chosen_goes_into_a_record_and_comes_out_of_it) {
  PackedChoices packed;
  CHECK_EQ(packed.probability(kLogits), 0);
  packed.add(kLogits, {.level = 0, .weight = 2, .probability = 0.5});
  packed.add(kObservations, {.level = 0, .weight = 16, .probability = 1.0 / 16});
  packed.add(kSpans, {.level = -1, .weight = 0, .probability = 0.3});
  const PackedChoices read(packed.bits());
  CHECK(read.got(kObservations) && !read.got(kSpans) && read.got(kLogits));
  CHECK_EQ(read.probability(kLogits), 0.5);
  CHECK_EQ(read.probability(kObservations), 1.0 / 16);
  CHECK(std::abs(read.probability(kSpans) / 0.3 - 1) < 0.01);
}

}  // namespace
}  // namespace pertoken
