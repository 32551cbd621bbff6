// Requests, generations and their commits, in random order and cut into random rounds of the
// collector, against a reference that knows each sequence from its beginning to its end.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "check.h"
#include "core/aggregates.h"
#include "core/own_time.h"
#include "core/request_tracker.h"

namespace pertoken {
namespace {

struct Reference {
  std::array<StepTotals, kStepKinds> steps;
  std::vector<RequestTotals> requests = std::vector<RequestTotals>(kOtherLabels + 1);
};

struct Commit {
  StepKind kind;
  uint64_t end_ticks;
  uint32_t tokens;  // of each row
  uint32_t before;
};

// A generate() that runs: what it is and what it has done.
struct Running {
  uint32_t number;
  uint32_t label_set;
  uint64_t start_ticks;
  uint32_t rows;
  bool can_end_rows;
  bool fails;
  uint32_t steps_left;
  uint32_t committed = 0;
  uint64_t first_commit_ticks = 0;
  std::vector<Commit> commits{};
};

class Schedule {
 public:
  explicit Schedule(uint32_t seed) : random_(seed) { tracker_.set_rate(1.0); }

  void run(int turns) {
    for (int turn = 0; turn < turns; ++turn) {
      now_ += below(50) + 1;
      switch (below(8)) {
        case 0:
          if (running_.size() < 6) begin();
          break;
        case 1:
          round();
          break;
        default:
          if (!running_.empty()) step(below(static_cast<uint32_t>(running_.size())));
      }
    }
    while (!running_.empty()) step(0);
    round();
    round();
  }

  // Sums and squares of small whole numbers are exact, in any order.
  void check() {
    const AggregateSnapshot got = totals_.snapshot();
    for (size_t kind = 0; kind < kStepKinds; ++kind) {
      const StepTotals& expected = expected_.steps[kind];
      CHECK_EQ(got.steps[kind].begun, expected.begun);
      CHECK_EQ(got.steps[kind].failed, expected.failed);
      CHECK_EQ(got.steps[kind].rows, expected.rows);
      CHECK_EQ(got.steps[kind].tokens_in, expected.tokens_in);
      CHECK_EQ(got.steps[kind].tokens_committed, expected.tokens_committed);
      CHECK(got.steps[kind].wall_ns == expected.wall_ns);
      CHECK(got.steps[kind].itl_ns == expected.itl_ns);
    }
    for (size_t set = 0; set < got.requests.size(); ++set) {
      const RequestTotals& expected = expected_.requests[set];
      CHECK_EQ(got.requests[set].started, expected.started);
      CHECK_EQ(got.requests[set].finished, expected.finished);
      CHECK_EQ(got.requests[set].failed, expected.failed);
      CHECK_EQ(got.requests[set].tokens_out, expected.tokens_out);
      CHECK(got.requests[set].duration_ns == expected.duration_ns);
      CHECK(got.requests[set].ttft_ns == expected.ttft_ns);
      CHECK(got.requests[set].itl_ns == expected.itl_ns);
      CHECK_EQ(got.requests[set].tpot_ns.count(), expected.tpot_ns.count());
      CHECK(std::abs(got.requests[set].tpot_ns.sum() - expected.tpot_ns.sum()) < 1e-3);
      for (size_t kind = 0; kind < kStepKinds; ++kind) {
        CHECK(got.requests[set].step_ns[kind] == expected.step_ns[kind]);
      }
    }
    CHECK_EQ(tracker_.requests_uncounted(), uint64_t{0});
    CHECK_EQ(tracker_.tokens_uncounted(), uint64_t{0});
  }

 private:
  uint32_t below(uint32_t limit) {
    return std::uniform_int_distribution<uint32_t>(0, limit - 1)(random_);
  }

  void round() {
    tracker_.begin_round();
    tracker_.end_round();
  }

  void begin() {
    Running made{.number = next_++,
                 .label_set = below(3) == 0 ? kOtherLabels + below(5) : below(4),
                 .start_ticks = now_,
                 .rows = below(3) + 1,
                 .can_end_rows = below(2) == 0,
                 .fails = below(5) == 0,
                 .steps_left = below(8)};
    tracker_.events().push(RequestBegin{made.number, made.label_set, made.start_ticks});
    tracker_.events().push(GenerationBegin{.generation = made.number,
                                           .request = made.number,
                                           .source = CommitSource::kGenerate,
                                           .can_end_rows = made.can_end_rows,
                                           .is_beam_search = false,
                                           .prompt_rows = -1,
                                           .prompt_length = -1,
                                           .prompt_tokens = -1});
    ++expected_.requests[std::min(made.label_set, kOtherLabels)].started;
    running_.push_back(made);
  }

