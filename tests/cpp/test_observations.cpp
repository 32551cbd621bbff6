// Observations keep what they were given, go with their steps, and are of the steps that the rate
// chooses, with weights that make sums unbiased.
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/observation_intake.h"
#include "core/observation_rate.h"
#include "core/observation_store.h"
#include "core/recorder.h"
#include "observed_values.h"

namespace pertoken {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

using testing::observation_of;
using testing::random_values;

TEST(packing_keeps_every_count) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    const ExpHistogram values = random_values(random);
    const StoredObservation stored(7, 5, observation_of(5, values));
    Buckets sides[2];
    for (const StoredObservation::Bucket& bucket : stored.buckets()) {
      CHECK(bucket.count > 0);
      sides[bucket.sign > 0 ? 0 : 1].add(bucket.index, bucket.count);
    }
    CHECK_EQ(stored.buckets().size(), size_t{stored.filled_buckets()});
    const ExpHistogram again(HistogramParts{.scale = stored.scale,
                                            .positive = sides[0],
                                            .negative = sides[1],
                                            .zeros = stored.zeros,
                                            .nans = stored.nans,
                                            .pos_infs = stored.pos_infs,
                                            .neg_infs = stored.neg_infs,
                                            .sum = stored.sum,
                                            .sum_sq = stored.sum_sq,
                                            .min = stored.min,
                                            .max = stored.max});
    CHECK(again == values);
    CHECK_EQ(stored.count, values.count());
  }
}

TEST(observations_go_with_their_steps_and_give_back_their_bytes) {
  ObservationStore store;
  size_t bytes = 0;
  for (uint32_t step = 0; step < 100; ++step) bytes += store.add(step, step, observation_of(step));
  bytes += store.add(kNoStep, 99, observation_of(kNone32));  // as old as step 99
  bytes -= store.evict_below(40);
  CHECK_EQ(store.snapshot().size(), size_t{61});
  CHECK_EQ(store.snapshot().front()->step, int64_t{40});
  CHECK_EQ(store.snapshot().front()->id, int64_t{40});
  CHECK_EQ(store.evicted(), uint64_t{40});
  bytes -= store.evict_below(100);
  CHECK_EQ(store.snapshot().size(), size_t{0});
  CHECK_EQ(bytes, size_t{0});
  CHECK_EQ(store.evict_oldest(), size_t{0});
}

TEST(every_step_of_rate_one_has_weight_one) {
  ObservationRate rate(1, 5);
  for (int i = 0; i < 100; ++i) CHECK_EQ(rate.next(1), 1.0);
}

// In whole blocks the weights add up to the steps, exactly, and the places vary.
TEST(a_rate_takes_the_first_and_one_of_each_block) {
  for (const uint64_t seed : {1, 2, 3}) {
    ObservationRate rate(16, seed);
    uint32_t places = 0;
    CHECK_EQ(rate.next(1), 1.0);
    for (int block = 0; block < 200; ++block) {
      double weights = 0;
      for (int place = 0; place < 16; ++place) {
        const double weight = rate.next(1);
        weights += weight;
        if (weight != 0) places |= 1u << place;
        // Another kind, in between, does not matter.
        if (place == 7) rate.next(0);
      }
      CHECK_EQ(weights, 16.0);
    }
    CHECK_EQ(places, 0xFFFFu);
  }
}

TEST(each_place_of_a_block_is_as_likely_and_seeds_differ) {
  std::vector<int> counts(16);
  for (uint64_t seed = 0; seed < 16000; ++seed) {
    ObservationRate rate(16, seed);
    rate.next(1);
    for (size_t place = 0; place < 16; ++place) counts[place] += rate.next(1) != 0;
  }
  for (const int count : counts) CHECK(count > 850 && count < 1150);  // 1000, of 5 sigma 30
}

TEST(a_full_intake_drops_and_counts) {
  ObservationIntake intake;
  for (size_t i = 0; i < ObservationIntake::kMostWaiting + 5; ++i) intake.push(observation_of(0));
  CHECK_EQ(intake.dropped(), uint64_t{5});
  CHECK_EQ(intake.take(0).observations.size(), ObservationIntake::kMostWaiting);
  CHECK_EQ(intake.take(0).observations.size(), size_t{0});
}

TEST(threads_observe_while_the_collector_drains) {
  const std::shared_ptr<Recorder> recorder = Recorder::create({});
  CHECK(recorder->start());
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&recorder] {
      for (int n = 0; n < 2000; ++n) {
        ExpHistogram values;
        values.record(1.5, 4);
        recorder->observations().push(observation_of(kNone32, std::move(values)));
      }
    });
  }
  for (int i = 0; i < 20; ++i) recorder->snapshot();
  for (std::thread& thread : threads) thread.join();
  const RecorderTotals totals = recorder->totals();
  CHECK_EQ(totals.values.size(), size_t{1});
  CHECK_EQ(totals.values[0].observations + totals.losses.observations_dropped, uint64_t{6000});
  CHECK_EQ(totals.values[0].values.count(), 4 * totals.values[0].observations);
  CHECK_EQ(recorder->snapshot().store.observations.size(), size_t{totals.values[0].observations});
  recorder->stop();
}

// The bound holds with observations alone, outside steps, and the aggregates keep all.
TEST(the_store_keeps_its_bound_with_observations) {
  const std::shared_ptr<Recorder> recorder = Recorder::create({.store_limit_bytes = 50000});
  for (uint32_t i = 0; i < 3000; ++i) {
    ExpHistogram values;
    values.record(1.5 + i);
    recorder->observations().push(observation_of(kNone32, std::move(values)));
    if (i % 100 == 0) recorder->drain();
  }
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK(recorder->store_bytes() <= 50000);
  CHECK_EQ(snapshot.store.observations.size() + snapshot.losses.observations_evicted, size_t{3000});
  CHECK_EQ(snapshot.store.observations.back()->id, int64_t{2999});
  const RecorderTotals totals = recorder->totals();
  CHECK_EQ(totals.values[0].observations, uint64_t{3000});
}

}  // namespace
}  // namespace pertoken
