// The sampler on invented steps: nothing here reads a clock. The budget is held from a cold start
// and when the load changes, the probabilities move as they are said to, and sums weighted by their
// inverse are those of all steps, also where the work is made to fool a sampler.
#include <array>
#include <cmath>
#include <functional>
#include <random>

#include "check.h"
#include "core/sampler.h"
#include "core/step_detail.h"

namespace pertoken {
namespace {

constexpr double kMillisecond = 1e6;  // ns
constexpr double kSecond = 1e9;

struct Cost {
  double step_ns = 500;
  double span_ns = 100;
  double skip_ns = 10;
  double drain_round_ns = 5'000;  // of the drain thread, each 20 ms
  double drain_record_ns = 50;
  double drain_observed_ns = 0;  // of an observed step
};

constexpr auto kSpans = SampleDetail::kSpans;
constexpr auto kObservations = SampleDetail::kObservations;
constexpr auto kSpansAt = static_cast<size_t>(kSpans);
constexpr auto kObservationsAt = static_cast<size_t>(kObservations);

// `observe_ns`: what observing a step is thought to take; negative: nothing is observed.
SamplerOptions options(double budget, std::vector<SampleLevel> levels, const Cost& cost,
                       uint64_t seed, double observe_ns = -1, double most_observed = 1) {
  SamplerOptions options{.budget = budget,
                         .costs = {cost.step_ns, cost.span_ns, cost.skip_ns, cost.drain_record_ns},
                         .details = {},
                         .seed = seed};
  options.details[kSpansAt].levels = std::move(levels);
  if (observe_ns >= 0) {
    options.details[kObservationsAt] = {{{kDetailActivations, 0, observe_ns}}, most_observed};
  }
  return options;
}

// A thread that runs steps, and the drain thread beside it.
class World {
 public:
  World(double budget, std::vector<SampleLevel> levels, Cost cost = {}, uint64_t seed = 1)
      : World(options(budget, std::move(levels), cost, seed), cost) {}
  World(const SamplerOptions& given, Cost cost)
      : levels_(given.details[kSpansAt].levels), cost_(cost), sampler_(given) {
    sampler_.control(now_ns_, 0);
  }

  // What detail really adds, times the model's idea of it.
  double true_ratio = 1;
  std::function<double()> noise_ns = [] { return 0.0; };
  // What observing a step takes, and what it does to it besides.
  std::function<double()> observe_ns = [] { return 0.0; };
  double observe_besides = 0;  // of that
  SampleChoice observed;       // of the last step

  SampleChoice step(StepKind kind, double work_ns, bool is_favoured = false, double idle_ns = 0) {
    observed = {};
    double timed_ns = 0;
    if (sampler_.samples(kObservations)) {
      observed = sampler_.decide(state_, kObservations, kind, is_favoured);
      timed_ns = observed.level < 0 ? 0 : observe_ns();
    }
    const SampleChoice choice = sampler_.decide(state_, kSpans, kind, is_favoured);
    const double calls = choice.level < 0 ? 0 : levels_[static_cast<size_t>(choice.level)].calls;
    const double detail_ns = calls * (cost_.span_ns - cost_.skip_ns) * true_ratio;
    const double besides_ns = observe_besides * timed_ns;
    const double plain_ns =
        cost_.step_ns + (levels_.empty() ? 0 : levels_.back().calls * cost_.skip_ns);
    // The wrappers' own time is within the step, as far as the root's clock goes.
    const double dur_ns = std::max(1.0, work_ns + detail_ns + besides_ns + noise_ns());
    sampler_.charge(state_, kSpans, kind, choice.level, 0);
    sampler_.pay_in(state_, kind, static_cast<uint64_t>(dur_ns));
    sampler_.charge(state_, kObservations, kind, observed.level, static_cast<uint64_t>(timed_ns));
    SeenStep seen{kind, dur_ns + timed_ns, static_cast<uint64_t>(calls)};
    seen.details[kSpansAt] = {choice.level, choice.probability, choice.weight, 0};
    seen.details[kObservationsAt] = {observed.level, observed.probability, observed.weight,
                                     timed_ns};
    sampler_.see(pairs_, seen);
    double drained_ns = (calls + 4) * cost_.drain_record_ns;
    if (observed.level >= 0) {
      drained_ns += cost_.drain_observed_ns;
      std::array<uint64_t, kStepKinds> observations{};
      observations[static_cast<size_t>(kind)] = 1;
      sampler_.see_drained(observations, cost_.drain_observed_ns);
    }
    drain_ns_ += drained_ns;
    observe_spent_ns += timed_ns + besides_ns;
    spent_ns += plain_ns + detail_ns + timed_ns + besides_ns + drained_ns;
    work_done_ns += work_ns;
    now_ns_ += dur_ns + idle_ns;
    while (now_ns_ - drained_at_ns_ >= 20 * kMillisecond) {
      drained_at_ns_ += 20 * kMillisecond;
      drain_ns_ += cost_.drain_round_ns;
      spent_ns += cost_.drain_round_ns;
      sampler_.control(now_ns_, drain_ns_);
    }
    return choice;
  }

