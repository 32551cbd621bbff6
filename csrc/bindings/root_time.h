// What a call of the root's wrapper takes for itself: all but the forward, and but what is told
// apart, which is moving wrappers, observing what the root put out, and logits. Hot.
#pragma once

#include <cstdint>

#include "core/clock.h"
#include "core/thread_buffer.h"

namespace pertoken::bindings {

class RootTime {
 public:
  // `entered_ticks`: when the call began.
  RootTime(const ThreadBuffer& buffer, uint64_t entered_ticks) noexcept
      : since_(entered_ticks), logits_before_(buffer.logits_ticks) {}

  // Of a step of this kind, whose wrappers have been moved.
  void begin_forward(ThreadBuffer& buffer, StepKind kind, uint64_t now) noexcept {
    kind_ = kind;
    const uint64_t logits_ticks = buffer.logits_ticks - logits_before_;
    add(buffer, now, logits_ticks + buffer.unrecorded.move_ticks);
  }
  void end_forward(const ThreadBuffer& buffer, uint64_t now) noexcept {
    since_ = now;
    logits_before_ = buffer.logits_ticks;
    observed_before_ = buffer.observed.ticks;
  }
  // The wrapper returns, from a step.
  void end(ThreadBuffer& buffer) const noexcept {
    const uint64_t logits_ticks = buffer.logits_ticks - logits_before_;
    add(buffer, now_ticks(), logits_ticks + buffer.observed.ticks - observed_before_);
  }

 private:
  void add(ThreadBuffer& buffer, uint64_t now, uint64_t apart) const noexcept {
    const uint64_t all = now - since_;
    buffer.root_ticks[static_cast<size_t>(kind_)] += all > apart ? all - apart : 0;
  }

  uint64_t since_;
  uint64_t logits_before_;
  uint64_t observed_before_ = 0;
  StepKind kind_ = StepKind::kOther;
};

}  // namespace pertoken::bindings
