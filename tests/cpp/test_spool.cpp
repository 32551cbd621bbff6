// What a recorder leaves in its spool: checksums, bounds, and rings that lie in files.
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "check.h"
#include "core/crc32.h"
#include "core/recorder.h"
#include "core/spool_frame.h"
#include "core/spsc_ring.h"
#include "temporary_folder.h"

namespace pertoken {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

// The types of the frames in a file, each of which must bear its checksum.
std::vector<FrameType> frames_in(const std::string& content) {
  std::vector<FrameType> types;
  size_t at = 0;
  while (at < content.size()) {
    FrameHeader header{};
    if (content.size() - at < sizeof(header)) break;
    std::memcpy(&header, content.data() + at, sizeof(header));
    const size_t size = sizeof(header) + header.payload_bytes;
    if (header.magic != kFrameMagic || content.size() - at < size) break;
    const auto bytes = bytes_of(std::string_view(content).substr(at, size));
    CHECK_EQ(crc32(bytes.subspan(offsetof(FrameHeader, type))), header.crc);
    types.push_back(static_cast<FrameType>(header.type));
    at += size;
  }
  CHECK_EQ(at, content.size());
  return types;
}

void push_spans(Recorder& recorder, uint32_t site, int count) {
  ThreadBuffer& buffer = *recorder.buffer();
  for (int i = 0; i < count; ++i) {
    const uint64_t now = now_ticks();
    buffer.push({now, now + 5, make_tag(RecordType::kSpan, site), tls_thread_state->next_seq(), 0,
                 kNone32});
  }
}

TEST(the_checksum_is_that_of_zip) {
  CHECK_EQ(crc32(bytes_of("123456789")), 0xCBF43926u);
  CHECK_EQ(crc32({}), 0u);
  const std::string text = "a text of more than two times eight bytes, cut anywhere";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const auto whole = bytes_of(text);
    CHECK_EQ(crc32(whole.subspan(cut), crc32(whole.first(cut))), crc32(whole));
  }
}

TEST(a_ring_in_a_block_of_anothers_keeps_its_indices_there) {
  alignas(kCacheLineBytes) std::array<std::byte, 128 + 8 * 8> block{};
  CHECK_EQ(SpscRing<uint64_t>::block_bytes(8), block.size());
  SpscRing<uint64_t> ring(8, block.data());
  for (uint64_t i = 0; i < 5; ++i) CHECK(ring.try_push(i + 70));
  ring.release(2);
  uint64_t words[3];
  std::memcpy(&words[0], block.data(), 8);
  std::memcpy(&words[1], block.data() + 64, 8);
  std::memcpy(&words[2], block.data() + 128 + 4 * 8, 8);
  CHECK_EQ(words[0], uint64_t{5});
  CHECK_EQ(words[1], uint64_t{2});
  CHECK_EQ(words[2], uint64_t{74});
}

TEST(segments_stay_within_their_bound_and_tell_again_what_holds) {
  const TemporaryFolder folder;
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 12});
  constexpr size_t kSegmentBytes = size_t{64} << 10;
  recorder->spool_into({folder.path(), kSegmentBytes, 3});
  recorder->start();
  recorder->spool()->note(NoteScope::kOpens, 1, "[\"open\"]");
  recorder->spool()->note(NoteScope::kOpens, 2, "[\"closed\"]");
  recorder->spool()->note(NoteScope::kCloses, 2, "[\"closed\"]");
  for (int round = 0; round < 40; ++round) {
    push_spans(*recorder, 0, 1000);
    recorder->drain();
  }
  recorder->stop();
  CHECK_EQ(recorder->snapshot().losses.records_dropped, uint64_t{0});
  size_t segments = 0;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("segment-")) continue;
    ++segments;
    const std::string content = folder.content(name);
    CHECK(content.size() < kSegmentBytes + kFrameRecords * sizeof(Record) + 4096);
    const std::vector<FrameType> types = frames_in(content);
    CHECK(types.size() >= 4 && types[0] == FrameType::kSegment && types[1] == FrameType::kClock &&
          types[2] == FrameType::kLosses && types[3] == FrameType::kNote);
    CHECK(content.find("[\"open\"]") != std::string::npos);
    CHECK(content.find("[\"closed\"]") == std::string::npos);
  }
  CHECK_EQ(segments, size_t{3});
  frames_in(folder.content("sites"));
}

