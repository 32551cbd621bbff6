// Decides, step by step, how much detail a step gets, so that recording costs no more than a share
// of the steps' time. decide() and settle() are hot, on the model's threads: some loads, one
// pseudo-random number, no lock. Everything else is the collector's, under the recorder's mutex.
// Nothing here reads a clock: durations are arguments, and the seed is one.
//
// Two things hold the budget. Each thread has an allowance for each kind of step, in nanoseconds: a
// step pays in its share of its own duration, detail takes out what it costs. It is a token bucket
// that fills with the model's own time, so that it bounds records a second however fast that is.
// And the controller moves the probabilities to where the allowance just lasts, so that it seldom
// has to. An allowance that runs low lowers the probability, never to 0: the floor stays, and
// estimates that weight by the inverse of the probability stay unbiased.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core/paired_cost.h"
#include "core/record.h"

namespace pertoken {

inline constexpr size_t kMaxSampleLevels = 3;

// What the calls of the wrappers add on this machine, in nanoseconds.
struct SampleCosts {
  double step_ns = 500;  // a step without detail, its records included
  double span_ns = 150;  // a recorded call, or any other record
  double skip_ns = 20;   // a call whose wrapper passes it on
  double drain_ns =
      60;  // a record, in the drain thread, which counts as if the model waited for it
};

// Detail that a step can get, on top of that of the levels below.
struct SampleLevel {
  uint32_t detail;   // bits of step_detail.h, those of the levels below included
  double calls;      // wrapped calls that it records, those below included; as far as it is known
  double values_ns;  // what else it costs a step, those below included
};

struct SamplerOptions {
  double budget = 0.01;  // of the time of the steps
  SampleCosts costs;
  std::vector<SampleLevel> levels;  // ascending, 1 to kMaxSampleLevels
  uint64_t seed = 0;
};

// Of one thread and recorder; the thread's own.
struct SampleState {
  uint64_t random = 0;  // 0: not yet begun
  std::array<double, kStepKinds> allowance_ns{};
};

struct SampleChoice {
  int level = -1;          // -1: the step alone
  double weight = 0;       // 1 / the probability of exactly this level; 0 for none
  double probability = 0;  // of any detail
};

// A step that has ended, as the collector met it.
struct SeenStep {
  StepKind kind;
  int level;
  double dur_ns;
  uint64_t records;    // in it, besides those of the step itself
  double probability;  // with which it would get any detail
};

// Of one track; the collector's. The last step of each kind that is in no pair yet.
struct SamplePairs {
  struct Last {
    double dur_ns = -1;  // -1: none
    int level = -1;
    double probability = 0;  // of what it got
  };
  std::array<Last, kStepKinds> last;
};

struct StratumReport {
  uint64_t steps = 0;
  double step_ns = 0;
  std::array<uint64_t, kMaxSampleLevels> detailed{};  // steps that got exactly this level
  std::array<double, kMaxSampleLevels> rates{};       // probability of this level or one above
  double floor = 0;                                   // no step's probability is below
  double plain_ns = 0;                                // cost of the steps, without any detail
  double detail_ns = 0;                               // and what their detail added
  uint64_t pairs = 0;
  // What was measured of detail_ns, with its interval of 95 %; detail_ns itself where not known.
  bool is_measured = false;
  double measured_ns = 0;
  double low_ns = 0;
  double high_ns = 0;
};

struct SamplerReport {
  double budget = 0;
  std::vector<uint32_t> levels;  // their detail
  SampleCosts costs;
  double drain_ns = 0;  // of the drain thread, besides what its records took, which strata hold
  std::array<StratumReport, kStepKinds> strata;
};

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);

  // Hot. A favoured step, one of the first of its request, has a higher probability.
  SampleChoice decide(SampleState& state, StepKind kind, bool is_favoured) noexcept;
  // Hot: pays in for a step that has ended, and takes out what it cost.
  void settle(SampleState& state, StepKind kind, int level, uint64_t dur_ticks) noexcept;
  uint32_t detail(int level) const noexcept {
    return level < 0 ? 0 : details_[static_cast<size_t>(level)];
  }
  int top_level() const noexcept { return static_cast<int>(levels_) - 1; }

  // The collector's.
  void set_rate(double ns_per_tick) noexcept {
    ns_per_tick_.store(ns_per_tick, std::memory_order_relaxed);
  }
  void see(SamplePairs& pairs, const SeenStep& step);
  // Moves the probabilities, where the period is over. `now_ns` by any clock that does not go back.
  void control(double now_ns, double drain_ns);
  SamplerReport report() const;
  // Whether it does not know yet what steps and the drain thread cost here.
  bool is_learning(double now_ns) const noexcept { return now_ns - started_ns_ < kPeriodNs / 2; }

  static constexpr double kDeadBand = 1.25;
  static constexpr double kLargestChange = 1.4142135623730951;
  static constexpr double kPeriodNs = 100e6;
  static constexpr double kLeastProbability = 1.0 / 4096;
  // Some steps are left plain even where the budget is ample: what detail costs is measured there.
  static constexpr double kMostProbability = 15.0 / 16;

 private:
  static constexpr double kAim = 0.9;         // of the budget, so that chance does not pass it
  static constexpr double kAllowed = 0.96;    // of it, that allowances get
  static constexpr double kFavour = 4;        // of the first steps of a request
  static constexpr double kBurst = 4;         // full steps that an allowance can hold
  static constexpr double kFloorShare = 0.1;  // of the budget, at most, for the floor
  static constexpr double kFloorNs = 1e9;     // one detailed step in so long
  static constexpr uint64_t kOwnRecords = 4;  // of a step
  static constexpr uint64_t kFirstSteps = 8;
  static constexpr uint64_t kPeriodSteps = 32;

  // One writer, the collector; model threads read. Relaxed on both sides: each number is of use by
  // itself, and an old one for a step more does no harm.
  struct alignas(64) Published {
    std::array<std::atomic<double>, kMaxSampleLevels> rates;
    std::array<std::atomic<double>, kMaxSampleLevels> detail_ns;
    std::atomic<double> floor;
    std::atomic<double> plain_ns;
    std::atomic<double> capacity_ns;
    std::atomic<double> fill_per_ns;  // 2 / capacity
  };

  static double probability(const Published& published, int level, double fill,
                            double above) noexcept;

  struct Window {
    uint64_t steps = 0;
    double step_ns = 0;
  };

  struct Stratum {
    uint64_t steps = 0;
    double step_ns = 0;
    std::array<uint64_t, kMaxSampleLevels> detailed{};
    std::array<uint64_t, kMaxSampleLevels> records{};  // in those
    uint64_t plain_steps = 0;
    uint64_t plain_records = 0;
    PairedCost paired;
    Window window;       // since it was last controlled
    double mean_ns = 0;  // of a step, recently
    double controlled_ns = 0;
    bool is_controlled = false;
  };

  // Of one step of a kind, as the numbers stand.
  struct StepCosts {
    double plain_ns;
    std::array<double, kMaxSampleLevels> detail_ns;  // added to it
  };

  StepCosts costs_of(const Stratum& stratum) const;
  double correction(const Stratum& stratum) const;
  void publish(size_t kind, const StepCosts& costs);
  void control_stratum(size_t kind, double now_ns);

  const double budget_;
  const SampleCosts costs_;
  const size_t levels_;
  std::array<uint32_t, kMaxSampleLevels> details_{};
  std::array<double, kMaxSampleLevels> prior_calls_{};
  std::array<double, kMaxSampleLevels> values_ns_{};
  std::atomic<uint64_t> next_seed_;       // relaxed: only uniqueness matters
  std::atomic<double> ns_per_tick_{1.0};  // as Published
  std::array<Published, kStepKinds> published_;

  std::array<Stratum, kStepKinds> strata_;
  double started_ns_ = -1;      // of the first control()
  double drain_before_ns_ = 0;  // what the drain thread took to begin: once, and no step's
  double drain_ns_ = 0;         // since then, besides what its records took
  double drain_seen_ns_ = 0;    // when drain_a_step_ns_ was last brought up
  double drain_counted_ns_ = 0;
  uint64_t drain_counted_steps_ = 0;
  uint64_t all_steps_ = 0;
  uint64_t all_records_ = 0;
  double drain_a_step_ns_ = 0;
};

}  // namespace pertoken
