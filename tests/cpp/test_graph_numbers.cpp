// Graphs with stamps that come and go, on the fake driver: a number, of which there are few, serves
// another graph once its own is gone and nobody awaits a replay of it, and no span is ever given to
// the wrong one.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "stamp_rig.h"

namespace pertoken {
namespace {

using namespace testing;

constexpr uint32_t kFirstSite = 100;

// A rig with room for so many graphs, in each of which there are two calls with a kernel each.
struct NumbersRig : StampRig {
  explicit NumbersRig(uint32_t graphs, uint32_t ring_log2 = GraphStamps::kRingLog2)
      : StampRig(ring_log2, 1, graphs), stream(StampRig::stream()), other(StampRig::stream()) {
    lane();
    StampRig::settle();
  }

  using StampRig::capture;
  CapturedGraph capture(uint32_t calls = 2) {
    const uint32_t site = kFirstSite + 2 * captured++;
    return capture(stream, [&] {
      for (uint32_t i = site; i < site + calls; ++i) {
        call(stream, {}, i, [&](CapturedCall) {
          mark_at(stream, i);
          run_work(stream);
        });
      }
    });
  }
  // With a call of another recording in one of this.
  CapturedGraph capture_for(StampReader& second) {
    return capture(stream, [&] {
      call(stream, {}, 10, [&](CapturedCall) {
        const CapturedCall inner = second.begin(device, stream, {});
        run_work(stream);
        CHECK(second.end(device, inner, stream, {20, 0, 0, 0, false}));
      });
    });
  }
  // What can be had without waiting for anything.
  bool has_number() {
    const CapturedGraph graph = capture();
    drop(graph);
    return graph.number != 0;
  }
  // The device gets to everything that it can get to; nobody reads it.
  void run() { fake.advance(50'000'000); }
  uint64_t spans_in_replays() const {
    return static_cast<uint64_t>(std::count_if(
        spans.begin(), spans.end(), [](const auto& span) { return span.site != kReplaySite; }));
  }
  // Each span in a replay is where one launch of its graph came to its mark, and no two at the
  // same.
  void check_spans() {
    const auto error = static_cast<double>(losses().clock_error_ns) + kStampNs + 4 * kMarkNs;
    std::set<std::pair<uint32_t, int64_t>> seen;
    for (const DeviceSpan& span : spans) {
      if (span.site == kReplaySite) continue;
      const std::vector<int64_t>& at = marks[span.site];
      const double start_ns = boot_ns(span.start_ticks);
      const auto nearest = std::min_element(at.begin(), at.end(), [&](int64_t a, int64_t b) {
        return std::abs(start_ns - static_cast<double>(a)) <
               std::abs(start_ns - static_cast<double>(b));
      });
      CHECK(nearest != at.end());
      if (nearest == at.end()) continue;
      CHECK(std::abs(start_ns - static_cast<double>(*nearest)) <= error);
      CHECK(seen.insert({span.site, *nearest}).second);
      const double length_ns = boot_ns(span.end_ticks) - start_ns;
      CHECK(std::abs(length_ns - (40'000 + kStampNs + kMarkNs)) <= 2 * error);
    }
  }

  CUstream stream;
  CUstream other;
  uint32_t captured = 0;
};

}  // namespace

TEST(a_number_serves_another_graph_once_its_own_is_gone) {
  NumbersRig rig(3);
  std::set<uint32_t> numbers;
  for (int i = 0; i < 50; ++i) {
    const CapturedGraph graph = rig.capture();
    CHECK(graph.number != 0);
    CHECK(numbers.insert(graph.number).second);
    CHECK(word_of(graph.number) >= 1 && word_of(graph.number) <= 3);
    rig.replay(graph, rig.stream);
    rig.replay(graph, rig.stream);
    rig.settle();
    rig.drop(graph);
  }
  CHECK_EQ(rig.spans_in_replays(), uint64_t{2 * 2 * 50});
  CHECK_EQ(lost(rig.losses()) + rig.losses().overwritten, uint64_t{0});
  rig.check_spans();
}

TEST(a_graph_has_its_number_while_it_can_be_replayed_or_is) {
  NumbersRig rig(1);
  CapturedGraph graph = rig.capture();
  rig.fake.api()->cuGraphDestroy(std::exchange(graph.graph, nullptr));
  CHECK(!rig.has_number());
  rig.fake.hold(rig.stream);
  rig.fake.api()->cuGraphLaunch(graph.exec, rig.stream);
  rig.drop(graph);
  rig.run();
  CUstream free = std::exchange(rig.stream, rig.other);
  CHECK(!rig.has_number());
  rig.fake.release(free);
  rig.run();
  CHECK(rig.has_number());
}

TEST(a_graph_has_its_number_while_it_is_captured) {
  NumbersRig rig(1);
  rig.capture(rig.stream, [&] {
    rig.call(rig.stream, {}, 10, [&](CapturedCall) {
      const CUstream capturing = std::exchange(rig.stream, rig.other);
      CHECK(!rig.has_number());
      rig.stream = capturing;
    });
  });
}

TEST(a_number_waits_for_the_end_of_an_open_replay) {
  NumbersRig rig(1);
  const CapturedGraph graph = rig.capture();
  CHECK(rig.stamps().open_replay(graph.number, rig.stream).is_to_close);
  rig.drop(graph);
  CHECK(!rig.has_number());
  rig.stamps().close_replay(graph.number, rig.stream, false);
  CHECK(rig.has_number());
}

TEST(a_number_waits_for_replays_that_are_awaited) {
  NumbersRig rig(1);
  const CapturedGraph graph = rig.capture();
  rig.replay(graph, rig.stream);
  rig.run();
  rig.drop(graph);
  CHECK(!rig.has_number());  // nobody has read of it
  rig.settle();
  CHECK(rig.has_number());
  CHECK_EQ(rig.spans_in_replays(), uint64_t{2});
  rig.check_spans();
}

TEST(a_number_waits_for_every_recording) {
  NumbersRig rig(1);
  auto second = std::make_unique<StampReader>(rig.shared_timer, rig.devices, &FakeDriver::ticks);
  const CapturedGraph graph = rig.capture_for(*second);
  second->await(rig.replay(graph, rig.stream));
  rig.settle();
  rig.drop(graph);
  CHECK(!rig.has_number());
  second.reset();
  CHECK(rig.has_number());
}

TEST(a_recording_that_is_over_keeps_no_number) {
  NumbersRig rig(1);
  StampReader second(rig.shared_timer, rig.devices, &FakeDriver::ticks);
  const CapturedGraph graph = rig.capture_for(second);
  second.await(rig.replay(graph, rig.stream));
  second.give_up();  // and nobody asks it any more
  rig.settle();
  rig.drop(graph);
  for (int i = 0; i < 5; ++i) {
    const CapturedGraph next = rig.capture();
    CHECK(next.number != 0);
    rig.replay(next, rig.stream);
    rig.settle();
    rig.drop(next);
  }
  CHECK_EQ(rig.spans_in_replays(), uint64_t{1 + 2 * 5});
}

TEST(a_number_stays_taken_where_the_driver_cannot_tell_that_its_graph_is_gone) {
  for (const char* refused : {"cuUserObjectCreate", "cuGraphRetainUserObject"}) {
    NumbersRig rig(2);
    rig.fake.fail(refused, CUDA_ERROR_NOT_FOUND);
    CHECK(rig.has_number());  // for ever
    for (int i = 0; i < 4; ++i) CHECK(rig.has_number());
    const CapturedGraph graph = rig.capture();
    CHECK(!rig.has_number());
    rig.drop(graph);
  }
}

TEST(the_number_whose_graph_has_been_gone_for_longest_serves_first) {
  NumbersRig rig(3);
  const CapturedGraph first = rig.capture();
  const CapturedGraph second = rig.capture();
  const CapturedGraph third = rig.capture();
  rig.drop(second);
  rig.drop(third);
  CHECK_EQ(word_of(rig.capture().number), word_of(second.number));
  rig.drop(first);
  CHECK_EQ(word_of(rig.capture().number), word_of(third.number));
  CHECK_EQ(word_of(rig.capture().number), word_of(first.number));
}

TEST(whoever_still_knows_a_graph_that_is_gone_opens_no_replay) {
  NumbersRig rig(1);
  const CapturedGraph gone = rig.capture();
  rig.drop(gone);
  const CapturedGraph graph = rig.capture();
  CHECK_EQ(word_of(graph.number), word_of(gone.number));
  const OpenedReplay opened = rig.stamps().open_replay(gone.number, rig.other);
  CHECK_EQ(opened.number, 0U);
  CHECK_EQ(opened.result, CUDA_SUCCESS);
  CHECK(!opened.is_to_close);
  CHECK(rig.stamps().is_gone(gone.number));
  CHECK_EQ(rig.stamps().stamps_of(gone.number), 0U);
  CHECK_EQ(rig.reader->calls_of(0, gone.number), 0U);
  CHECK_EQ(rig.reader->calls_of(0, graph.number), 2U);
  rig.replay(graph, rig.stream);
  rig.settle();
  CHECK_EQ(rig.spans_in_replays(), uint64_t{2});
  rig.check_spans();
}

// A stream that hung: its replay is given up, and its stamps come when another graph has the
// number.
TEST(stamps_that_come_late_are_not_those_of_the_next_graph) {
  NumbersRig rig(1);
  const CapturedGraph first = rig.capture();
  rig.fake.hold(rig.stream);
  rig.replay(first, rig.stream);
  for (int i = 0; i < 3; ++i) {
    rig.fake.advance(6'000'000'000);
    rig.collect();
  }
  CHECK_EQ(rig.losses().late, uint64_t{3});  // with the replay's own
  rig.fake.release(rig.stream);
  rig.run();
  rig.drop(first);
  const CapturedGraph second = rig.capture();
  CHECK_EQ(word_of(second.number), word_of(first.number));
  rig.replay(second, rig.stream);
  rig.settle();
  CHECK_EQ(rig.spans_in_replays(), uint64_t{2});
  CHECK_EQ(rig.losses().overwritten, uint64_t{0});
  rig.check_spans();
}

// The driver does not take back what a replay set, so that the word stays as it was, and stamps of
// whatever graph has it are written as of that replay, which lost some of its own.
TEST(a_word_that_stays_set_gives_no_span_to_the_next_graph) {
  NumbersRig rig(2, 2);  // four stamps may wait
  const CapturedGraph first = rig.capture();
  const CapturedGraph beside = rig.capture();
  rig.behind_ns = 50'000'000;  // its own span lasts on, so that later stamps lie in it
  rig.fake.fail("cuMemsetD32Async", CUDA_ERROR_OUT_OF_MEMORY, 1, 1);
  rig.replay(first, rig.stream);
  rig.behind_ns = 0;
  rig.fake.advance(1'000'000);
  rig.replay(beside, rig.other);
  rig.fake.advance(1'000'000);
  rig.collect();
  rig.drop(first);
  std::swap(rig.stream, rig.other);
  const CapturedGraph second = rig.capture(1);
  CHECK_EQ(second.number, 0U);
  rig.fake.api()->cuGraphLaunch(second.exec, rig.stream);
  rig.settle();
  rig.fake.advance(11'000'000'000);
  rig.collect();
  CHECK(!rig.reader->is_pending());
  CHECK_EQ(rig.losses().late, uint64_t{2});
  CHECK_EQ(rig.spans_in_replays(), uint64_t{2});
  rig.check_spans();
  CHECK(rig.has_number());
}

TEST(as_many_graphs_as_there_are_numbers_can_be_there_at_once) {
  NumbersRig rig(GraphStamps::kGraphs);
  for (int round = 0; round < 2; ++round) {
    std::vector<CapturedGraph> graphs;
    std::set<uint32_t> words;
    for (uint32_t i = 0; i < GraphStamps::kGraphs; ++i) {
      graphs.push_back(rig.capture());
      CHECK(words.insert(word_of(graphs.back().number)).second);
    }
    CHECK(!words.contains(0));
    CHECK_EQ(rig.capture().number, 0U);  // times of replays as a whole
    for (const size_t i : {size_t{0}, graphs.size() / 2, graphs.size() - 1}) {
      rig.replay(graphs[i], rig.stream);
    }
    rig.settle();
    CHECK_EQ(rig.spans_in_replays(), uint64_t{3 * 2} * static_cast<uint64_t>(round + 1));
    for (const CapturedGraph& graph : graphs) rig.drop(graph);
  }
  rig.check_spans();
}

// Five times as many graphs as there are numbers, of which some go while their replays are under
// way or unread.
TEST(twenty_thousand_graphs_come_and_go) {
  constexpr uint32_t kCaptures = 20'000;
  struct Held {
    CapturedGraph graph;
    CUstream stream;
  };
  std::mt19937_64 random(5);
  NumbersRig rig(GraphStamps::kGraphs, 6);
  std::vector<Held> graphs;
  std::map<uint32_t, uint32_t> graph_with_word;
  uint64_t expected = 0;
  uint32_t replays = 0;
  bool is_held = false;
  while (rig.captured < kCaptures) {
    std::swap(rig.stream, rig.other);
    if (is_held) rig.fake.release(rig.stream), is_held = false;
    const CapturedGraph made = rig.capture();
    CHECK(made.number != 0);
    graph_with_word[word_of(made.number)] = made.number;
    graphs.push_back({made, rig.stream});
    rig.fake.advance(5'000'000);  // what a capture takes
    for (uint64_t i = random() % 3; i > 0; --i) {
      const Held& chosen = graphs[random() % graphs.size()];
      CHECK_EQ(graph_with_word.at(word_of(chosen.graph.number)), chosen.graph.number);
      const StampedReplay replay = rig.replay(chosen.graph, chosen.stream);
      ++replays;
      ++expected;
      if (rig.was_awaited) expected += 2;
      CHECK(replay.number != 0);
      rig.fake.advance(static_cast<int64_t>(random() % 500'000));
    }
    if (!is_held && random() % 50 == 0) rig.fake.hold(rig.other), is_held = true;
    while (graphs.size() > random() % 40) {
      const size_t index = random() % graphs.size();
      rig.drop(graphs[index].graph);
      graphs.erase(graphs.begin() + static_cast<std::ptrdiff_t>(index));
    }
    if (random() % 3 == 0) rig.collect();
  }
  if (is_held) rig.fake.release(rig.other);
  rig.settle();
  rig.shared_timer->give_up();
  rig.reader->give_up();
  const DeviceLosses losses = rig.losses();
  CHECK_EQ(rig.spans.size() + lost(losses) + losses.overwritten, expected);
  CHECK(rig.spans_in_replays() > replays);
  CHECK(lost(losses) + losses.overwritten > 0);
  rig.check_spans();
  for (const Held& held : graphs) rig.drop(held.graph);
  rig.run();
  CHECK_EQ(rig.fake.live_user_objects(), size_t{0});
  CHECK_EQ(rig.fake.captures_broken() + rig.fake.misuses(), uint64_t{0});
}

// Whether a number is free depends on how far the collector is, at each call of a capture.
TEST(a_collector_beside_graphs_that_come_and_go) {
  NumbersRig rig(4);
  constexpr uint32_t kCaptures = 400;
  uint64_t expected = 0;
  std::atomic<bool> is_done{false};
  std::thread model([&] {
    rig.fake.set_current(0);
    while (rig.captured < kCaptures) {
      const CapturedGraph graph = rig.capture();
      if (graph.number != 0) {
        rig.replay(graph, rig.stream);
        expected += 1 + (rig.was_awaited ? rig.reader->calls_of(0, graph.number) : 0);
      }
      rig.fake.advance(30'000'000);
      rig.drop(graph);
    }
    is_done.store(true);
  });
  while (!is_done.load()) rig.collect();
  model.join();
  rig.settle();
  rig.shared_timer->give_up();
  rig.reader->give_up();
  const DeviceLosses losses = rig.losses();
  CHECK_EQ(rig.spans.size() + lost(losses) + losses.overwritten, expected);
  CHECK(expected >= uint64_t{4 * 3});
  rig.check_spans();
}

}  // namespace pertoken
