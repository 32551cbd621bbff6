// What a spool holds of observations: every one that was pushed, in its order, in a segment or in
// the file where those lie that nobody has collected yet; and nothing else is taken for one.
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/packed_buckets.h"
#include "core/recorder.h"
#include "core/spooled_observation.h"
#include "core/string_table.h"
#include "observed_values.h"
#include "temporary_folder.h"

namespace pertoken {
namespace {

namespace fs = std::filesystem;
using testing::observation_of;
using testing::random_values;
using testing::TemporaryFolder;

// The numbers of the observations in a file of frames, from `begin` on.
std::vector<uint64_t> numbers_in(const std::string& content, size_t begin = 0) {
  std::vector<uint64_t> numbers;
  for (size_t at = begin; content.size() - at >= sizeof(FrameHeader);) {
    FrameHeader header{};
    std::memcpy(&header, content.data() + at, sizeof(header));
    if (header.magic != kFrameMagic) break;
    at += sizeof(header);
    if (header.type == static_cast<uint32_t>(FrameType::kObservation)) {
      ObservationFrame head{};
      std::memcpy(&head, content.data() + at, sizeof(head));
      numbers.push_back(head.number);
    }
    at += header.payload_bytes;
  }
  return numbers;
}

std::vector<uint64_t> waiting_in(const TemporaryFolder& folder) {
  const std::string content = folder.content("observations");
  if (content.empty()) return {};
  JournalHeader header{};
  std::memcpy(&header, content.data(), sizeof(header));
  const auto begin = kJournalHeaderBytes + static_cast<size_t>(header.extent >> 32);
  const auto end = kJournalHeaderBytes + static_cast<size_t>(header.extent & 0xFFFFFFFF);
  return numbers_in(content.substr(0, end), begin);
}

std::vector<uint64_t> up_to(uint64_t end, uint64_t begin = 0) {
  std::vector<uint64_t> numbers;
  while (begin < end) numbers.push_back(begin++);
  return numbers;
}

TEST(a_frame_holds_all_of_an_observation) {
  std::mt19937_64 random(3);
  for (uint32_t round = 0; round < 200; ++round) {
    Observation observation = observation_of(round, random_values(random));
    observation.row = static_cast<int32_t>(round) - 1;
    FrameText frames;
    add_observation(frames, round, int64_t{1} << 33, observation);
    const auto read = read_observation(frames.bytes().subspan(sizeof(FrameHeader)));
    CHECK(read.has_value());
    CHECK(read->observation.values == observation.values);
    CHECK_EQ(widened(read->observation, read->last_step), (int64_t{1} << 33) + round);
    CHECK(read->observation.row == observation.row && read->observation.kind == observation.kind);
    CHECK(read->observation.format == observation.format && read->observation.weight == 16);
  }
}

TEST(what_cannot_be_an_observation_is_refused) {
  FrameText frames;
  std::mt19937_64 random(4);
  ExpHistogram values;
  for (const double value : {-3.0, -2.0, 0.0, 0.5, 0.5, 7.0, 1000.0}) values.record(value);
  add_observation(frames, 0, 0, observation_of(1, values));
  const auto whole = frames.bytes().subspan(sizeof(FrameHeader));
  for (size_t size = 0; size < whole.size(); ++size) CHECK(!read_observation(whole.first(size)));
  const auto changed = [&]<typename Value>(size_t at, Value value) {
    std::vector<std::byte> bytes(whole.begin(), whole.end());
    std::memcpy(bytes.data() + at, &value, sizeof(value));
    return read_observation(bytes).has_value();
  };
  CHECK(changed(offsetof(ObservationFrame, weight), 2.0));
  CHECK(!changed(offsetof(ObservationFrame, weight), 0.5));
  CHECK(!changed(offsetof(ObservationFrame, weight), std::nan("")));
  CHECK(!changed(offsetof(ObservationFrame, kind), uint8_t{7}));
  CHECK(!changed(offsetof(ObservationFrame, format), uint8_t{200}));
  CHECK(!changed(offsetof(ObservationFrame, scale), int8_t{100}));
  CHECK(!changed(offsetof(ObservationFrame, row), int32_t{-2}));
  CHECK(!changed(offsetof(ObservationFrame, nans), uint64_t{1} << 63));
  for (int round = 0; round < 10'000; ++round) {  // whatever else, it does no harm
    std::vector<std::byte> bytes(whole.begin(), whole.end());
    for (int i = 0; i < 3; ++i) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    read_observation(bytes);
  }
}

TEST(pushed_observations_lie_in_the_file_until_they_are_in_a_segment) {
  const TemporaryFolder folder;
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  recorder->spool_into({folder.path(), size_t{1} << 20, 3});
  recorder->drain();
  CHECK(!fs::exists(folder.path() + "/observations"));  // nothing is observed
  for (uint32_t i = 0; i < 100; ++i) recorder->observations().push(observation_of(i));
  CHECK(waiting_in(folder) == up_to(100));
  recorder->drain();
  CHECK(waiting_in(folder).empty());
  CHECK(numbers_in(folder.content("segment-0")) == up_to(100));
  recorder->observations().push(observation_of(100));
  CHECK(waiting_in(folder) == up_to(101, 100));
}

TEST(what_finds_no_room_in_the_file_comes_into_a_segment_in_its_order) {
  const TemporaryFolder folder;
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{64} << 20, .ring_capacity = 1 << 6});
  recorder->spool_into({folder.path(), size_t{64} << 20, 3});
  ExpHistogram wide;
  for (int exponent = -1000; exponent < 1000; ++exponent) wide.record(std::ldexp(1.0, exponent));
  constexpr uint64_t kPushed = 400;  // of 16 KB each
  for (uint32_t i = 0; i < kPushed; ++i) recorder->observations().push(observation_of(i, wide));
  const size_t waiting = waiting_in(folder).size();
  CHECK(waiting > 100 && waiting < kPushed);
  recorder->observations().push(observation_of(kPushed));  // small enough, but not its turn
  CHECK_EQ(waiting_in(folder).size(), waiting);
  recorder->drain();
  CHECK(numbers_in(folder.content("segment-0")) == up_to(kPushed + 1));
}