  // Cost over time of these steps.
  double share(int steps, StepKind kind, const std::function<double()>& work_ns) {
    spent_ns = work_done_ns = 0;
    for (int i = 0; i < steps; ++i) step(kind, work_ns());
    return spent_ns / work_done_ns;
  }

  double rate(StepKind kind, size_t level = 0) const { return spans(kind).rates[level]; }
  DetailReport spans(StepKind kind) const { return detail(kind, kSpansAt); }
  DetailReport observations(StepKind kind) const { return detail(kind, kObservationsAt); }
  Sampler& sampler() { return sampler_; }
  double now_ns() const { return now_ns_; }

  double spent_ns = 0;
  double observe_spent_ns = 0;
  double work_done_ns = 0;

 private:
  DetailReport detail(StepKind kind, size_t detail) const {
    return sampler_.report().strata[static_cast<size_t>(kind)].details[detail];
  }

  std::vector<SampleLevel> levels_;
  Cost cost_;
  Sampler sampler_;
  SampleState state_;
  SamplePairs pairs_;
  double now_ns_ = 0;
  double drained_at_ns_ = 0;
  double drain_ns_ = 0;
};

std::vector<SampleLevel> layers(double calls) { return {{kDetailLayers, calls, 0}}; }

std::function<double()> lognormal(double median_ns, double sigma, uint64_t seed) {
  return [=, random = std::mt19937_64(seed),
          normal = std::normal_distribution<double>(0, sigma)]() mutable {
    return median_ns * std::exp(normal(random));
  };
}

TEST(the_budget_is_held_from_a_cold_start_and_when_the_load_changes_tenfold) {
  for (const double budget : {0.002, 0.01, 0.05}) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      World world(budget, layers(17), {}, seed);
      const auto usual = lognormal(1.1 * kMillisecond, 0.1, seed);
      // A drain round alone takes 0.025 % of the time, a step 0.06 %.
      CHECK(world.share(200, StepKind::kDecode, usual) <= budget);
      CHECK(world.share(1000, StepKind::kDecode, usual) <= budget);
      const auto slow = lognormal(11 * kMillisecond, 0.1, seed + 100);
      CHECK(world.share(200, StepKind::kDecode, slow) <= budget);
      CHECK(world.share(1000, StepKind::kDecode, slow) <= budget);
      // Back again, which is ten times less time for each step. At 0.2 % no detail is left over.
      CHECK(world.share(200, StepKind::kDecode, usual) <= budget);
      CHECK(world.share(1000, StepKind::kDecode, usual) <= budget);
    }
  }
}

TEST(the_budget_is_used) {
  World world(0.01, {{kDetailLayers, 17, 0}, {kDetailLayers | kDetailAll, 400, 0}});
  const auto work = lognormal(1.1 * kMillisecond, 0.1, 1);
  world.share(2000, StepKind::kDecode, work);
  const double share = world.share(5000, StepKind::kDecode, work);
  CHECK(share <= 0.01);
  CHECK(share >= 0.006);
  // Layers are cheap, so that more steps have them than have all.
  CHECK(world.rate(StepKind::kDecode, 0) > 2 * world.rate(StepKind::kDecode, 1));
}

TEST(a_budget_that_fits_all_detail_leaves_some_steps_plain_to_measure_by) {
  World world(0.05, layers(17));
  world.share(500, StepKind::kDecode, [] { return 2 * kMillisecond; });
  CHECK_EQ(world.rate(StepKind::kDecode), Sampler::kMostProbability);
  int plain = 0;
  for (int i = 0; i < 1600; ++i) plain += world.step(StepKind::kDecode, 2e6).level < 0;
  CHECK(plain > 60 && plain < 150);
}

