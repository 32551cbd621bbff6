#include "core/observation_intake.h"

#include <utility>

#include "core/spooled_observation.h"

namespace pertoken {

void ObservationIntake::spool_into(std::string path) {
  const std::lock_guard guard(mutex_);
  journal_path_ = std::move(path);
}

void ObservationIntake::push(Observation&& observation) {
  const std::lock_guard guard(mutex_);
  if (waiting_.size() >= kMostWaiting) {
    ++pushed_;
    ++dropped_;
    return;
  }
  waiting_.push_back(std::move(observation));
  ++pushed_;
  if (waiting_.size() == kMostWaiting / 2 && collector_ != nullptr) collector_->wake();
  const bool is_next = journaled_ + 1 == waiting_.size();
  if (!journal_path_.empty() && is_next && add_to_journal(waiting_.back())) ++journaled_;
}

// The file is made for the first one: most recordings observe nothing.
bool ObservationIntake::add_to_journal(const Observation& observation) noexcept {
  try {
    if (!journal_) journal_.emplace(journal_path_, kObservationJournalBytes);
    frame_.clear();
    add_observation(frame_, pushed_ - 1, last_step_, observation);
    return journal_->append(frame_.bytes());
  } catch (...) {
    return false;
  }
}

TakenObservations ObservationIntake::take(int64_t last_step) {
  const std::lock_guard guard(mutex_);
  last_step_ = last_step;
  TakenObservations taken{.observations = std::exchange(waiting_, {}),
                          .first_number = std::exchange(first_number_, pushed_),
                          .framed = std::exchange(journaled_, 0),
                          .frames = {},
                          .last_step = last_step};
  if (journal_) taken.frames = journal_->waiting();
  return taken;
}

void ObservationIntake::release(std::span<const std::byte> frames) noexcept {
  const std::lock_guard guard(mutex_);
  if (journal_) journal_->release(frames.size());
}

uint64_t ObservationIntake::dropped() {
  const std::lock_guard guard(mutex_);
  return dropped_;
}

void ObservationIntake::leave_file() noexcept {
  journal_path_.clear();
  journal_.reset();
}

}  // namespace pertoken
