// The cost of the native core's own operations, without Python: a program that times them in
// interleaved rounds and prints every round as JSON. What the rounds mean is found out by
// native_micro.py, which builds and runs it: native_micro <rounds>.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/exp_histogram.h"
#include "core/recorder.h"
#include "core/thread_buffer.h"

namespace pertoken {
namespace {

constexpr size_t kRingRecords = size_t{1} << 16;  // as a recording has
constexpr size_t kBatch = kRingRecords / 4;
constexpr size_t kSpansAStep = 58;
constexpr size_t kStepsADrain = kRingRecords / (kSpansAStep + 2) - 1;
constexpr size_t kStoreLimitBytes = size_t{64} << 20;
constexpr std::chrono::microseconds kConsumerRest{50};
constexpr std::chrono::microseconds kNoRest{0};

// Results that nothing else needs, so that they are computed.
volatile uint64_t sink;

template <typename F>
double nanoseconds(F&& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  const auto end = std::chrono::steady_clock::now();
  return std::chrono::duration<double, std::nano>(end - start).count();
}

Record record_at(uint64_t start_ticks, uint32_t seq) {
  return {start_ticks, start_ticks, make_tag(RecordType::kSpan, 7), seq, seq - 1, 1};
}

void consume(SpscRing<Record>& ring) {
  uint64_t sum = 0;
  for (auto records = ring.readable(); !records.empty(); records = ring.readable()) {
    for (const Record& record : records) sum += record.start_ticks;
    ring.release(records.size());
  }
  sink = sum;
}

double clock_read_ns() {
  uint64_t sum = 0;
  const double total = nanoseconds([&] {
    for (size_t i = 0; i < kBatch; ++i) sum += now_ticks();
  });
  sink = sum;
  return total / kBatch;
}

double push_batch_ns(ThreadBuffer& buffer) {
  const double total = nanoseconds([&] {
    for (uint32_t i = 0; i < kBatch; ++i) buffer.push(record_at(now_ticks(), i));
  });
  return total / kBatch;
}

// The ring is emptied between the batches, on the same thread.
double push_ns(ThreadBuffer& buffer) {
  const double result = push_batch_ns(buffer);
  consume(buffer.ring);
  return result;
}

// Another thread empties the ring meanwhile, and rests between two rounds: the collector does so,
// for a millisecond at least.
double push_live_ns(ThreadBuffer& buffer, std::chrono::microseconds rest) {
  std::atomic<bool> ready{false};
  std::atomic<bool> done{false};
  std::thread consumer([&] {
    ready.store(true, std::memory_order_release);  // pairs with the load below
    while (!done.load(std::memory_order_acquire)) {
      consume(buffer.ring);
      if (rest.count() > 0) std::this_thread::sleep_for(rest);
    }
    consume(buffer.ring);
  });
  while (!ready.load(std::memory_order_acquire)) std::this_thread::yield();
  const double result = push_batch_ns(buffer);
  done.store(true, std::memory_order_release);  // pairs with the consumer's load
  consumer.join();
  return result;
}

// All that the call wrapper does round a module's own call.
double span_ns(Recorder& recorder) {
  ThreadBuffer* warm = recorder.buffer();
  if (warm == nullptr) std::abort();
  const double total = nanoseconds([&] {
    for (size_t i = 0; i < kBatch; ++i) {
      ThreadBuffer* buffer = recorder.buffer();
      const uint32_t parent_seq = buffer->open_seq;
      const uint32_t seq = tls_thread_state->next_seq();
      buffer->open_seq = seq;
      const uint64_t start_ticks = now_ticks();
      const uint64_t end_ticks = now_ticks();
      buffer->open_seq = parent_seq;
      buffer->push(
          {start_ticks, end_ticks, make_tag(RecordType::kSpan, 7), seq, parent_seq, kNone32});
    }
  });
  recorder.drain();
  return total / kBatch;
}

void push_steps(Recorder& recorder) {
  ThreadBuffer* buffer = recorder.buffer();
  if (buffer == nullptr) std::abort();
  for (size_t n = 0; n < kStepsADrain; ++n) {
    const uint32_t step = recorder.next_step();
    const auto kind = static_cast<uint32_t>(StepKind::kDecode);
    buffer->push(
        {now_ticks(), uint64_t{1} << 32 | 1, make_tag(RecordType::kStepBegin, kind), 0, 9, step});
    const uint32_t root = tls_thread_state->next_seq();
    for (uint32_t site = 0; site < kSpansAStep; ++site) {
      const uint64_t start_ticks = now_ticks();
      const uint32_t seq = tls_thread_state->next_seq();
      buffer->push({start_ticks, now_ticks(), make_tag(RecordType::kSpan, site), seq, root, step});
    }
    buffer->push({now_ticks(), 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step});
  }
}

// Moves a nearly full ring into the store and the aggregates; past the store's limit, so that
// evicting is part of it once that is reached.
double drain_record_ns(Recorder& recorder) {
  push_steps(recorder);
  return nanoseconds([&] { recorder.drain(); }) / (kStepsADrain * (kSpansAStep + 2));
}

double record_ns(ExpHistogram& histogram, const std::vector<uint64_t>& durations_ns) {
  const double total = nanoseconds([&] {
    for (const uint64_t duration_ns : durations_ns) histogram.record_ns(duration_ns);
  });
  sink = histogram.count();
  return total / static_cast<double>(durations_ns.size());
}

// Durations as a decode has them: most within a factor of ten.
std::vector<uint64_t> durations() {
  std::mt19937_64 random(1);
  std::lognormal_distribution<double> nanosecond(std::log(30e3), 1.0);
  std::vector<uint64_t> result(kBatch);
  std::generate(result.begin(), result.end(),
                [&] { return static_cast<uint64_t>(nanosecond(random)); });
  return result;
}

void print_rounds(const char* name, const std::vector<double>& rounds) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < rounds.size(); ++i) std::printf("%s%.4f", i == 0 ? "" : ", ", rounds[i]);
  std::printf("],\n");
}

