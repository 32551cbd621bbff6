// Steps that the sampler decides on before they begin: they get what they would have got one by
// one.
#include <cmath>

#include "check.h"
#include "sampled_world.h"

namespace pertoken {
namespace {

TEST(steps_decided_ahead_get_detail_as_often_as_those_decided_one_by_one) {
  double with_detail[2] = {};
  for (const bool are_taken_ahead : {false, true}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      World world(0.02, layers(100), {}, seed);
      world.are_taken_ahead = are_taken_ahead;
      world.share(500, StepKind::kDecode, [] { return kMillisecond; });
      for (int i = 0; i < 5000; ++i) {
        // Others come between, and take nothing of what was decided.
        if (i % 50 == 0) world.step(StepKind::kPrefill, kMillisecond);
        with_detail[are_taken_ahead] += world.step(StepKind::kDecode, kMillisecond).level >= 0;
      }
    }
  }
  CHECK(with_detail[0] > 2000);
  CHECK(std::abs(with_detail[1] / with_detail[0] - 1) < 0.1);
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
    if (state.ahead.decided == 0) continue;  // so many plain ones that no more were looked at
    state.ahead.plain = 0;
    // A step of another kind, or a favoured one, has odds of its own.
    sampler.decide(state, kSpans, StepKind::kPrefill, false);
    sampler.decide(state, kSpans, StepKind::kDecode, true);
    const SampleChoice next = sampler.decide(state, kSpans, StepKind::kDecode, false);
    CHECK_EQ(next.level, 0);
    CHECK(std::abs(next.probability - choices.probability(kSpans)) < 0.01);
    CHECK(std::abs(next.weight * next.probability - 1) < 1e-9);
    ++found;
  }
  CHECK_EQ(found, 100);
}

TEST(steps_ahead_are_given_up_where_one_of_them_is_decided_after_all) {
  Sampler sampler(options(0.0005, layers(100), {}, 3));
  SampleState state;
  for (int i = 0; i < 200; ++i) {
    PackedChoices choices;
    choices.add(kSpans, sampler.decide(state, kSpans, StepKind::kDecode, false));
    CHECK_EQ(state.ahead.plain, 0u);
    if (choices.got_any()) continue;
    sampler.decide_ahead(state, StepKind::kDecode, choices);
    CHECK(state.ahead.plain <= 32);
  }
}

}  // namespace
}  // namespace pertoken
