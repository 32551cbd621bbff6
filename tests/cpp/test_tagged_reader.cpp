// A ring of tagged words: whatever the order and the pace at which kernels write, each record is
// read once, in order and as it was written, or counted as lost.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/tagged_reader.h"

namespace {

using namespace pertoken::cuda;

size_t four_words(std::span<const uint64_t>) noexcept { return 4; }
size_t told_words(std::span<const uint64_t> header) noexcept { return header[0] >> 40; }

struct Ring {
  std::vector<uint64_t> words;
  uint64_t next = 0;
  DeviceRing ring;

  Ring(uint32_t words_a_slot, uint32_t capacity_log2)
      : words(size_t{words_a_slot} << capacity_log2),
        ring{words.data(), &next, words_a_slot, capacity_log2} {}
};

// What record `index` says in word i.
uint64_t content(uint64_t index, uint64_t i) { return (index * 1'000'003 + i) & kContentMask; }

void write_word(const DeviceRing& ring, uint64_t index, size_t i) {
  store_word(slot_at(ring, index) + i,
             tagged(content(index, i), tag_of(index, ring.capacity_log2)));
}

}  // namespace

TEST(tags_are_never_zero_and_tell_laps_apart_over_the_wrap) {
  for (const uint64_t lap : {0U, 1U, 65533U, 65534U, 65535U, 65536U, 131070U}) {
    const uint64_t tag = tag_of(lap << 4, 4);
    CHECK(tag >= 1 && tag <= 65535);
    CHECK_EQ(tag_of((lap << 4) + 15, 4), tag);
    CHECK(tag_of((lap + 1) << 4, 4) != tag);
    CHECK_EQ(tagged(~uint64_t{0}, tag) >> kContentBits, tag);
    CHECK_EQ(tagged(123, tag) & kContentMask, 123U);
  }
}

// Several writers take numbers and write word by word, interleaved at random; the reader looks at
// any moment.
TEST(thousands_of_random_schedules) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    Ring made(4, static_cast<uint32_t>(2 + random() % 4));
    struct Writer {
      uint64_t index;
      std::vector<size_t> left;
    };
    std::vector<Writer> writers;
    TaggedReader reader(made.ring, 2, &four_words);
    uint64_t read = 0;
    bool is_right = true;
    const auto look = [&] {
      for (auto record = reader.take(); !record.empty(); record = reader.take()) {
        const uint64_t index = reader.taken() + reader.lost() - 1;
        for (size_t i = 0; i < 4; ++i) is_right &= record[i] == content(index, i);
        ++read;
      }
    };
    const size_t most_writers = 1 + random() % 6;
    const uint64_t pause = 1 + random() % 200;
    const size_t records = 200;
    while (made.next < records || !writers.empty()) {
      if (made.next < records && writers.size() < most_writers && random() % 2 == 0) {
        std::vector<size_t> order = {0, 1, 2, 3};
        std::shuffle(order.begin(), order.end(), random);
        writers.push_back({made.next++, order});
      }
      if (!writers.empty()) {
        const size_t who = random() % writers.size();
        Writer& writer = writers[who];
        write_word(made.ring, writer.index, writer.left.back());
        writer.left.pop_back();
        if (writer.left.empty()) writers.erase(writers.begin() + static_cast<std::ptrdiff_t>(who));
      }
      if (random() % pause == 0) look();
    }
    for (int i = 0; i < 300; ++i) look();
    CHECK(is_right);
    CHECK_EQ(read, reader.taken());
    CHECK(reader.taken() + reader.lost() <= made.next);
    // Only what two writers wrote at once into one slot can still be awaited, at the very end.
    CHECK(reader.taken() + reader.lost() + most_writers >= made.next);
    if (most_writers == 1) CHECK_EQ(reader.taken() + reader.lost(), made.next);
  }
}

TEST(a_record_that_never_comes_is_given_up_once_later_ones_are_there) {
  Ring made(4, 4);
  TaggedReader reader(made.ring, 2, &four_words);
  for (size_t i = 0; i < 3; ++i) write_word(made.ring, 0, i);  // the last word is missing
  for (int i = 0; i < 100; ++i) CHECK(reader.take().empty());
  CHECK_EQ(reader.lost(), 0U);
  for (size_t i = 0; i < 4; ++i) write_word(made.ring, 1, i);
  for (int i = 0; i < 100 && reader.taken() == 0; ++i) reader.take();
  CHECK_EQ(reader.taken(), 1U);
  CHECK_EQ(reader.lost(), 1U);
}

TEST(the_length_that_a_record_tells_is_bounded_by_its_slot) {
  Ring made(4, 2);
  TaggedReader reader(made.ring, 1, &told_words);
  for (const uint64_t told : {uint64_t{0}, uint64_t{2}, uint64_t{4}, uint64_t{200}}) {
    const uint64_t index = made.next++;
    const uint64_t tag = tag_of(index, 2);
    for (size_t i = 0; i < 4; ++i)
      store_word(slot_at(made.ring, index) + i, tagged(told << 40, tag));
    const size_t expected = std::clamp<size_t>(told, 1, 4);
    CHECK_EQ(reader.take().size(), expected);
  }
}

TEST(threads_write_while_one_reads) {
  Ring made(4, 6);
  std::atomic<uint64_t> next{0};
  constexpr uint64_t kRecords = 60'000;
  std::atomic<int> running{3};
  std::vector<std::thread> writers;
  for (int t = 0; t < 3; ++t) {
    writers.emplace_back([&] {
      while (true) {
        const uint64_t index = next.fetch_add(1, std::memory_order_relaxed);
        if (index >= kRecords) break;
        for (size_t i = 0; i < 4; ++i) write_word(made.ring, index, i);
        if (index % 64 == 0) std::this_thread::yield();
      }
      running.fetch_sub(1, std::memory_order_release);  // pairs with the load below
    });
  }
  TaggedReader reader(made.ring, 2, &four_words);
  uint64_t wrong = 0;
  const auto look = [&] {
    const auto record = reader.take();
    if (record.empty()) return;
    const uint64_t index = reader.taken() + reader.lost() - 1;
    for (size_t i = 0; i < 4; ++i) wrong += record[i] != content(index, i);
  };
  while (running.load(std::memory_order_acquire) != 0) look();
  for (std::thread& writer : writers) writer.join();
  for (int i = 0; i < 1000; ++i) look();
  CHECK_EQ(wrong, 0U);
  CHECK(reader.taken() > 0);
  CHECK(reader.taken() + reader.lost() <= kRecords);
  CHECK(reader.taken() + reader.lost() + 3 >= kRecords);
}
