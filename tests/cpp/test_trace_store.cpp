// The store gives back what was put in, whole steps only, within its limit, and counts the rest.
#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <random>
#include <unordered_set>
#include <vector>

#include "check.h"
#include "core/block_queue.h"
#include "core/trace_store.h"

namespace pertoken {
namespace {

StoredSpan span_of(int64_t seq, int64_t step, int32_t track = 0) {
  return {.start_ticks = static_cast<uint64_t>(seq) * 100,
          .dur_ticks = 10,
          .seq = seq,
          .parent_seq = seq > 1 ? seq - 1 : 0,
          .step = step,
          .site = static_cast<uint32_t>(seq % 1000),
          .track = track};
}

std::vector<StoredSpan> held(const TraceStore& store) {
  std::vector<StoredSpan> spans;
  const StoreSnapshot snapshot = store.snapshot();
  for (const auto& chunk : snapshot.chunks) {
    for (uint32_t i = 0; i < chunk->size(); ++i) {
      const StoredSpan span = chunk->at(i);
      if (span.step == kNoStep || span.step >= snapshot.first_step) spans.push_back(span);
    }
  }
  return spans;
}

bool same(const StoredSpan& a, const StoredSpan& b) {
  return a.start_ticks == b.start_ticks && a.dur_ticks == b.dur_ticks && a.seq == b.seq &&
         a.parent_seq == b.parent_seq && a.step == b.step && a.site == b.site && a.track == b.track;
}

// Beside a std::deque, through several blocks and back to none.
TEST(a_queue_in_blocks_is_a_queue) {
  struct Item {
    std::array<uint64_t, 100> values;
  };
  std::mt19937_64 random(7);
  for (const unsigned likely_of_ten : {6u, 5u, 4u}) {
    BlockQueue<Item> queue;
    std::deque<uint64_t> expected;
    size_t longest = 0;
    for (uint64_t i = 0; i < 3000; ++i) {
      if (random() % 10 < likely_of_ten || i < 500) {
        CHECK(queue.push_back({{i}}).values[0] == i);
        expected.push_back(i);
      } else if (!expected.empty()) {
        queue.pop_front();
        expected.pop_front();
      }
      longest = std::max(longest, queue.size());
      CHECK(queue.size() == expected.size() && queue.empty() == expected.empty());
      if (expected.empty()) continue;
      const size_t at = random() % expected.size();
      CHECK(queue[at].values[0] == expected[at]);
      CHECK(queue.front().values[0] == expected.front());
      if (i % 100 != 0) continue;
      std::vector<uint64_t> seen(expected.begin(), expected.begin() + static_cast<long>(at));
      queue.for_each([&](const Item& item) { seen.push_back(item.values[0]); }, at);
      CHECK(std::ranges::equal(seen, expected));
      size_t looked_at = 0;
      queue.for_each([&](const Item&) { return ++looked_at <= at; });
      CHECK(looked_at == at + 1);
      CHECK(std::ranges::equal(queue.copy(), expected, {},
                               [](const Item& item) { return item.values[0]; }));
    }
    CHECK(longest > 4 * BlockQueue<Item>::kItemsInBlock);
    while (!queue.empty()) queue.pop_front();
    CHECK(queue.copy().empty());
  }
}

// Numbers near and beyond every limit of the packed form, in random order.
TEST(packing_keeps_every_field) {
  std::mt19937_64 random(3);
  const int64_t bases[] = {1, int64_t{1} << 31, (int64_t{1} << 32) + 5, int64_t{1} << 39};
  const uint64_t durs[] = {0, 1, 0xFFFFFFFEu, 0xFFFFFFFFu, uint64_t{1} << 45};
  TraceStore store(std::numeric_limits<size_t>::max());
  std::vector<StoredSpan> put;
  for (int i = 0; i < 30000; ++i) {
    StoredSpan span = span_of(bases[random() % 4] + static_cast<int64_t>(random() % 100000), 0);
    span.step = random() % 5 == 0 ? kNoStep : bases[random() % 4] - 1;
    span.parent_seq =
        random() % 3 == 0 ? 0 : span.seq - static_cast<int64_t>(random() % 0xFFFFFFFF) - 1;
    if (span.parent_seq < 0) span.parent_seq = 0;
    if (span.parent_seq != 0 && span.seq - span.parent_seq > 0xFFFFFFFFll) span.parent_seq = 0;
    span.dur_ticks = durs[random() % 5];
    span.start_ticks = random();
    put.push_back(span);
    store.add_span(span);
  }
  const std::vector<StoredSpan> got = held(store);
  CHECK_EQ(got.size(), put.size());
  for (size_t i = 0; i < got.size(); ++i) CHECK(same(got[i], put[i]));
}

TEST(a_span_takes_at_most_32_bytes) {
  TraceStore store(std::numeric_limits<size_t>::max());
  constexpr int64_t kSpans = 1'000'000;
  for (int64_t seq = 1; seq <= kSpans; ++seq) store.add_span(span_of(seq, seq / 59));
  CHECK(store.bytes() <= static_cast<size_t>(kSpans) * 32);
}

TEST(eviction_takes_the_oldest_steps_whole) {
  constexpr size_t kLimit = size_t{1} << 20;
  TraceStore store(kLimit);
  std::map<int64_t, int> put;  // spans by step
  int64_t seq = 0;
  uint64_t total = 0;
  for (int64_t step = 0; step < 5000; ++step) {
    StepRow* row = store.step(step);
    if (row != nullptr) row->begun = true;
    for (int i = 0; i < 20; ++i) {
      store.add_span(span_of(++seq, step, i % 2));
      ++put[step];
      ++total;
    }
    store.evict();
    CHECK(store.bytes() <= kLimit);
  }
  CHECK(store.first_step() > 0);
  std::map<int64_t, int> got;
  for (const StoredSpan& span : held(store)) ++got[span.step];
  for (const auto& [step, count] : put) {
    CHECK_EQ(got[step], step < store.first_step() ? 0 : count);
  }
  CHECK_EQ(store.steps_evicted(), static_cast<uint64_t>(store.first_step()));
  CHECK_EQ(store.snapshot().steps.size(), static_cast<size_t>(5000 - store.first_step()));
  CHECK_EQ(store.spans_evicted() + held(store).size(), total);
}

TEST(spans_of_an_evicted_step_that_come_late_are_counted_not_kept) {
  TraceStore store(size_t{64} << 10);
  for (int64_t seq = 1; seq <= 20000; ++seq) store.add_span(span_of(seq, seq));
  store.evict();
  const uint64_t before = store.spans_evicted();
  store.add_span(span_of(20001, 1));
  CHECK_EQ(store.spans_evicted(), before + 1);
  CHECK(store.step(1) == nullptr);
}

TEST(spans_outside_steps_are_bounded_too) {
  TraceStore store(size_t{256} << 10);
  for (int64_t seq = 1; seq <= 200000; ++seq) store.add_span(span_of(seq, kNoStep));
  store.evict();
  CHECK(store.bytes() <= (size_t{256} << 10));
  CHECK_EQ(store.spans_evicted() + held(store).size(), uint64_t{200000});
}

// As of loops that declare their steps, in which no recorded model runs.
TEST(steps_without_spans_are_bounded_too) {
  constexpr size_t kLimit = size_t{256} << 10;
  TraceStore store(kLimit);
  for (int64_t step = 0; step < 100'000; ++step) {
    store.begin_step(step)->start_ticks = static_cast<uint64_t>(step);
    store.add_row_valid({step, 0, 0, 1});
    store.evict();
    CHECK(store.bytes() <= kLimit);
  }
  const StoreSnapshot snapshot = store.snapshot();
  CHECK(snapshot.steps.size() * sizeof(StepRow) > kLimit / 2);
  CHECK_EQ(store.steps_evicted() + snapshot.steps.size(), uint64_t{100'000});
  CHECK_EQ(snapshot.row_valid.size(), snapshot.steps.size());
}

TEST(a_step_that_begins_after_its_eviction_is_counted) {
  TraceStore store(size_t{64} << 10);
  for (int64_t step = 1; step < 10'000; ++step) store.begin_step(step);
  store.evict();
  const uint64_t before = store.steps_evicted();
  CHECK(store.begin_step(0) == nullptr);
  CHECK_EQ(store.steps_evicted(), before + 1);
}

// The few spans of one thread lie between many of another.
TEST(a_thread_that_seldom_records_does_not_take_all_steps_with_it) {
  constexpr size_t kLimit = size_t{8} << 20;
  TraceStore store(kLimit);
  int64_t seq = 0;
  size_t fewest = std::numeric_limits<size_t>::max();
  for (int64_t step = 0; step < 60'000; ++step) {
    store.begin_step(step)->start_ticks = static_cast<uint64_t>(seq) * 100;
    for (int i = 0; i < 20; ++i) store.add_span(span_of(++seq, step, 0));
    if (step % 50 == 0) store.add_span(span_of(++seq, step, 1));
    store.evict();
    const auto steps_held = static_cast<size_t>(step + 1 - store.first_step());
    if (store.first_step() > 0) fewest = std::min(fewest, steps_held);
  }
  CHECK(store.first_step() > 0);
  constexpr size_t kBytesAStep = 20 * 28 + sizeof(StepRow);
  CHECK(fewest > kLimit / kBytesAStep / 2);
}

TEST(tracks_are_those_of_held_spans_and_steps) {
  TraceStore store(size_t{1} << 20);
  CHECK(store.tracks().empty());
  store.add_span(span_of(1, 1, 7));
  store.begin_step(2)->track = 8;
  store.step(3)->track = 9;  // only a gap
  const std::unordered_set<int32_t> expected = {7, 8};
  CHECK(store.tracks() == expected);
  for (int64_t seq = 1; seq <= 200'000; ++seq) store.add_span(span_of(seq, 3 + seq, 10));
  store.evict();
  CHECK(store.tracks() == std::unordered_set<int32_t>{10});
}

TEST(rows_go_with_their_steps_and_no_more_steps_than_need_be) {
  constexpr size_t kLimit = size_t{1} << 20;
  constexpr uint32_t kRows = 64;
  for (const bool with_spans : {false, true}) {
    TraceStore store(kLimit);
    for (int64_t step = 0; step < 3000; ++step) {
      store.step(step)->begun = true;
      if (with_spans) store.add_span(span_of(step + 1, step));
      for (uint32_t row = 0; row < kRows; ++row) {
        store.add_row({step, row, row, 1, static_cast<uint32_t>(step), 1});
        store.add_row_commit({step, row, static_cast<uint32_t>(step), 1});
      }
      store.evict();
      CHECK(store.bytes() <= kLimit);
    }
    const StoreSnapshot snapshot = store.snapshot();
    const auto kept = static_cast<size_t>(3000 - store.first_step());
    CHECK(kept * kRows * (sizeof(StoredRow) + sizeof(RowCommit)) > kLimit / 2);
    CHECK_EQ(snapshot.steps.size(), kept);
    CHECK_EQ(snapshot.rows.size(), kept * kRows);
    CHECK_EQ(snapshot.row_commits.size(), kept * kRows);
    for (const StoredRow& row : snapshot.rows) CHECK(row.step >= store.first_step());
    CHECK_EQ(store.steps_evicted(), static_cast<uint64_t>(store.first_step()));
    CHECK_EQ(store.spans_evicted() + held(store).size(), uint64_t{with_spans ? 3000U : 0U});
  }
}

TEST(rows_of_an_evicted_step_that_come_late_are_not_kept) {
  TraceStore store(size_t{64} << 10);
  for (int64_t step = 0; step < 20000; ++step) store.step(step)->begun = true;
  store.evict();
  const size_t bytes = store.bytes();
  CHECK(store.first_step() > 0);
  store.add_row({0, 0, 0, 1, 1, 1});
  store.add_row_commit({0, 0, 0, 1});
  CHECK_EQ(store.bytes(), bytes);
}

TEST(steps_that_ended_before_a_time_go_whole) {
  TraceStore store(size_t{1} << 24);
  const auto run = [&](int64_t step, int32_t track, uint64_t start, uint64_t end) {
    StepRow* row = store.begin_step(step);
    row->track = track;
    row->start_ticks = start;
    row->end_ticks = end;
  };
  for (int64_t step = 0; step < 1000; ++step) {
    const auto start = static_cast<uint64_t>(step) * 100;
    for (int64_t i = 1; i <= 10; ++i) {
      StoredSpan span = span_of(step * 10 + i, step);
      span.start_ticks = start;
      span.dur_ticks = 50;
      store.add_span(span);
    }
    run(step, 0, start, start + 60);
  }
  store.evict_before(50'000);
  CHECK_EQ(store.first_step(), int64_t{500});  // step 499 ended at 49,960
  CHECK_EQ(store.steps_evicted(), uint64_t{500});
  CHECK_EQ(store.spans_evicted(), uint64_t{5000});
  const size_t bytes = store.bytes();
  store.evict_before(99'000);
  CHECK_EQ(store.first_step(), int64_t{990});
  CHECK(store.bytes() < bytes);

  // One that runs stays, and all after it; one whose end was dropped does not.
  TraceStore other(size_t{1} << 24);
  const auto begin = [&](int64_t step, int32_t track, uint64_t start) {
    StepRow* row = other.begin_step(step);
    row->track = track;
    row->start_ticks = start;
  };
  begin(0, 0, 10);
  begin(2, 1, 20);
  begin(3, 0, 30);
  other.step(3)->end_ticks = 40;
  other.evict_before(1000);
  CHECK_EQ(other.first_step(), int64_t{1});
  begin(1, 2, 50);  // came late, from another thread
  other.step(2)->end_ticks = 60;
  other.evict_before(1000);
  CHECK_EQ(other.first_step(), int64_t{1});
  other.step(1)->end_ticks = 2000;
  other.evict_before(3000);
  CHECK_EQ(other.first_step(), int64_t{4});
  CHECK_EQ(other.bytes(), size_t{0});
}

TEST(a_snapshot_does_not_change_afterwards) {
  TraceStore store(size_t{1} << 20);
  for (int64_t seq = 1; seq <= 100; ++seq) store.add_span(span_of(seq, seq));
  const StoreSnapshot snapshot = store.snapshot();
  for (int64_t seq = 101; seq <= 100000; ++seq) store.add_span(span_of(seq, seq));
  store.evict();
  size_t count = 0;
  for (const auto& chunk : snapshot.chunks) count += chunk->size();
  CHECK_EQ(count, size_t{100});
}

TEST(steps_may_begin_out_of_order) {
  TraceStore store(size_t{1} << 20);
  store.step(5)->begun = true;
  store.step(2)->begun = true;
  const StoreSnapshot snapshot = store.snapshot();
  CHECK_EQ(snapshot.steps.size(), size_t{6});
  for (const StepRow& row : snapshot.steps) {
    CHECK_EQ(row.begun, row.step == 5 || row.step == 2);
  }
}

}  // namespace
}  // namespace pertoken
