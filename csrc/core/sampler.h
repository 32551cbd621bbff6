// Decides, step by step, how much detail a step gets, so that recording costs no more than a share
// of the steps' time. decide() and settle() are hot, on the model's threads: some loads, one
// pseudo-random number, no lock. Everything else is the collector's, under the recorder's mutex.
// Nothing here reads a clock: durations are arguments, and the seed is one.
//
// There are several details: the spans of a step, in levels of which each holds those below, what
// observed sites put out, and what the logits say of the tokens. Each is decided by a coin of its
// own, with costs, rates and a floor of its own, so that the one says nothing of the others; they
// share the budget.
//
// Two things hold it. Each thread has an allowance for each kind of step and detail, in
// nanoseconds: a step pays in its share of its own duration, detail takes out what it costs. It is
// a token bucket that fills with the model's own time, so that it bounds records a second however
// fast that is. And the controller moves the probabilities to where the allowances just last, so
// that they seldom have to. An allowance that runs low lowers the probability, never to 0: the
// floor stays, and estimates that weight by the inverse of the probability stay unbiased.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/paired_cost.h"
#include "core/record.h"
#include "core/sample_choice.h"

namespace pertoken {

inline constexpr size_t kMaxSampleLevels = 3;

// What the calls of the wrappers add on this machine, in nanoseconds.
struct SampleCosts {
  double step_ns = 500;  // the root's wrapper in a step, where that was not measured
  double span_ns = 150;  // a recorded call, or any other record
  double skip_ns = 20;   // a call whose wrapper passes it on
  double drain_ns =
      60;  // a record, in the drain thread, which counts as if the model waited for it
};

// Of one step: calls that wrappers have only passed on, and wrappers that were moved out of their
// slots or back for it, see call_slots.h, with the time that took. What is moved is the price of
// spans: between two steps without any nothing is. It is measured: modules lie outside the caches
// in a real model, and that is what takes most of it.
struct UnrecordedCalls {
  uint32_t passed_on = 0;
  uint32_t moved = 0;
  uint64_t move_ticks = 0;