  void step(size_t which) {
    Running& on = running_[which];
    if (on.steps_left == 0) {
      end(which);
      return;
    }
    --on.steps_left;
    const auto kind = on.commits.empty() ? StepKind::kPrefill : StepKind::kVerify;
    const uint32_t query_len = below(9) + 1;
    const int64_t number = next_step_++;
    const uint64_t start = now_;
    tracker_.begin_step(
        {number, kind, on.rows, query_len, static_cast<uint32_t>(kind), on.number, start});
    if (below(4) == 0) round();
    now_ += below(1000) + 1;
    tracker_.end_step(number, now_, 0);
    const uint32_t tokens = on.commits.empty() && below(3) != 0 ? 1 : below(3) + 1;
    tracker_.commit(number, tokens, on.committed, false);
    on.commits.push_back({kind, now_, tokens, on.committed});
    on.committed += tokens;
    if (on.first_commit_ticks == 0) on.first_commit_ticks = now_;
    StepTotals& totals = expected_.steps[static_cast<size_t>(kind)];
    ++totals.begun;
    totals.rows += on.rows;
    totals.tokens_in += uint64_t{on.rows} * query_len;
    totals.wall_ns.record_ns(now_ - start);
    expected_.requests[std::min(on.label_set, kOtherLabels)]
        .step_ns[static_cast<size_t>(kind)]
        .record_ns(now_ - start);
  }

  void end(size_t which) {
    const Running on = running_[which];
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(which));
    std::vector<uint32_t> lengths(on.rows, on.committed);
    if (on.can_end_rows && on.committed > 0) {
      for (uint32_t row = 1; row < on.rows; ++row) lengths[row] = below(on.committed) + 1;
    }
    GenerationEnd ended{.generation = on.number,
                        .first_commit_ticks = on.first_commit_ticks,
                        .has_failed = on.fails,
                        .is_delegated = false,
                        .commits_known = true,
                        .row_lengths = std::nullopt};
    if (!on.fails) ended.row_lengths = lengths;
    tracker_.events().push(ended);
    tracker_.events().push(RequestEnd{on.number, now_, on.fails});
    expect(on, lengths);
  }

  void expect(const Running& on, const std::vector<uint32_t>& lengths) {
    RequestTotals& request = expected_.requests[std::min(on.label_set, kOtherLabels)];
    for (uint32_t row = 0; row < on.rows; ++row) {
      uint64_t last = 0;
      for (size_t i = 0; i < on.commits.size(); ++i) {
        const Commit& commit = on.commits[i];
        uint32_t got = commit.tokens;
        if (on.fails) {
          const bool is_certain =
              on.rows == 1 || !on.can_end_rows || (commit.before == 0 && commit.tokens == 1);
          if (!is_certain || i + 1 == on.commits.size()) got = 0;
        } else {
          got = std::min(got, lengths[row] - std::min(lengths[row], commit.before));
        }
        if (got == 0) continue;
        StepTotals& step = expected_.steps[static_cast<size_t>(commit.kind)];
        step.tokens_committed += got;
        request.tokens_out += got;
        if (last != 0) {
          step.itl_ns.record_ns(commit.end_ticks - last);
          request.itl_ns.record_ns(commit.end_ticks - last);
        }
        for (uint32_t more = 1; more < got; ++more) {
          step.itl_ns.record_ns(0);
          request.itl_ns.record_ns(0);
        }
        last = commit.end_ticks;
      }
    }
    if (on.fails) {
      ++request.failed;
      return;
    }
    ++request.finished;
    request.duration_ns.record_ns(now_ - on.start_ticks);
    if (on.first_commit_ticks == 0) return;
    request.ttft_ns.record_ns(on.first_commit_ticks - on.start_ticks);
    if (on.commits.size() < 2) return;
    request.tpot_ns.record(static_cast<double>(now_ - on.first_commit_ticks) /
                           static_cast<double>(on.committed - 1));
  }