TEST(probabilities_move_by_a_clamped_step_and_not_within_the_dead_band) {
  World world(0.01, layers(1000));
  const auto run = [&](double work_ns, int steps) {
    world.share(steps, StepKind::kDecode, [=] { return work_ns; });
    return world.rate(StepKind::kDecode);
  };
  // The first one goes to where it belongs at once: 4 ms leave some 25 us for 90 us of detail.
  const double first = run(4 * kMillisecond, 12);
  CHECK(first > 0.1 && first < 0.4);
  double before = run(4 * kMillisecond, 500);
  // 10 % more work is within the dead band.
  CHECK_EQ(run(4.2 * kMillisecond, 500), before);
  double largest = 0;
  for (int i = 0; i < 100; ++i) {
    const double now = run(40 * kMillisecond, 1);
    largest = std::max(largest, now / before);
    before = now;
  }
  CHECK(largest <= Sampler::kLargestChange + 1e-9);
  CHECK(largest > 1.2);
  CHECK_EQ(run(40 * kMillisecond, 1000), Sampler::kMostProbability);
  before = Sampler::kMostProbability;
  double smallest = 1;
  for (int i = 0; i < 400; ++i) {
    const double now = run(4 * kMillisecond, 1);
    smallest = std::min(smallest, now / before);
    before = now;
  }
  CHECK(smallest >= 1 / Sampler::kLargestChange - 1e-9);
  CHECK(before < 0.4);
}

