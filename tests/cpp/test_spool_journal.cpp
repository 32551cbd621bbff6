// A journal of a spool is a queue of frames in a file: whoever reads the file after any call finds
// what was appended and not released, whole and in its order; and one that is never quite empty
// takes as much as any other.
#include <cstring>
#include <deque>
#include <random>
#include <span>
#include <string>

#include "check.h"
#include "core/spool_format.h"
#include "core/spool_journal.h"
#include "temporary_folder.h"

namespace pertoken {
namespace {

using testing::TemporaryFolder;

constexpr size_t kRoom = 4096;

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A journal and what a plain queue would hold.
struct Compared {
  TemporaryFolder folder;
  SpoolJournal journal{folder.path() + "/journal", kJournalHeaderBytes + kRoom};
  std::deque<std::string> expected;

  bool append(const std::string& frame) {
    const bool is_in = journal.append(std::as_bytes(std::span(frame)));
    if (is_in) expected.push_back(frame);
    return is_in;
  }
  void release(size_t frames) {
    size_t size = 0;
    for (; frames != 0 && !expected.empty(); --frames) {
      size += expected.front().size();
      expected.pop_front();
    }
    journal.release(size);
  }
  std::string all() const {
    std::string text;
    for (const std::string& frame : expected) text += frame;
    return text;
  }
  std::string in_file() const {
    const std::string content = folder.content("journal");
    JournalHeader header{};
    std::memcpy(&header, content.data(), sizeof(header));
    CHECK(header.magic == kJournalMagic && header.version == kSpoolVersion);
    const auto begin = static_cast<size_t>(header.extent >> 32);
    const auto end = static_cast<size_t>(header.extent & 0xFFFFFFFF);
    CHECK(begin <= end && end <= kRoom);
    return content.substr(kJournalHeaderBytes + begin, end - begin);
  }
  void check() const {
    CHECK(text_of(journal.waiting()) == all());
    CHECK(in_file() == all());
  }
};

TEST(a_journal_is_a_queue_at_every_moment) {
  std::mt19937_64 random(1);
  Compared compared;
  for (int i = 0; i < 3000; ++i) {
    if (random() % 3 == 0) {
      compared.release(random() % 8);
    } else {
      compared.append(std::string(1 + random() % 400, static_cast<char>('a' + i % 26)));
    }
    compared.check();
  }
}

TEST(one_that_is_never_empty_refuses_nothing_while_half_of_it_is_free) {
  std::mt19937_64 random(2);
  Compared compared;
  for (int i = 0; i < 3000; ++i) {
    CHECK(compared.append(std::string(1 + random() % 200, static_cast<char>('a' + i % 26))));
    while (compared.all().size() > kRoom / 2 - 200) compared.release(1);
    compared.check();
  }
}

TEST(what_finds_no_room_is_refused_and_changes_nothing) {
  Compared compared;
  CHECK(compared.append(std::string(kRoom, 'a')));
  CHECK(!compared.append("b"));
  compared.check();
  compared.release(1);
  CHECK(compared.append("c"));
  compared.check();
}

}  // namespace
}  // namespace pertoken