TEST(a_segment_says_of_which_step_on_it_holds_all) {
  const TemporaryFolder folder;
  Spool spool({folder.path(), /*segment_bytes=*/1, 100});
  const Record record{1, 0, make_tag(RecordType::kStepBegin, 1), kNone32, kNone32, 6};
  const ClockSample sample{1, 1, 1};
  spool.add({.track = 0,
             .tid = 1,
             .thread_name = "",
             .first_index = 0,
             .last_step = 0,
             .last_seq = -1,
             .records = {&record, 1}});
  spool.saw_step(6);
  spool.add({&sample, 1});  // whatever it is that begins the next segment
  SegmentFrame head{};
  const std::string content = folder.content("segment-2");
  CHECK(content.size() > sizeof(FrameHeader) + sizeof(head));
  std::memcpy(&head, content.data() + sizeof(FrameHeader), sizeof(head));
  CHECK_EQ(head.number, uint64_t{2});
  CHECK_EQ(head.first_step, int64_t{7});
}

// Not started: nobody else drains what the thread has left.
std::shared_ptr<Recorder> with_a_ring_of_a_thread_that_ended(const TemporaryFolder& folder) {
  auto recorder = Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  recorder->spool_into({folder.path(), size_t{1} << 20, 3});
  std::thread([&] { push_spans(*recorder, 0, 10); }).join();
  return recorder;
}

TEST(a_thread_that_ends_takes_its_ring_file_along) {
  const TemporaryFolder folder;
  const auto recorder = with_a_ring_of_a_thread_that_ended(folder);
  push_spans(*recorder, 0, 10);
  CHECK(fs::exists(folder.path() + "/ring-0"));
  recorder->drain();
  CHECK(!fs::exists(folder.path() + "/ring-0"));
  CHECK(fs::exists(folder.path() + "/ring-1"));
  CHECK_EQ(recorder->snapshot().store.chunks.size(), size_t{2});
}

// While one lives, no file of this process can grow.
class FullDisk {
 public:
  FullDisk() {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit none{0, before_.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  }
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &before_); }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_{};
};

TEST(each_segment_begins_like_one_though_the_disk_was_full) {
  const TemporaryFolder folder;
  Spool spool({folder.path(), /*segment_bytes=*/1, 4});
  const ClockSample sample{1, 1, 1};
  for (int i = 0; i < 13; ++i) {
    if (i % 3 == 2) {
      const FullDisk full;
      const uint64_t lost = spool.frames_lost();
      spool.add({&sample, 1});
      CHECK(spool.frames_lost() > lost);
    } else {
      spool.add({&sample, 1});
    }
  }
  size_t segments = 0;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("segment-")) continue;
    const std::vector<FrameType> types = frames_in(folder.content(name));
    CHECK(types.size() >= 2 && types[0] == FrameType::kSegment);
    ++segments;
  }
  CHECK_EQ(segments, size_t{4});
}

TEST(notes_that_are_told_again_leave_room_for_what_is_new) {
  const TemporaryFolder folder;
  constexpr size_t kSegmentBytes = size_t{64} << 10;
  Spool spool({folder.path(), kSegmentBytes, 3});
  const std::string text(200, 'x');
  for (uint64_t key = 0; key < 2000; ++key) spool.note(NoteScope::kOpens, key, text);
  for (uint64_t key = 0; key < 1000; ++key) spool.note(NoteScope::kCloses, key, text);
  spool.note(NoteScope::kOpens, 5000, "[\"late\"]");  // there is room again
  const std::vector<Record> records(kFrameRecords);
  for (int round = 0; round < 40; ++round) {
    spool.begin_round();
    spool.add({.track = 0,
               .tid = 1,
               .thread_name = "",
               .first_index = 0,
               .last_step = 0,
               .last_seq = -1,
               .records = records});
  }
  bool has_late = false;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("segment-")) continue;
    const std::string content = folder.content(name);
    CHECK(content.size() < kSegmentBytes + kFrameRecords * sizeof(Record) + 4096);
    has_late |= content.find("[\"late\"]") != std::string::npos;
  }
  CHECK(has_late);
}