  std::mt19937 random_;
  Aggregates totals_;
  RequestTracker tracker_{totals_};
  Reference expected_;
  std::vector<Running> running_;
  uint64_t now_ = 1000;
  uint32_t next_ = 0;
  int64_t next_step_ = 0;
};

TEST(random_schedules_of_generations_are_counted_as_the_reference_counts_them) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    Schedule schedule(seed);
    schedule.run(300);
    schedule.check();
  }
}

TEST(a_step_that_outlasts_a_thousand_others_is_still_counted) {
  Aggregates totals;
  RequestTracker tracker(totals);
  tracker.begin_step({0, StepKind::kPrefill, 1, 1, 0, kNone32, 10});
  for (int64_t step = 1; step < 5000; ++step) {
    const auto ticks = static_cast<uint64_t>(10 + step);
    tracker.begin_step({step, StepKind::kDecode, 1, 1, 1, kNone32, ticks});
    tracker.end_step(step, ticks + 1, 0);
  }
  tracker.end_step(0, 1'000'010, 0);
  const AggregateSnapshot got = totals.snapshot();
  CHECK_EQ(got.steps[0].wall_ns.count(), uint64_t{1});
  CHECK_EQ(got.steps[0].wall_ns.max(), 1e6);
  CHECK_EQ(got.steps[1].wall_ns.count(), uint64_t{4999});
}

TEST(a_row_committed_before_its_step_was_seen_to_end_is_counted_when_it_has) {
  Aggregates totals;
  RequestTracker tracker(totals);
  tracker.begin_round();
  tracker.commit_row(3, 0, kNone32, 2);  // its thread's ring is read first
  tracker.begin_step({3, StepKind::kDecode, 1, 1, 1, kNone32, 10});
  tracker.end_round();
  CHECK_EQ(totals.steps(StepKind::kDecode).tokens_committed, uint64_t{0});
  tracker.begin_round();
  tracker.end_step(3, 20, 0);
  tracker.commit_row(99, 0, kNone32, 5);  // of a step that is never seen
  tracker.end_round();
  CHECK_EQ(totals.steps(StepKind::kDecode).tokens_committed, uint64_t{2});
  CHECK_EQ(tracker.tokens_uncounted(), uint64_t{5});
}

TEST(requests_that_never_end_are_bounded_and_counted) {
  Aggregates totals;
  RequestTracker tracker(totals);
  constexpr uint32_t kMany = 70'000;
  for (uint32_t number = 0; number < kMany; ++number) {
    tracker.events().push(RequestBegin{number, 0, 1});
    tracker.events().push(
        GenerationBegin{number, number, CommitSource::kDeclared, false, false, -1, -1, -1});
  }
  tracker.begin_round();
  tracker.end_round();
  CHECK_EQ(totals.requests(0).started, uint64_t{kMany});
  CHECK_EQ(tracker.requests_uncounted(), uint64_t{kMany} - (1u << 16));
}

TEST(sites_beyond_the_bound_are_counted_as_one) {
  Aggregates totals;
  constexpr uint32_t kMany = kMaxSiteHistograms + 100;
  for (uint32_t site = 0; site < kMany; ++site) totals.add_span(site, 1, 5, 3);
  const AggregateSnapshot got = totals.snapshot();
  CHECK_EQ(got.sites.size(), kMaxSiteHistograms + 1);
  CHECK_EQ(got.sites.back().site, kOtherSite);
  CHECK_EQ(got.sites.back().dur_ns.count(), uint64_t{100});
  CHECK_EQ(got.sites.back().own_ns, uint64_t{300});
}

TEST(own_time_is_what_no_child_took_also_where_spans_overlap) {
  OwnTime track;
  // 1 [ 2 [ 4 ] ] and 3 inside 1, which ends after 2 began: asyncio's tasks.
  CHECK_EQ(track.end_span(4, 2, 5), uint64_t{5});
  CHECK_EQ(track.end_span(3, 1, 20), uint64_t{20});
  CHECK_EQ(track.end_span(2, 1, 30), uint64_t{25});
  CHECK_EQ(track.end_span(1, 0, 100), uint64_t{50});
  // Children that overlap each other may take longer than their parent.
  CHECK_EQ(track.end_span(6, 5, 80), uint64_t{80});
  CHECK_EQ(track.end_span(7, 5, 80), uint64_t{80});
  CHECK_EQ(track.end_span(5, 0, 100), uint64_t{0});
}

}  // namespace
}  // namespace pertoken