TEST(threads_that_push_while_others_are_collected_lose_none_and_have_one_order) {
  const TemporaryFolder folder;
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  recorder->spool_into({folder.path(), size_t{64} << 20, 3});
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&] {
      for (uint32_t i = 0; i < 2000; ++i) recorder->observations().push(observation_of(i));
    });
  }
  for (int round = 0; round < 100; ++round) recorder->drain();
  for (std::thread& thread : threads) thread.join();
  recorder->drain();
  CHECK(numbers_in(folder.content("segment-0")) == up_to(6000));
}

TEST(segments_of_observations_stay_within_their_bound) {
  const TemporaryFolder folder;
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  constexpr size_t kSegmentBytes = size_t{32} << 10;
  recorder->spool_into({folder.path(), kSegmentBytes, 3});
  ExpHistogram values;
  for (int i = 1; i < 100; ++i) values.record(i);
  for (uint32_t i = 0; i < 5000; ++i) {
    recorder->observations().push(observation_of(i, values));
  }
  recorder->drain();
  size_t segments = 0;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    if (!entry.path().filename().string().starts_with("segment-")) continue;
    ++segments;
    const std::string content = folder.content(entry.path().filename());
    CHECK(content.size() < kSegmentBytes + (size_t{64} << 10));
    // Of the steps that it claims to hold whole, no observation is in one before.
    SegmentFrame head{};
    std::memcpy(&head, content.data() + sizeof(FrameHeader), sizeof(head));
    const std::vector<uint64_t> numbers = numbers_in(content);
    CHECK_EQ(numbers.front(), static_cast<uint64_t>(head.first_step));
  }
  CHECK_EQ(segments, size_t{3});
}

TEST(a_replayed_observation_is_stored_and_counted) {
  const uint32_t site = intern_site(SiteCategory::kModule, "replayed");
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  FrameText frames;
  std::mt19937_64 random(6);
  const ExpHistogram values = random_values(random);
  add_observation(frames, 0, int64_t{1} << 33, observation_of(5, values));
  const auto payload = frames.bytes().subspan(sizeof(FrameHeader));
  CHECK(!recorder->replay_observation(payload, kSiteMask));
  CHECK(recorder->replay_observation(payload, site));
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK_EQ(snapshot.store.observations.size(), size_t{1});
  CHECK_EQ(snapshot.store.observations[0]->step, (int64_t{1} << 33) + 5);
  CHECK_EQ(snapshot.store.observations[0]->count, values.count());
  CHECK_EQ(snapshot.store.observations[0]->site, site);
}

TEST(a_forked_child_writes_nothing_into_its_parents_file) {
  const TemporaryFolder folder;
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  recorder->spool_into({folder.path(), size_t{1} << 20, 3});
  recorder->observations().push(observation_of(0));
  const pid_t child = fork();
  if (child == 0) {
    recorder->observations().push(observation_of(1));
    _exit(0);
  }
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK(waiting_in(folder) == up_to(1));
}

}  // namespace
}  // namespace pertoken
