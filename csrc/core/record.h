// One fixed-size event, as a producer thread writes it into its ring and the collector reads it.
// Plain data: copied by value, no constructor, 32 bytes so that two share a cache line.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pertoken {

enum class RecordType : uint8_t {
  kSpan,
  kGap,
  kStepBegin,
  kStepEnd,
  kCommit,
  kRowValid,
  kRow,
  kRowCommit,
  kStepDetail,
  kTokenLogits,
  kUnrecorded,
  kLogitsTime
};

enum class StepKind : uint8_t { kPrefill, kDecode, kVerify, kDraft, kMixed, kOther };
inline constexpr int kStepKinds = 6;
inline constexpr uint8_t kOutsideSteps = kStepKinds;  // the "kind" of what is in no step

inline constexpr uint32_t kNone32 = 0xFFFFFFFFu;  // no step, no generation, unknown length
inline constexpr int64_t kNoStep = -1;            // the same, where numbers have 64 bits
inline constexpr uint32_t kSiteMask = 0x00FFFFFFu;

// Bits of a step's detail word (low 24 bits of `tag` in kStepBegin and kStepEnd).
inline constexpr uint32_t kStepKindMask = 0xFFu;
inline constexpr uint32_t kStepMaskUnread = 1u << 8;  // a padding mask was there, not readable here
inline constexpr uint32_t kStepFailed = 1u << 9;      // forward raised
inline constexpr uint32_t kStepBare = 1u << 10;       // no other span began inside
inline constexpr uint32_t kStepDeclared = 1u << 11;   // by the user, not found in a forward
inline constexpr uint32_t kStepRowsDeclared = 1u << 12;  // so are its rows
inline constexpr uint32_t kStepSeveral = 1u << 13;       // declared, and several forwards ran in it
inline constexpr uint32_t kStepSampled = 1u << 15;  // has detail only where a kStepDetail says so
inline constexpr uint32_t kStepHasRows = 1u << 14;  // each in a kRow; query_len is that of all rows

constexpr StepKind step_kind(uint32_t detail) {
  const uint32_t kind = detail & kStepKindMask;
  return kind < kStepKinds ? static_cast<StepKind>(kind) : StepKind::kOther;
}

// The 64-bit number nearest to `reference` whose low half is `low`.
constexpr int64_t widen(int64_t reference, uint32_t low) noexcept {
  return reference + static_cast<int32_t>(low - static_cast<uint32_t>(reference));
}

// In kCommit: the numbers are those of all rows together, not of each.
inline constexpr uint32_t kCommitTotal = 1u << 0;

// Meaning of the fields by type:
// clang-format off
//              start_ticks  end_ticks                 low 24 of tag  seq         parent_seq  step
//   kSpan      begin        end                       site           own         enclosing   its step
//   kGap       begin        end, between two steps    site           own         enclosing   next one
//   kStepBegin begin        rows << 32 | query_len    kind | flags   generation  past        own
//   kStepEnd   end          see StepCost              flags          low half of  high half    own
//                                                                  PackedChoices, of sampler.h
//   kCommit    tokens       tokens now                flags          0           0           which
//              before
//   kRowValid  row          valid tokens before the   0              0           0           which
//                           step << 32 | in it
//   kRow       row          query_len << 32 |         phase       generation  0           which
//                           context_len
//   kRowCommit row          tokens before << 32 |     0           generation  0           which
//                           tokens now
//   kStepDetail weight, the 0                         of step_     level       1: all      which
//              bits of a                              detail.h                   there is
//              double
//   kUnrecorded, see UnrecordedCalls
//              passed on   moved                     0              ticks of    0           which
//                                                                  moving
//   kTokenLogits, with floats by their bits: see token_logits.h
//              top1_prob    entropy << 32 |           place among   row         weight      which
//              << 32 |      logprob                   the row's
//              margin                                 tokens
//   kLogitsTime, where a sampler is to know it
//              ticks that   0                         0             the step in 0           which
//              its logits                                           whose time
//              took                                                 they were
// clang-format on
struct Record {
  uint64_t start_ticks;
  uint64_t end_ticks;
  uint32_t tag;  // RecordType << 24 | detail
  uint32_t seq;
  uint32_t parent_seq;
  uint32_t step;

  RecordType type() const noexcept { return static_cast<RecordType>(tag >> 24); }
  uint32_t detail() const noexcept { return tag & kSiteMask; }
};

constexpr uint32_t make_tag(RecordType type, uint32_t detail) noexcept {
  return static_cast<uint32_t>(type) << 24 | (detail & kSiteMask);
}

// Ticks that the recording took for itself in a step: of its time, for observing; and round it, in
// the root's wrapper. In one word of the record of its end, where what is longer than there is room
// for is the longest that there is.
struct StepCost {
  uint64_t observing;
  uint64_t root;

  static constexpr unsigned kObservingBits = 40;
  static constexpr uint64_t kMostObserving = (uint64_t{1} << kObservingBits) - 1;
  static constexpr uint64_t kMostRoot = (uint64_t{1} << (64 - kObservingBits)) - 1;

  constexpr uint64_t bits() const noexcept {
    return (observing < kMostObserving ? observing : kMostObserving) |
           (root < kMostRoot ? root : kMostRoot) << kObservingBits;
  }
  static constexpr StepCost of(uint64_t bits) noexcept {
    return {bits & kMostObserving, bits >> kObservingBits};
  }
};

static_assert(sizeof(Record) == 32);
static_assert(std::is_trivially_copyable_v<Record>);

}  // namespace pertoken
