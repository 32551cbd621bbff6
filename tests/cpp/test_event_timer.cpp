// Spans on devices by recycled events, on the fake driver.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "core/recorder.h"
#include "cuda/event_timer.h"
#include "event_rig.h"
#include "fake_driver.h"

namespace pertoken {
namespace {

using namespace testing;

TEST(a_span_is_as_long_as_the_work_in_it_and_lies_where_the_work_ran) {
  Rig rig;
  const CUstream stream = rig.stream();
  rig.fake.set_device_clock(3e-5, 123'456'789'000, 32);
  rig.lane();
  rig.settle();
  rig.fake.spin(stream, 40'000);
  const Boundary start = rig.lane().begin(stream);
  const CUevent before = rig.event(stream);
  rig.fake.spin(stream, 250'000);
  const CUevent after = rig.event(stream);
  rig.lane().end(start, stream, {7, 5, 2, 3, false});
  rig.settle();
  CHECK_EQ(rig.spans.size(), size_t{1});
  const DeviceSpan& span = rig.spans.at(0);
  CHECK_EQ(span.seq, 5u);
  CHECK_EQ(span.parent_seq, 2u);
  CHECK_EQ(span.step, 3u);
  CHECK_EQ(span.site, 7u);
  CHECK_EQ(span.device, int16_t{0});
  const DeviceLosses losses = rig.timer->losses();
  const auto error = static_cast<double>(losses.clock_error_ns);
  CHECK(error > 0 && error < 50'000);
  const auto start_ns = static_cast<double>(rig.fake.event_time_ns(before));
  const auto end_ns = static_cast<double>(rig.fake.event_time_ns(after));
  CHECK(std::abs(boot_ns(span.start_ticks) - start_ns) <= error);
  CHECK(std::abs(boot_ns(span.end_ticks) - end_ns) <= error);
  CHECK(std::abs(boot_ns(span.end_ticks - span.start_ticks) - (end_ns - start_ns)) < 1000);
  CHECK_EQ(lost(losses), uint64_t{0});
}

TEST(nothing_is_placed_by_anchors_of_which_one_alone_is_narrow) {
  Rig rig;
  const CUstream stream = rig.stream();
  const Boundary start = rig.lane().begin(stream);
  rig.fake.spin(stream, 250'000);
  rig.lane().end(start, stream, rig.label());
  rig.fake.set_call_cost(60'000);  // as where the thread is kept from each of its tries
  rig.collect();
  rig.fake.set_call_cost(200);
  rig.fake.advance(20'000'000);
  rig.collect();
  CHECK_EQ(rig.spans.size(), size_t{0});
  rig.settle();
  CHECK_EQ(rig.spans.size(), size_t{1});
  const int64_t error_ns = rig.timer->losses().clock_error_ns;
  CHECK(error_ns > 0 && error_ns < 50'000);
}

TEST(regions_in_a_row_share_their_boundaries) {
  Rig rig;
  rig.fake.set_call_cost(50);
  const CUstream stream = rig.stream();
  rig.lane();
  rig.settle();
  const uint64_t before = rig.fake.calls("cuEventRecord");
  constexpr uint64_t kRegions = 20;
  for (uint64_t i = 0; i < kRegions; ++i) {
    const Boundary start = rig.lane().begin(stream);
    rig.fake.spin(stream, 10'000);
    rig.lane().end(start, stream, rig.label());
  }
  CHECK_EQ(rig.fake.calls("cuEventRecord") - before, kRegions + 1);
  rig.settle();
  CHECK_EQ(rig.spans.size(), size_t{kRegions});
  for (size_t i = 1; i < rig.spans.size(); ++i) {
    CHECK_EQ(rig.spans[i].start_ticks, rig.spans[i - 1].end_ticks);
  }
}

TEST(events_are_used_again_only_after_they_were_read) {
  Rig rig(1, 128);
  const CUstream stream = rig.stream();
  for (int i = 0; i < 3000; ++i) {
    const Boundary start = rig.lane().begin(stream);
    rig.fake.spin(stream, 20'000);
    rig.fake.advance(25'000);
    rig.lane().end(start, stream, rig.label());
    if (i % 20 == 19) rig.collect();
  }
  rig.settle();
  CHECK_EQ(rig.spans.size(), size_t{3000});
  CHECK_EQ(lost(rig.timer->losses()), uint64_t{0});
  CHECK(rig.fake.live_events() < 128 + 64);
  CHECK_EQ(rig.fake.misuses(), uint64_t{0});
}

TEST(a_pool_that_runs_dry_drops_and_counts) {
  Rig rig(1, 64);
  const CUstream stream = rig.stream();
  rig.fake.hold(stream);
  for (int i = 0; i < 100; ++i) {
    const Boundary start = rig.lane().begin(stream);
    rig.fake.advance(10'000);
    rig.lane().end(start, stream, rig.label());
    rig.fake.advance(10'000);
  }
  rig.fake.release(stream);
  rig.settle();
  const DeviceLosses losses = rig.timer->losses();
  CHECK(losses.no_event > 30);
  CHECK_EQ(rig.spans.size() + losses.no_event, size_t{100});
  CHECK_EQ(lost(losses), losses.no_event);
}

TEST(nothing_is_recorded_or_asked_in_a_capture_and_the_capture_survives) {
  Rig rig;
  const CUstream stream = rig.stream();
  const CUstream other = rig.stream();
  rig.lane();
  const DriverApi& api = *rig.fake.api();
  rig.settle();
  const Boundary before = rig.lane().begin(stream);
  rig.fake.spin(stream, 5'000);
  rig.fake.advance(9'000);
  rig.lane().end(before, stream, rig.label());
  CHECK_EQ(api.cuStreamBeginCapture_v2(other, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  std::thread([&] { rig.settle(); }).join();  // the drain thread, while this one captures
  rig.settle();
  rig.fake.advance(9'000);
  const Boundary captured = rig.lane().begin(other);
  CHECK(!captured);
  CHECK(captured.is_in_capture());
  rig.lane().count_in_capture();
  rig.lane().end(captured, other, rig.label());
  CHECK(!rig.lane().begin(nullptr));  // the legacy stream would wait for the captured one
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(other, &graph), CUDA_SUCCESS);
  CHECK_EQ(rig.fake.captures_broken(), uint64_t{0});
  size_t nodes = 1;
  api.cuGraphGetNodes(graph, nullptr, &nodes);
  CHECK_EQ(nodes, size_t{0});
  CHECK_EQ(rig.spans.size(), size_t{1});
  CHECK_EQ(rig.timer->losses().in_capture, uint64_t{2});
}

TEST(a_stream_that_does_not_move_holds_up_no_other) {
  Rig rig;
  const CUstream stuck = rig.stream();
  const CUstream free = rig.stream();
  rig.fake.hold(stuck);
  for (const CUstream stream : {stuck, free, stuck, free}) {
    const Boundary start = rig.lane().begin(stream);
    rig.fake.spin(stream, 5'000);
    rig.fake.advance(9'000);
    rig.lane().end(start, stream, rig.label());
    rig.fake.advance(9'000);
  }
  rig.settle();
  CHECK_EQ(rig.spans.size(), size_t{2});
  CHECK(rig.timer->is_pending());
  for (int i = 0; i < 200; ++i) {
    rig.fake.advance(100'000'000);
    rig.collect();
  }
  CHECK_EQ(rig.timer->losses().late, uint64_t{2});
  CHECK(!rig.timer->is_pending());
}

TEST(an_error_of_the_device_ends_its_timing_and_nothing_else) {
  Rig rig(2);
  const CUstream bad = rig.stream(0);
  const CUstream good = rig.stream(1);
  for (int i = 0; i < 10; ++i) {
    for (int device = 0; device < 2; ++device) {
      const CUstream stream = device == 0 ? bad : good;
      const Boundary start = rig.lane(device).begin(stream);
      rig.fake.spin(stream, 5'000);
      rig.fake.advance(9'000);
      rig.lane(device).end(start, stream, rig.label());
    }
    if (i == 4) {
      rig.settle();
      rig.fake.destroy_context(0);
    }
  }
  rig.settle();
  const DeviceLosses losses = rig.timer->losses();
  CHECK_EQ(rig.spans.size(), size_t{15});
  CHECK_EQ(losses.failed, uint64_t{5});
  CHECK(!losses.failure.empty());
}

// One call on a stream, of 5 us.
void run_call(Rig& rig, CUstream stream) {
  const Boundary start = rig.lane().begin(stream);
  rig.fake.spin(stream, 5'000);
  rig.fake.advance(9'000);
  rig.lane().end(start, stream, rig.label());
}

TEST(a_stream_that_is_none_harms_itself_alone) {
  Rig rig;
  const CUstream stream = rig.stream();
  run_call(rig, stream);
  rig.fake.fail("cuEventRecord", CUDA_ERROR_INVALID_HANDLE);
  for (int i = 0; i < 5; ++i) run_call(rig, stream);
  rig.settle();
  CHECK_EQ(rig.spans.size(), size_t{5});
  CHECK_EQ(rig.timer->losses().failed, uint64_t{1});
  CHECK(rig.timer->losses().failure.empty());
}

TEST(a_stream_may_be_gone_before_what_it_held_is_read) {
  Rig rig;
  std::set<uint64_t> numbers;
  for (int i = 0; i < 3; ++i) {
    const CUstream stream = rig.stream();
    run_call(rig, stream);
    rig.fake.advance(50'000);
    rig.fake.api()->cuStreamDestroy_v2(stream);
  }
  rig.settle();
  for (const DeviceSpan& span : rig.spans) numbers.insert(span.stream);
  CHECK_EQ(numbers.size(), size_t{3});
  CHECK(!numbers.contains(0));
  CHECK_EQ(rig.fake.misuses(), uint64_t{0});
}

TEST(without_memory_timing_begins_when_there_is_some) {
  for (const char* symbol : {"cuEventCreate", "cuStreamCreate"}) {
    Rig rig;
    const CUstream stream = rig.stream();
    rig.fake.fail(symbol, CUDA_ERROR_OUT_OF_MEMORY);
    run_call(rig, stream);
    const size_t before = rig.fake.live_streams();
    rig.settle();
    for (int i = 0; i < 10; ++i) run_call(rig, stream);
    rig.settle();
    CHECK(rig.spans.size() >= 10);
    CHECK_EQ(rig.spans.size() + lost(rig.timer->losses()), size_t{11});
    CHECK(rig.timer->losses().failure.empty());
    CHECK_EQ(rig.fake.live_streams(), before + 1);  // that of the clock
  }
}

TEST(a_sticky_error_is_named_and_everything_after_it_is_counted) {
  Rig rig;
  const CUstream stream = rig.stream();
  for (int i = 0; i < 6; ++i) {
    const Boundary start = rig.lane().begin(stream);
    rig.fake.spin(stream, 5'000);
    rig.fake.advance(9'000);
    if (i == 2) rig.fake.break_device(CUDA_ERROR_ILLEGAL_ADDRESS);
    rig.lane().end(start, stream, rig.label());
  }
  rig.settle();
  const DeviceLosses losses = rig.timer->losses();
  CHECK_EQ(rig.spans.size() + losses.failed, size_t{6});
  CHECK(losses.failure.find("CUDA_ERROR_ILLEGAL_ADDRESS") != std::string::npos);
  rig.fake.break_device(CUDA_SUCCESS);
}

TEST(placement_stays_good_over_an_hour_and_after_a_long_pause) {
  Rig rig;
  const CUstream stream = rig.stream();
  rig.fake.set_device_clock(-4e-5, 55'000'000'000, 32);
  rig.lane();
  for (int burst = 0; burst < 40; ++burst) {
    rig.fake.advance(90'000'000'000);
    for (int i = 0; i < 30; ++i) {
      const size_t before = rig.spans.size();
      const Boundary start = rig.lane().begin(stream);
      const CUevent truth = rig.event(stream);
      rig.fake.spin(stream, 100'000);
      rig.fake.advance(60'000);
      rig.lane().end(start, stream, rig.label());
      rig.fake.advance(15'000'000);
      rig.collect();
      for (size_t k = before; k < rig.spans.size() && burst > 0; ++k) {
        CHECK(std::abs(boot_ns(rig.spans[k].end_ticks - rig.spans[k].start_ticks) - 100'000) <
              10'000);
      }
      if (rig.spans.size() == before + 1) {
        const double off = boot_ns(rig.spans.back().start_ticks) -
                           static_cast<double>(rig.fake.event_time_ns(truth));
        CHECK(std::abs(off) <= static_cast<double>(rig.timer->losses().clock_error_ns));
      }
    }
  }
  rig.settle();
  CHECK_EQ(rig.spans.size(), size_t{1200});
  CHECK(rig.timer->losses().clock_error_ns < 1'000'000);
}

TEST(waiting_for_the_host_is_told_from_computing) {
  Rig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  rig.settle();
  const auto step = [&](int64_t kernel_ns, int64_t host_ns) {
    rig.fake.advance(5'000'000);
    const Boundary root = rig.lane().begin(stream);
    for (int i = 0; i < 10; ++i) {
      rig.fake.advance(5'000);
      const Boundary layer = rig.lane().begin(stream);
      rig.fake.spin(stream, kernel_ns);
      rig.fake.advance(host_ns);
      rig.lane().end(layer, stream, rig.label());
    }
    rig.lane().end(root, stream, rig.label(true));
    rig.spans.clear();
    rig.settle();
    return rig.spans.back();
  };
  const DeviceSpan computing = step(500'000, 20'000);
  CHECK(computing.is_step);
  CHECK(boot_ns(computing.idle_ticks) <=
        0.1 * boot_ns(computing.end_ticks - computing.start_ticks));
  const DeviceSpan launching = step(10'000, 200'000);
  CHECK(boot_ns(launching.idle_ticks) >=
        0.9 * boot_ns(launching.end_ticks - launching.start_ticks));
}

TEST(a_thread_that_ends_leaves_no_events_behind) {
  Rig rig;
  const CUstream stream = rig.stream();
  rig.lane();
  rig.settle();
  const size_t before = rig.fake.live_events();
  for (int i = 0; i < 20; ++i) {
    ThreadBuffer& buffer = rig.add_thread();
    EventLane& lane = *rig.timer->lane(buffer, 0);
    const Boundary start = lane.begin(stream);
    rig.fake.spin(stream, 5'000);
    rig.fake.advance(9'000);
    lane.end(start, stream, rig.label());
    rig.timer->release(*buffer.device_thread);
    rig.settle();
  }
  CHECK_EQ(rig.spans.size(), size_t{20});
  CHECK(rig.fake.live_events() <= before + 4);
  rig.timer.reset();
  CHECK_EQ(rig.fake.live_events(), size_t{0});
  CHECK_EQ(rig.fake.live_streams(), size_t{1});
  CHECK_EQ(rig.fake.misuses(), uint64_t{0});
}

TEST(a_device_that_torch_has_not_started_is_not_started_by_us) {
  Rig rig(2);
  rig.fake.destroy_context(1);
  CHECK(rig.timer->lane(*rig.buffers[0], 1) == nullptr);
  CHECK(rig.timer->lane(*rig.buffers[0], 99) == nullptr);
  CHECK_EQ(rig.fake.calls("cuDevicePrimaryCtxRetain"), uint64_t{0});
  CHECK_EQ(rig.timer->losses().failed, uint64_t{2});
}

TEST(the_collector_and_the_models_thread_work_at_once) {
  Rig rig(1, 256);
  const CUstream stream = rig.stream();
  std::atomic<bool> done{false};
  constexpr int kSpans = 2000;
  std::thread model([&] {
    rig.fake.set_current(0);
    EventLane& lane = rig.lane();
    for (int i = 0; i < kSpans; ++i) {
      const Boundary start = lane.begin(stream);
      rig.fake.spin(stream, 3'000);
      lane.end(start, stream, {7, static_cast<uint32_t>(i + 1), 0, 3, false});
    }
    done.store(true, std::memory_order_release);
  });
  while (!done.load(std::memory_order_acquire)) rig.collect();
  model.join();
  rig.settle();
  CHECK_EQ(rig.spans.size() + lost(rig.timer->losses()), size_t{kSpans});
  CHECK(!rig.spans.empty());
  CHECK_EQ(rig.fake.misuses(), uint64_t{0});
}

TEST(a_recorder_keeps_device_spans_beside_those_of_the_host) {
  FakeDriver fake;
  fake.use_clock([] { return static_cast<int64_t>(static_cast<double>(now_ticks()) * 1.0); });
  const auto recorder = Recorder::create({.store_limit_bytes = 1 << 24, .ring_capacity = 1 << 10});
  const auto timer = std::make_shared<EventTimer>(*fake.api());
  recorder->add_device_source(timer);
  recorder->start();
  ThreadBuffer& buffer = *recorder->buffer();
  const uint64_t start_ticks = now_ticks();
  const uint32_t step = recorder->next_step();
  buffer.push({start_ticks, 0, make_tag(RecordType::kStepBegin, 1), kNone32, kNone32, step});
  EventLane& lane = *timer->lane(buffer, 0);
  const Boundary root = lane.begin(nullptr);
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const Boundary layer = lane.begin(nullptr);
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const uint32_t seq = tls_thread_state->next_seq();
  lane.end(layer, nullptr, {5, seq + 1, seq, step, false});
  lane.end(root, nullptr, {4, seq, 0, step, true});
  buffer.push({start_ticks, now_ticks(), make_tag(RecordType::kSpan, 4), seq, 0, step});
  buffer.push({now_ticks(), 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step});
  recorder->stop();
  recorder->start();  // waits for the drain thread of the run before
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  recorder->stop();
  const RecorderSnapshot snapshot = recorder->snapshot();
  std::vector<StoredSpan> found;
  for (const auto& chunk : snapshot.store.chunks) {
    for (uint32_t i = 0; i < chunk->size(); ++i) found.push_back(chunk->at(i));
  }
  CHECK_EQ(found.size(), size_t{3});
  CHECK_EQ(snapshot.tracks.size(), size_t{2});
  CHECK_EQ(snapshot.tracks.back().device, 0);
  const auto on_device = [&](uint32_t site) {
    return *std::find_if(found.begin(), found.end(), [&](const StoredSpan& span) {
      return span.site == site && span.track == snapshot.tracks.back().track;
    });
  };
  CHECK_EQ(on_device(5).parent_seq, on_device(4).seq);
  CHECK_EQ(on_device(4).seq, int64_t{seq});
  CHECK_EQ(on_device(4).step, int64_t{step});
  CHECK(on_device(5).start_ticks >= on_device(4).start_ticks);
  const StepRow& row = snapshot.store.steps.at(0);
  CHECK_EQ(row.gpu_end_ticks - row.gpu_start_ticks, on_device(4).dur_ticks);
  CHECK_EQ(lost(snapshot.losses.devices), uint64_t{0});
}

}  // namespace
}  // namespace pertoken
