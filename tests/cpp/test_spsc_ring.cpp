// The ring keeps order, loses nothing that it accepted, and says so when it is full.
#include <cstdint>
#include <deque>
#include <random>
#include <thread>

#include "check.h"
#include "core/spsc_ring.h"

namespace pertoken {
namespace {

TEST(capacity_is_rounded_up_to_a_power_of_two) {
  CHECK_EQ(SpscRing<int>(5).capacity(), size_t{8});
  CHECK_EQ(SpscRing<int>(8).capacity(), size_t{8});
}

TEST(a_full_ring_refuses_and_keeps_what_it_has) {
  SpscRing<int> ring(4);
  for (int i = 0; i < 4; ++i) CHECK(ring.try_push(i));
  CHECK(!ring.try_push(4));
  const auto held = ring.readable();
  CHECK_EQ(held.size(), size_t{4});
  for (int i = 0; i < 4; ++i) CHECK_EQ(held[static_cast<size_t>(i)], i);
  ring.release(1);
  CHECK(ring.try_push(4));
  CHECK(!ring.try_push(5));
}

// An 8-bit index wraps every 256 records. Random batches are compared with a deque.
TEST(a_narrow_index_wraps_without_loss_or_reordering) {
  SpscRing<uint32_t, uint8_t> ring(128);
  std::deque<uint32_t> model;
  std::mt19937 random(7);
  uint32_t next = 0;
  for (int round = 0; round < 20000; ++round) {
    for (uint32_t n = random() % 200; n > 0; --n) {
      const bool pushed = ring.try_push(next);
      CHECK_EQ(pushed, model.size() < 128);
      if (pushed) model.push_back(next);
      ++next;
    }
    const auto held = ring.readable();
    CHECK(held.empty() == model.empty());
    const size_t taken = held.empty() ? 0 : random() % (held.size() + 1);
    for (size_t i = 0; i < taken; ++i) {
      CHECK_EQ(held[i], model.front());
      model.pop_front();
    }
    ring.release(taken);
  }
}

// It is told of no less than half a ring, and in time: a consumer that comes only then, and no
// later than half a ring after, loses nothing.
TEST(the_producer_tells_when_half_of_the_ring_is_in_use) {
  constexpr size_t kCapacity = 64;
  SpscRing<uint32_t, uint8_t> ring(kCapacity);
  std::mt19937 random(3);
  size_t used = 0;
  int told = 0;
  size_t comes_in = 0;  // pushes until the consumer comes; 0: it sleeps
  for (uint32_t number = 0; number < 100'000; ++number) {
    CHECK(ring.try_push(number, [&]() noexcept {
      CHECK(used >= kCapacity / 2);
      ++told;
      if (comes_in == 0) comes_in = 1 + random() % (kCapacity / 2);
    }));
    ++used;
    if (comes_in == 0 || --comes_in > 0) continue;
    while (!ring.readable().empty()) ring.release(ring.readable().size());
    used = 0;
  }
  CHECK(told > 1000);
}

TEST(a_full_ring_tells_at_every_attempt) {
  SpscRing<int> ring(4);
  int told = 0;
  const auto on_filling = [&]() noexcept { ++told; };
  for (int i = 0; i < 4; ++i) CHECK(ring.try_push(i, on_filling));
  CHECK_EQ(told, 1);
  for (int i = 0; i < 3; ++i) CHECK(!ring.try_push(i, on_filling));
  CHECK_EQ(told, 4);
}

TEST(two_threads_pass_every_accepted_record_in_order) {
  SpscRing<uint64_t> ring(1024);
  constexpr uint64_t kAttempts = 300000;
  uint64_t accepted = 0;
  std::atomic<bool> done{false};
  std::thread producer([&] {
    for (uint64_t i = 1; i <= kAttempts; ++i) accepted += ring.try_push(i);
    done.store(true, std::memory_order_release);
  });
  uint64_t received = 0;
  uint64_t last = 0;
  while (true) {
    const bool finished = done.load(std::memory_order_acquire);
    const auto held = ring.readable();
    for (const uint64_t value : held) {
      CHECK(value > last);
      last = value;
    }
    received += held.size();
    ring.release(held.size());
    if (finished && held.empty()) break;
  }
  producer.join();
  CHECK_EQ(received, accepted);
}

}  // namespace
}  // namespace pertoken