TEST(detail_that_costs_more_than_the_model_says_is_found_out) {
  World world(0.01, layers(100));
  world.true_ratio = 4;
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal(0, 8'000);
  world.noise_ns = [&] { return random() % 100 == 0 ? 5e6 : normal(random); };  // and outliers
  const auto work = [] { return 2 * kMillisecond; };
  world.share(8000, StepKind::kDecode, work);
  CHECK(world.share(4000, StepKind::kDecode, work) <= 0.0115);
  const DetailReport row = world.spans(StepKind::kDecode);
  CHECK(row.is_measured);
  const double each_ns = row.measured_ns / static_cast<double>(row.detailed[0]);
  CHECK(std::abs(each_ns - 36'000) < 6'000);
  CHECK(row.low_ns <= row.measured_ns && row.measured_ns <= row.high_ns);
}

TEST(the_measured_cost_is_unbiased_where_slow_steps_buy_the_next_ones_detail) {
  World world(0.004, layers(100));
  std::mt19937_64 random(9);
  // Some steps take five times as long: after them the allowance is fuller.
  world.share(40'000, StepKind::kDecode, [&] { return random() % 4 == 0 ? 5e6 : 1e6; });
  const DetailReport row = world.spans(StepKind::kDecode);
  CHECK(row.is_measured);
  CHECK(row.low_ns < row.detail_ns + 1 && row.high_ns > row.detail_ns - 1);
}

TEST(noise_alone_does_not_move_the_model_of_costs) {
  World world(0.01, layers(100));
  std::mt19937_64 random(4);
  std::normal_distribution<double> normal(0, 200'000);
  world.noise_ns = [&] { return normal(random); };
  world.share(10000, StepKind::kDecode, [] { return 2 * kMillisecond; });
  const DetailReport row = world.spans(StepKind::kDecode);
  const double each_ns = row.detail_ns / static_cast<double>(row.detailed[0]);
  CHECK(each_ns > 5'000 && each_ns < 40'000);  // 9,000 is right, of which nothing can be seen
}

TEST(rare_kinds_are_seen) {
  World world(0.002, layers(500));
  int seen = 0;
  for (int i = 0; i < 60; ++i) {
    for (int j = 0; j < 1000; ++j) world.step(StepKind::kDecode, kMillisecond);
    seen += world.step(StepKind::kVerify, kMillisecond).level >= 0;
  }
  CHECK(seen >= 8);
}

TEST(first_steps_of_a_request_have_a_higher_probability_which_they_carry) {
  World world(0.01, layers(500));
  world.share(3000, StepKind::kDecode, [] { return 2 * kMillisecond; });
  double favoured = 0;
  double others = 0;
  double favoured_weight = 0;
  int favoured_steps = 0;
  for (int i = 0; i < 20000; ++i) {
    const bool is_first = i % 100 == 0;
    favoured_steps += is_first;
    const SampleChoice choice = world.step(StepKind::kDecode, 2e6, is_first);
    (is_first ? favoured : others) += choice.level >= 0;
    if (is_first) favoured_weight += choice.weight;
  }
  CHECK(favoured / favoured_steps > 2 * others / (20000 - favoured_steps));
  CHECK(std::abs(favoured_weight / favoured_steps - 1) < 0.3);
}

TEST(records_a_second_are_bounded_however_fast_the_model_is) {
  World world(0.05, layers(20));
  world.share(2000, StepKind::kDecode, [] { return 5 * kMillisecond; });  // all detail
  double calls = 0;
  const double before_ns = world.now_ns();
  for (int i = 0; i < 200'000; ++i) {
    calls += world.step(StepKind::kDecode, 3'000).level >= 0 ? 20 : 0;
  }
  const double seconds = (world.now_ns() - before_ns) / kSecond;
  CHECK(calls / seconds < 1.1 * 0.05 * kSecond / (90 + 50));
}

// What a workload does in step i; the value it has there, if it gets detail.
struct Work {
  StepKind kind = StepKind::kDecode;
  double work_ns;
  double value;
};

// Mean over seeds of weighted sums, against the true one; in standard errors.
void check_unbiased(const std::vector<SampleLevel>& levels, double budget,
                    const std::function<std::vector<Work>(std::mt19937_64&)>& workload) {
  constexpr int kSeeds = 200;
  double sum = 0;
  double squares = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    std::mt19937_64 random(seed);
    const std::vector<Work> steps = workload(random);
    World world(budget, levels, {}, 7919 * seed);
    double estimate = 0;
    double truth = 0;
    const int top = static_cast<int>(levels.size()) - 1;
    for (const Work& work : steps) {
      const SampleChoice choice = world.step(work.kind, work.work_ns);
      truth += work.value;
      if (choice.level == top) estimate += choice.weight * work.value;
    }
    const double error = estimate / truth - 1;
    sum += error;
    squares += error * error;
  }
  const double mean = sum / kSeeds;
  const double deviation = std::sqrt((squares / kSeeds - mean * mean) / (kSeeds - 1));
  CHECK(deviation < 0.05);
  CHECK(std::abs(mean) < 4 * deviation + 1e-9);
}

TEST(weighted_sums_are_unbiased_when_the_period_is_that_of_the_sampling) {
  check_unbiased(layers(100), 0.01, [](std::mt19937_64&) {
    std::vector<Work> steps;
    for (int i = 0; i < 3000; ++i) {
      const double slow = i % 8 == 0 ? 5 : 1;
      steps.push_back({.work_ns = slow * 200'000, .value = slow});
    }
    return steps;
  });
}

TEST(weighted_sums_are_unbiased_in_bursts) {
  check_unbiased(layers(100), 0.1, [](std::mt19937_64& random) {
    std::vector<Work> steps;
    while (steps.size() < 3000) {
      // Short steps in a row run the allowance down; their value rises as it does.
      const size_t burst = 20 + random() % 300;
      for (size_t i = 0; i < burst; ++i) {
        steps.push_back({.work_ns = 20'000, .value = 1 + static_cast<double>(i) / 50});
      }
      for (int i = 0; i < 5; ++i) steps.push_back({.work_ns = 20 * kMillisecond, .value = 1});
    }
    return steps;
  });
}

TEST(weighted_sums_are_unbiased_while_the_rates_change) {
  check_unbiased({{kDetailLayers, 20, 0}, {kDetailLayers | kDetailAll, 100, 0}}, 0.01,
                 [](std::mt19937_64&) {
                   std::vector<Work> steps;
                   for (int i = 0; i < 3000; ++i) {
                     const double scale = i / 500 % 2 == 0 ? 10 : 1;
                     steps.push_back({.work_ns = scale * 300'000, .value = scale});
                   }
                   return steps;
                 });
}

TEST(weighted_sums_are_unbiased_where_being_sampled_makes_the_next_step_slow) {
  // The cost falls on the neighbour, whose value is what is estimated.
  constexpr int kSeeds = 200;
  double sum = 0;
  double squares = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    World world(0.01, layers(100), {}, seed);
    double estimate = 0;
    double truth = 0;
    double value = 1;
    for (int i = 0; i < 3000; ++i) {
      const SampleChoice choice = world.step(StepKind::kDecode, value * 500'000);
      truth += value;
      estimate += choice.weight * value;
      value = choice.level >= 0 ? 3 : 1;
    }
    const double error = estimate / truth - 1;
    sum += error;
    squares += error * error;
  }
  const double mean = sum / kSeeds;
  CHECK(std::abs(mean) < 4 * std::sqrt((squares / kSeeds - mean * mean) / (kSeeds - 1)));
}

TEST(the_same_seed_decides_the_same) {
  for (int round = 0; round < 2; ++round) {
    World a(0.01, layers(100), {}, 5);
    World b(0.01, layers(100), {}, round == 0 ? 5 : 6);
    int different = 0;
    for (int i = 0; i < 2000; ++i) {
      different += a.step(StepKind::kDecode, kMillisecond).level !=
                   b.step(StepKind::kDecode, kMillisecond).level;
    }
    CHECK_EQ(different == 0, round == 0);
  }
}

TEST(levels_are_told_by_their_detail) {
  const Sampler sampler(
      options(0.01, {{kDetailLayers, 10, 0}, {kDetailLayers | kDetailAll, 50, 0}}, {}, 0));
  CHECK_EQ(sampler.top_level(kSpans), 1);
  CHECK_EQ(sampler.bits(kSpans, -1), 0u);
  CHECK_EQ(sampler.bits(kSpans, 0), kDetailLayers);
  CHECK(!sampler.samples(kObservations));
}

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
  World world = observing(0.01, 80'000);
  world.observe_ns = [] { return 60'000.0; };
  const auto work = [] { return 1.1 * kMillisecond; };
  world.share(2000, StepKind::kDecode, work);
  world.observe_spent_ns = 0;
  const double share = world.share(5000, StepKind::kDecode, work);
  CHECK(share <= 0.01 && share > 0.006);
  // 17 spans cost 2.4 us a step, observing 80 us: the one can be had nearly always.
  CHECK_EQ(world.rate(StepKind::kDecode), Sampler::kMostProbability);
  CHECK(world.observations(StepKind::kDecode).rates[0] > 0.03);
  CHECK(world.observe_spent_ns > 0.3 * world.spent_ns);
  // Where nothing is observed, all of it is there for the spans.
  World alone(options(0.002, layers(100), {}, 1, 0), {});
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
  World world = observing(0.01, 1'000);
  world.observe_ns = [] { return 5 * kMillisecond; };
  CHECK(world.share(20'000, StepKind::kDecode, [] { return kMillisecond; }) <= 0.0105);
  CHECK(world.observations(StepKind::kDecode).detailed[0] > 10);
}

TEST(no_more_steps_are_observed_than_one_in_so_many) {
  World world = observing(1, 1'000, 1, 1.0 / 16);
  int seen = 0;
  for (int i = 0; i < 16'000; ++i) {
    world.step(StepKind::kDecode, kMillisecond);
    seen += world.observed.level >= 0;
  }
  CHECK(seen > 800 && seen < 1200);
  const DetailReport row = world.observations(StepKind::kDecode);
  CHECK_EQ(row.rates[0], 1.0 / 16);
}

TEST(weighted_sums_of_both_details_are_unbiased_and_so_are_those_of_steps_that_have_both) {
  constexpr int kSeeds = 200;
  std::array<double, 3> sum{};
  std::array<double, 3> squares{};
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    World world = observing(0.02, 40'000, 104'729 * seed);
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
    for (size_t i = 0; i < 3; ++i) {
      const double error = estimate[i] / truth - 1;
      sum[i] += error;
      squares[i] += error * error;
    }
  }
  for (size_t i = 0; i < 3; ++i) {
    const double mean = sum[i] / kSeeds;
    const double deviation = std::sqrt((squares[i] / kSeeds - mean * mean) / (kSeeds - 1));
    CHECK(deviation < 0.05);
    CHECK(std::abs(mean) < 4 * deviation + 1e-9);
  }
}

TEST(what_was_chosen_goes_into_a_record_and_comes_out_of_it) {
  PackedChoices packed;
  packed.add(kObservations, {.level = 0, .weight = 16, .probability = 1.0 / 16});
  packed.add(kSpans, {.level = -1, .weight = 0, .probability = 0.3});
  const PackedChoices read(packed.bits());
  CHECK(read.got(kObservations) && !read.got(kSpans));
  CHECK_EQ(read.probability(kObservations), 1.0 / 16);
  CHECK(std::abs(read.probability(kSpans) / 0.3 - 1) < 0.01);
}

TEST(the_interval_of_pairs_holds_the_median) {
  std::mt19937_64 random(1);
  std::cauchy_distribution<double> heavy(2.0, 0.5);
  int misses = 0;
  for (int round = 0; round < 400; ++round) {
    PairedCost paired;
    for (size_t i = 0; i < PairedCost::kFewest - 1; ++i) paired.add(heavy(random), 0.25);
    CHECK(!paired.is_known());
    for (int i = 0; i < round % 300 + 1; ++i) paired.add(heavy(random), 0.25);
    const PairedInterval found = paired.interval();
    CHECK(found.low <= found.median && found.median <= found.high);
    misses += found.low > 2.0 || found.high < 2.0;
  }
  CHECK(misses <= 30);  // 20 are expected at most
}

}  // namespace
}  // namespace pertoken