  explicit operator bool() const noexcept { return (passed_on | moved) != 0; }
};

// Detail that a step can get, on top of that of the levels below.
struct SampleLevel {
  uint32_t detail;  // bits of step_detail.h, those of the levels below included
  double calls;     // wrapped calls that it records, those below included; as far as it is known
  double timed_ns;  // what else it costs a step, until steps have told what it took; see charge()
};

struct SampledDetail {
  std::vector<SampleLevel> levels;  // ascending, up to kMaxSampleLevels; none: it is not sampled
  double most = 1;                  // no step has a higher probability, but one that is favoured
  bool in_use = true;               // of observations: from the start; see begin_observing()
};

struct SamplerOptions {
  double budget = 0.01;  // of the time of the steps
  SampleCosts costs;
  ByDetail<SampledDetail> details;
  uint64_t seed = 0;
};

// Of one thread and recorder; the thread's own. What each step touches comes first, on one line.
struct SampleState {
  StepsAhead ahead;
  // The last step, or the last ones, all of a kind and without detail, until they are settled:
  // behind a step all that is looked at for that would have left the caches once more.
  struct Ended {
    uint32_t steps = 0;
    StepKind kind;
    int level;  // of its spans
    uint64_t dur_ticks;
    UnrecordedCalls unrecorded;
  };
  Ended ended{};
  uint64_t random = 0;  // 0: not yet begun
  std::array<ByDetail<double>, kStepKinds> allowance_ns{};
  std::array<double, kStepKinds> recent_ns{};  // how long steps of a kind were of late; 0: none
  std::array<bool, kStepKinds> had_spans{};
  ByDetail<SampleChoice> next;  // of the step behind those ahead
};

// A step that has ended, as the collector met it.
struct SeenStep {
  StepKind kind;
  double dur_ns;
  uint64_t records;  // in it, besides those of the step itself
  UnrecordedCalls unrecorded;
  double moved_ns;  // its move_ticks
  double root_ns;   // what the root's wrapper took for itself; 0: not known
  struct Detail {
    int level = -1;
    double probability = 0;  // with which it would get any level; 0: there was nothing to decide
    double weight = 0;       // 1 / the probability of exactly its level; 0 for none
    double timed_ns = 0;     // what it took, where that is measured; of logits so far
  };
  ByDetail<Detail> details{};
  double logits_ns = 0;  // of dur_ns, what logits took, of this step or of others
};

// Of one track; the collector's. For each detail the last step of each kind that is not used up.
struct SamplePairs {
  struct Last {
    double dur_ns = -1;  // -1: none
    double timed_ns = 0;
    double passed_on_ns = 0;  // within it
    ByDetail<int> levels{};
    double probability = 0;  // of what it got
  };
  std::array<ByDetail<Last>, kStepKinds> last;
  // Of the logits of the last step, which are read behind it: what that does besides, it does to
  // the next step.
  SeenStep::Detail logits_before;
};

// What one detail has cost the steps of one kind.
struct DetailReport {
  uint64_t decided = 0;                               // steps that could get it
  std::array<uint64_t, kMaxSampleLevels> detailed{};  // steps that got exactly this level
  std::array<double, kMaxSampleLevels> rates{};       // probability of this level or one above
  double floor = 0;                                   // no step's probability is below
  double detail_ns = 0;                               // cost of it, all together
  uint64_t pairs = 0;
  // What was measured of detail_ns, with its interval of 95 %; detail_ns itself where not known.
  bool is_measured = false;
  double measured_ns = 0;
  double low_ns = 0;
  double high_ns = 0;
};

struct StratumReport {
  uint64_t steps = 0;
  double step_ns = 0;
  double plain_ns = 0;  // cost of the steps, without that of any detail
  // Of those steps that got no detail at all, how many and what they cost.
  uint64_t undetailed_steps = 0;
  double undetailed_ns = 0;
  uint64_t passed_on = 0;  // as UnrecordedCalls has them
  uint64_t moved = 0;
  double moved_ns = 0;  // part of detail_ns of spans
  ByDetail<DetailReport> details;
};

struct SamplerReport {
  double budget = 0;
  ByDetail<std::vector<uint32_t>> levels;  // their bits of step_detail.h
  SampleCosts costs;
  double drain_ns = 0;  // of the drain thread, besides what its records took, which strata hold
  std::array<StratumReport, kStepKinds> strata;
};

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);

  // Hot: a step has ended, whose spans cost something; it also pays in its share. `dur_ticks`:
  // without what was measured of other detail.
  void end_step(SampleState& state, StepKind kind, int spans_level, uint64_t dur_ticks,
                const UnrecordedCalls& unrecorded) noexcept {
    settle(state);
    state.ended = {1, kind, spans_level, dur_ticks, unrecorded};
  }
  // Hot: the same of a step that was decided on ahead.
  void end_plain_step(SampleState& state, StepKind kind, uint64_t dur_ticks,
                      const UnrecordedCalls& unrecorded) noexcept {
    SampleState::Ended& ended = state.ended;
    if (ended.steps == 0 || ended.kind != kind || ended.level >= 0) [[unlikely]] {
      return end_step(state, kind, -1, dur_ticks, unrecorded);
    }
    ++ended.steps;
    ended.dur_ticks += dur_ticks;
    ended.unrecorded.passed_on += unrecorded.passed_on;
    ended.unrecorded.moved += unrecorded.moved;
    ended.unrecorded.move_ticks += unrecorded.move_ticks;
  }
  // Hot. A favoured step, one of the first of its request, has a higher probability. `place`: as
  // take_place() gave it to the step; a detail that was not decided on ahead has its own coin.
  SampleChoice decide(SampleState& state, SampleDetail detail, StepKind kind, bool is_favoured,
                      StepPlace place = StepPlace::kOwn) noexcept;
  // Hot: takes what was decided ahead of a step that begins, if anything was. Once a step, whatever
  // it turns out to be: a coin that was thrown is that of the next step of its kind, seen or not.
  static StepPlace take_place(SampleState& state, StepKind kind, bool is_favoured) noexcept {
    StepsAhead& ahead = state.ahead;
    if (ahead.kind != kind || is_favoured) return StepPlace::kOwn;
    if (ahead.plain != 0) {
      --ahead.plain;
      return StepPlace::kPlain;
    }
    return std::exchange(ahead.has_next, false) ? StepPlace::kNext : StepPlace::kOwn;
  }
  // Hot: of a step that was not favoured and got no detail, given what was decided of it: decides
  // on the same details of those of its kind that come next, up to the first that gets any, each by
  // coins of its own and with the probabilities of now. Nothing where steps are ahead already. What
  // a long run of plain steps looks at is `ahead`.
  void decide_ahead(SampleState& state, StepKind kind, PackedChoices decided) noexcept;
  // Hot: takes out what a level of another detail cost a step. `timed_ticks`: what of it was
  // measured.
  void charge(SampleState& state, SampleDetail detail, StepKind kind, int level,
              uint64_t timed_ticks) noexcept {
    if (level < 0) return;
    settle(state);
    charge_level(state, detail, kind, static_cast<size_t>(level), timed_ticks);
  }
  // Hot: what was measured of a detail of a step that was charged already.
  void charge_more(SampleState& state, SampleDetail detail, StepKind kind,
                   uint64_t timed_ticks) noexcept;
  // Whether the detail is sampled at all; where it is not, every step has it or none.
  bool samples(SampleDetail detail) const noexcept { return of(detail).levels > 0; }
  // Hot: whether observing is of use here: some sites were selected, or a value was given by hand
  // before. Where it is not, no step is observed, and none pays for the choice.
  bool observes() const noexcept { return observes_.load(std::memory_order_relaxed); }
  // Any thread: from now on it is.
  void begin_observing() noexcept {
    if (!observes()) observes_.store(true, std::memory_order_relaxed);
  }
  uint32_t bits(SampleDetail detail, int level) const noexcept {
    return level < 0 ? 0 : of(detail).bits[static_cast<size_t>(level)];
  }
  int top_level(SampleDetail detail) const noexcept {
    return static_cast<int>(of(detail).levels) - 1;
  }

  // The collector's.
  void set_rate(double ns_per_tick) noexcept {
    ns_per_tick_.store(ns_per_tick, std::memory_order_relaxed);
  }
  void see(SamplePairs& pairs, const SeenStep& step);
  // So many observations of steps of a kind, by their number, have taken the drain thread so long.
  void see_drained(const std::array<uint64_t, kStepKinds>& observations, double cpu_ns);
  // The logits of a step of a kind have taken its thread so long, in so many records; see() leaves
  // that out.
  void see_logits(StepKind kind, double timed_ns, uint64_t records);
  // Moves the probabilities, where the period is over. `now_ns` by any clock that does not go back.
  void control(double now_ns, double drain_ns);
  SamplerReport report() const;

  static constexpr double kDeadBand = 1.25;
  static constexpr double kLargestChange = 1.4142135623730951;
  static constexpr double kPeriodNs = 100e6;
  static constexpr double kLeastProbability = 1.0 / 4096;
  // Some steps are left plain even where the budget is ample: what detail costs is measured there.
  static constexpr double kMostProbability = 15.0 / 16;

 private:
  // Takes out what the spans of the steps that have ended cost, and pays in for them, less what
  // they cost without detail.
  void settle(SampleState& state) noexcept {
    if (state.ended.steps != 0) settle_ended(state);
  }
  void settle_ended(SampleState& state) noexcept;

  // Of the budget. The rest is for what no clock of the recording's own sees, which is what its
  // code and data do to the model's caches, and so that an experiment can tell it from the budget
  // in time.
  static constexpr double kAim = 0.5;
  // Of it, that allowances get. Until steps of the kind were seen they get what is aimed at: what
  // the drain thread takes is not known before.
  static constexpr double kAllowed = 0.9;
  static constexpr double kFavour = 4;       // of the first steps of a request
  static constexpr double kBurst = 4;        // full steps that an allowance can hold
  static constexpr double kHeldSteps = 100;  // and steps whose pay it can; but the price of one
  static constexpr double kRecentSteps = 16;
  static constexpr double kRecentLonger = 4;  // than this one: what they could pay is not for it
  static constexpr double kFloorShare = 0.1;  // of the budget, at most, for the floor
  static constexpr double kFloorNs = 1e9;     // one detailed step in so long
  // Of spans, until steps of the kind were seen.
  static constexpr double kFirstFloor = 1.0 / 512;
  // What a root takes in a model, whose weights go through the caches, as a multiple of what it
  // takes in a loop of calls alone: until it was timed in steps.
  static constexpr double kUnseenRoot = 4;
  static constexpr uint64_t kOwnRecords = 4;  // of a step
  static constexpr uint64_t kFirstSteps = 8;
  // In which what is published, and what is paid in, changes little.
  static constexpr uint32_t kMostAhead = 32;
  static constexpr uint64_t kPeriodSteps = 32;

  // One writer, the collector; model threads read. Relaxed on both sides: each number is of use by
  // itself, and an old one for a step more does no harm.
  struct PublishedDetail {
    std::array<std::atomic<double>, kMaxSampleLevels> rates;
    std::array<std::atomic<double>, kMaxSampleLevels> untimed_ns;
    std::atomic<double> timed_factor;  // what a measured nanosecond really costs
    std::atomic<double> floor;
    std::atomic<double> capacity_ns;
    std::atomic<double> fill_per_ns;  // 2 / capacity
    std::atomic<double> share;        // of what a step pays in
  };
  struct alignas(64) Published {
    ByDetail<PublishedDetail> details;
    std::atomic<double> allowed;  // of the budget, that allowances get
    std::atomic<double> plain_ns;
    std::atomic<double> mean_ns;  // of the steps by which all this is known
  };

  // By what a step's coin of a detail is thrown.
  struct Odds {
    // As they were when the coin was thrown; and the weights go by them.
    std::array<double, kMaxSampleLevels> rates;
    size_t levels;
    double fill;
    double floor;
    double most;

    // Of a level or one above it, given that of those above.
    double probability(size_t level, double above) const noexcept;
    // What a number in [0, 1) decides.
    SampleChoice choice(double number) const noexcept;
  };

  void begin(SampleState& state) noexcept;
  // How long steps were of late, as a part of those by which costs are known: up to 1.
  double pace(const SampleState& state, StepKind kind) const noexcept;
  Odds odds(const SampleState& state, SampleDetail detail, StepKind kind,
            bool is_favoured) const noexcept;

  void charge_level(SampleState& state, SampleDetail detail, StepKind kind, size_t level,
                    uint64_t timed_ticks) noexcept;
  void charge_ns(SampleState& state, SampleDetail detail, StepKind kind, double untimed_ns,
                 uint64_t timed_ticks) noexcept;
  static void take_out(double& allowance_ns, double cost_ns, double capacity_ns) noexcept;

  struct DetailOptions {
    size_t levels = 0;
    double most = 0;
    std::array<uint32_t, kMaxSampleLevels> bits{};
    std::array<double, kMaxSampleLevels> prior_calls{};
    std::array<double, kMaxSampleLevels> prior_timed_ns{};
  };

  struct Window {
    uint64_t steps = 0;
    double step_ns = 0;
    double root_ns = 0;
    uint64_t calls = 0;  // recorded, of steps with spans
    uint64_t passed_on = 0;
    double moved_ns = 0;
  };

  struct DetailStratum {
    std::array<uint64_t, kMaxSampleLevels> detailed{};
    uint64_t decided = 0;  // steps that could get it
    double timed_ns = 0;   // measured in those that did, all together
    PairedCost paired;
    double corrected = 1.0;  // what a nanosecond of the model is, by them
  };

  struct Stratum {
    uint64_t steps = 0;
    double step_ns = 0;
    double root_ns = 0;  // of the root's wrapper, by the model of costs where it was not measured
    ByDetail<DetailStratum> details;
    std::array<uint64_t, kMaxSampleLevels> records{};  // in the steps with each level of spans
    uint64_t plain_steps = 0;                          // without spans
    uint64_t plain_records = 0;
    uint64_t undetailed_steps = 0;  // without any detail
    double undetailed_root_ns = 0;
    uint64_t undetailed_passed_on = 0;
    uint64_t drained = 0;        // observations that came from them
    uint64_t logit_records = 0;  // that told of their logits
    uint64_t passed_on = 0;
    uint64_t moved = 0;
    double moved_ns = 0;
    Window window;                // since it was last controlled
    double root_a_step_ns = 0;    // recently; 0: not known
    double passed_on_a_step = 0;  // likewise
    double move_a_call_ns = 0;    // likewise, of wrappers, for each call that is recorded
    double mean_ns = 0;           // of a step, recently
    double controlled_ns = 0;
    bool is_controlled = false;
    bool is_settled = false;  // by more than the drain thread's first rounds
  };

  // Of one step of a kind, as the numbers stand.
  struct DetailCosts {
    std::array<double, kMaxSampleLevels> calls{};  // that are recorded
    std::array<double, kMaxSampleLevels> untimed_ns{};
    std::array<double, kMaxSampleLevels> timed_ns{};
    double full_ns = 0;  // of the top level
    double at(size_t level) const { return untimed_ns[level] + timed_ns[level]; }
  };
  struct StepCosts {
    double records_ns = 0;  // of the records of any step, besides the root's wrapper
    double plain_ns = 0;    // with that
    ByDetail<DetailCosts> details;
  };

  const DetailOptions& of(SampleDetail detail) const noexcept {
    return options_[static_cast<size_t>(detail)];
  }
  static constexpr auto kSpansAt = static_cast<size_t>(SampleDetail::kSpans);
  static constexpr auto kObservationsAt = static_cast<size_t>(SampleDetail::kObservations);
  static constexpr auto kLogitsAt = static_cast<size_t>(SampleDetail::kLogits);

  bool in_use(size_t detail) const noexcept {
    return options_[detail].levels > 0 && (detail != kObservationsAt || observes());
  }
  // By all steps so far, without what is passed on and moved: that is counted one by one.
  StepCosts costs_of(const Stratum& stratum) const;
  // What the next steps will cost, with that.
  StepCosts expected_costs(const Stratum& stratum) const;
  static double correction(const DetailStratum& stratum);
  void see_pair(SamplePairs& pairs, const SeenStep& step, size_t detail);
  void publish(size_t kind, const StepCosts& costs, const StepCosts& expected);
  void control_stratum(size_t kind, double now_ns);
  DetailReport report_detail(size_t kind, size_t detail, const DetailCosts& costs) const;
  void move_rates(size_t kind, size_t detail, const DetailCosts& costs, double rest_ns);

  std::array<Published, kStepKinds> published_;  // first: its alignment is the widest
  const double budget_;
  const SampleCosts costs_;
  ByDetail<DetailOptions> options_;
  std::atomic<uint64_t> next_seed_;       // relaxed: only uniqueness matters
  std::atomic<double> ns_per_tick_{1.0};  // as Published
  std::atomic<bool> observes_{false};     // relaxed: a step more or less is no matter
  std::array<Stratum, kStepKinds> strata_;
  double started_ns_ = -1;      // of the first control()
  double drain_before_ns_ = 0;  // what the drain thread took to begin: once, and no step's
  double drain_ns_ = 0;         // since then, besides what its records took
  double drain_seen_ns_ = 0;    // when drain_a_step_ns_ was last brought up
  double drain_counted_ns_ = 0;
  uint64_t drain_counted_steps_ = 0;
  uint64_t drain_renewed_ = 0;  // how often
  uint64_t all_steps_ = 0;
  uint64_t all_records_ = 0;
  double drain_a_step_ns_ = 0;
  uint64_t drained_ = 0;  // observations, and what they took the drain thread
  double drained_ns_ = 0;
};

}  // namespace pertoken