TEST(a_forked_child_leaves_its_parents_rings) {
  const TemporaryFolder folder;
  const auto recorder = with_a_ring_of_a_thread_that_ended(folder);
  const pid_t child = fork();
  if (child == 0) {
    alarm(200);
    recorder->totals();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  CHECK(fs::exists(folder.path() + "/ring-0"));
  recorder->drain();
  CHECK(!fs::exists(folder.path() + "/ring-0"));
  CHECK_EQ(recorder->snapshot().losses.records_dropped, uint64_t{0});
}

TEST(what_is_replayed_is_what_was_recorded) {
  const auto site = intern_site(SiteCategory::kRegion, "replayed");
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  const std::array<ClockSample, 2> clock{ClockSample{1000, 500, 1002},
                                         ClockSample{10'001'000, 5'000'500, 10'001'002}};
  recorder->replay_clock(clock);
  recorder->replay_from(7);
  const std::array<Record, 3> records{
      Record{2000, uint64_t{1} << 32 | 4, make_tag(RecordType::kStepBegin, 1), kNone32, kNone32, 9},
      Record{2100, 2200, make_tag(RecordType::kSpan, site), 5, 0, 9},
      Record{3000, 0, make_tag(RecordType::kStepEnd, 0), 0, 0, 9}};
  const RecordBatch batch{.track = 3,
                          .tid = 77,
                          .thread_name = "worker",
                          .first_index = 0,
                          .last_step = int64_t{1} << 32,
                          .last_seq = 4,
                          .records = records};
  CHECK(recorder->replay(batch, false));
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK_EQ(snapshot.store.chunks.size(), size_t{1});
  CHECK_EQ(snapshot.store.chunks[0]->at(0).step, (int64_t{1} << 32) + 9);
  CHECK_EQ(snapshot.store.steps.back().step, (int64_t{1} << 32) + 9);
  CHECK_EQ(snapshot.store.steps.back().end_ticks, uint64_t{3000});
  CHECK_EQ(snapshot.tracks[0].name, "worker");
  CHECK(snapshot.clock.to_ns(3000) >= 1498 && snapshot.clock.to_ns(3000) <= 1502);
}

TEST(what_cannot_be_a_record_is_refused) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 6});
  const auto replay = [&](const Record& record, int64_t last_step, int32_t track) {
    const RecordBatch batch{.track = track,
                            .tid = 1,
                            .thread_name = "",
                            .first_index = 0,
                            .last_step = last_step,
                            .last_seq = -1,
                            .records = {&record, 1}};
    return recorder->replay(batch, false);
  };
  const Record far_step{1, 0, make_tag(RecordType::kStepBegin, 1), kNone32, 0, 5};
  CHECK(!replay({1, 2, 0xFF000000u, 1, 0, kNone32}, 0, 0));
  CHECK(!replay({1, 2, make_tag(RecordType::kSpan, kSiteMask), 1, 0, kNone32}, 0, 0));
  CHECK(!replay(far_step, -2, 0));
  CHECK(!replay(far_step, int64_t{1} << 62, 0));
  CHECK(!replay(far_step, 0, -1));
  // A number far ahead is no reason to hold all those before it.
  CHECK(replay(far_step, int64_t{1} << 61, 0));
  CHECK(recorder->store_bytes() <= (size_t{1} << 20) + sizeof(StepRow));
}

}  // namespace
}  // namespace pertoken