struct Operation {
  const char* name;
  std::function<double()> run;  // nanoseconds of one operation
};

int run(long rounds) {
  const auto recorder = Recorder::create({.store_limit_bytes = kStoreLimitBytes});
  if (recorder == nullptr) return 1;
  ThreadBuffer alone(kRingRecords, 0, 0, "alone");
  ThreadBuffer shared(kRingRecords, 0, 0, "shared");
  ExpHistogram histogram;
  const std::vector<uint64_t> values = durations();

  const std::vector<Operation> operations = {
      {"clock_read_ns", [] { return clock_read_ns(); }},
      {"push_ns", [&] { return push_ns(alone); }},
      {"push_live_ns", [&] { return push_live_ns(shared, kConsumerRest); }},
      {"push_contended_ns", [&] { return push_live_ns(shared, kNoRest); }},
      {"span_ns", [&] { return span_ns(*recorder); }},
      {"drain_record_ns", [&] { return drain_record_ns(*recorder); }},
      {"histogram_ns", [&] { return record_ns(histogram, values); }},
  };

  std::vector<std::vector<double>> results(operations.size());
  std::vector<size_t> order(operations.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937 random(0);
  constexpr long kWarmUpRounds = 5;
  for (long round = 0; round < kWarmUpRounds + rounds; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t number : order) {
      const double result = operations[number].run();
      if (round >= kWarmUpRounds) results[number].push_back(result);
    }
  }

  const uint64_t dropped =
      alone.dropped + shared.dropped + recorder->snapshot().losses.records_dropped;
  std::printf("{\n");
  std::sort(order.begin(), order.end());
  for (const size_t number : order) print_rounds(operations[number].name, results[number]);
  std::printf("\"operations_a_round\": %zu,\n\"dropped\": %llu\n}\n", kBatch,
              static_cast<unsigned long long>(dropped));
  return 0;
}

}  // namespace
}  // namespace pertoken

int main(int argc, char** argv) {
  const long rounds = argc == 2 ? std::strtol(argv[1], nullptr, 10) : 0;
  if (rounds <= 0) {
    static_cast<void>(std::fprintf(stderr, "usage: native_micro ROUNDS\n"));
    return 2;
  }
  return pertoken::run(rounds);
}
