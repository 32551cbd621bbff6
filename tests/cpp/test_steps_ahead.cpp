// Steps that the sampler decides on before they begin: they get what they would have got one by
// one.
#include <cmath>
#include <cstdint>
#include <functional>

#include "check.h"
#include "sampled_world.h"

namespace pertoken {
namespace {

// Of so many decode steps, those with detail, over seeds; a world is prepared by `prepare`.
double with_detail(const std::function<void(World&)>& prepare) {
  double found = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    World world(0.02, layers(100), {}, seed);
    prepare(world);
    world.share(500, StepKind::kDecode, [] { return kMillisecond; });
    for (int i = 0; i < 5000; ++i) {
      // Others come between, and take nothing of what was decided.
      if (i % 50 == 0) world.step(StepKind::kPrefill, kMillisecond);
      found += world.step(StepKind::kDecode, kMillisecond).level >= 0;
    }
  }
  return found;
}

TEST(steps_decided_ahead_get_detail_as_often_as_those_decided_one_by_one) {
  const double one_by_one = with_detail([](World& world) { world.decides_ahead = false; });
  CHECK(one_by_one > 2000);
  CHECK(std::abs(with_detail([](World&) {}) / one_by_one - 1) < 0.05);
}

// Where allowances do not even it out: of a probability that stays what it is.
double share_at_the_floor(const std::function<bool()>& goes_short, double& weighted) {
  World world(options(0.0001, layers(1000), {}, 11), {});
  world.goes_short = goes_short;
  world.share(2000, StepKind::kDecode, [] { return kMillisecond; });
  constexpr int kSteps = 400'000;
  double found = 0;
  weighted = 0;
  for (int i = 0; i < kSteps; ++i) {
    const SampleChoice choice = world.step(StepKind::kDecode, kMillisecond);
    found += choice.level >= 0;
    weighted += choice.level >= 0 ? choice.weight : 0;
  }
  weighted /= kSteps;
  return found / kSteps;
}

TEST(which_way_a_step_takes_changes_no_probability) {
  int step = 0;
  const std::function<bool()> ways[] = {[] { return true; }, [] { return false; },
                                        [&] { return ++step % 2 == 0; },
                                        [&] { return ++step % 7 != 0; }};
  for (const auto& way : ways) {
    double weighted = 0;
    const double share = share_at_the_floor(way, weighted);
    CHECK(share > 0.5 / 4096);
    // The weights of the steps that got detail add up to all of them.
    CHECK(std::abs(weighted - 1) < 4 / std::sqrt(share * 400'000));
  }
}

TEST(behind_the_plain_steps_ahead_comes_the_one_with_detail_that_ended_them) {
  Sampler sampler(options(0.05, layers(20), {}, 3));
  SampleState state;
  int found = 0;
  for (int i = 0; i < 5000 && found < 100; ++i) {
    const SampleChoice choice = sampler.decide(state, kSpans, StepKind::kDecode, false);
    sampler.end_step(state, StepKind::kDecode, choice.level, 1'000'000, {});
    if (choice.level >= 0) continue;
    PackedChoices choices;
    choices.add(kSpans, choice);
    sampler.decide_ahead(state, StepKind::kDecode, choices);
    const bool has_next = state.ahead.has_next;
    for (uint32_t left = state.ahead.plain; left > 0; --left) {
      // A step of another kind, or a favoured one, has coins of its own.
      CHECK(Sampler::take_place(state, StepKind::kPrefill, false) == StepPlace::kOwn);
      CHECK(Sampler::take_place(state, StepKind::kDecode, true) == StepPlace::kOwn);
      const StepPlace place = Sampler::take_place(state, StepKind::kDecode, false);
      CHECK(place == StepPlace::kPlain);
      const SampleChoice plain = sampler.decide(state, kSpans, StepKind::kDecode, false, place);
      CHECK_EQ(plain.level, -1);
      CHECK_EQ(plain.probability, choices.probability(kSpans));
    }
    const StepPlace place = Sampler::take_place(state, StepKind::kDecode, false);
    CHECK(place == (has_next ? StepPlace::kNext : StepPlace::kOwn));
    if (!has_next) continue;
    const SampleChoice next = sampler.decide(state, kSpans, StepKind::kDecode, false, place);
    CHECK_EQ(next.level, 0);
    CHECK(std::abs(next.probability - choices.probability(kSpans)) < 0.01);
    CHECK(std::abs(next.weight * next.probability - 1) < 1e-9);
    ++found;
  }
  CHECK_EQ(found, 100);
}

}  // namespace
}  // namespace pertoken
