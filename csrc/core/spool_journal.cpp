#include "core/spool_journal.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "core/spool_format.h"

namespace pertoken {

SpoolJournal::SpoolJournal(std::string path, size_t size_bytes)
    : file_(std::move(path), size_bytes),
      room_(std::span(file_.data(), file_.size_bytes()).subspan(kJournalHeaderBytes)) {
  new (file_.data()) JournalHeader{kJournalMagic, kSpoolVersion, 0, 0};
}

bool SpoolJournal::append(std::span<const std::byte> frame) noexcept {
  if (frame.size() > room_.size() - end_) return false;
  std::copy(frame.begin(), frame.end(), room_.begin() + static_cast<std::ptrdiff_t>(end_));
  end_ += frame.size();
  publish();
  return true;
}

std::span<const std::byte> SpoolJournal::waiting() const noexcept {
  return room_.subspan(begin_, end_ - begin_);
}

void SpoolJournal::release(size_t size_bytes) noexcept {
  begin_ += size_bytes;
  // What is left moves to the front where it does not overlap with itself, so that whoever reads
  // the file finds it whole at either place, and a journal that is never quite empty has room.
  if (const size_t left = end_ - begin_; left <= begin_) {
    std::copy_n(room_.begin() + static_cast<std::ptrdiff_t>(begin_), left, room_.begin());
    begin_ = 0;
    end_ = left;
  }
  publish();
}

void SpoolJournal::publish() noexcept {
  auto* header = reinterpret_cast<JournalHeader*>(file_.data());
  // Release: the reader is another process, which comes when this one is gone and finds what was
  // stored up to some instruction of ours; so no store may be moved behind this one.
  std::atomic_ref(header->extent).store(uint64_t{begin_} << 32 | end_, std::memory_order_release);
}

}  // namespace pertoken
