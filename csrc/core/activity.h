// What a recording has taken in since its start, as plain counts: what a line of status needs, far
// cheaper than the aggregates. Written by the collector, read under the recorder's mutex.
#pragma once

#include <array>
#include <cstdint>

#include "core/record.h"

namespace pertoken {

struct Activity {
  std::array<uint64_t, kStepKinds> steps{};  // begun
  uint64_t tokens_in = 0;                    // positions fed, of steps whose lengths are known
  uint64_t spans = 0;                        // records other than those of a step itself
  uint64_t step_ticks = 0;                   // of steps that ended
  uint64_t timed_roots = 0;                  // of them, those of which it is known
  double root_ns = 0;                        // what the root's wrapper took in these

  void add(const Record& record) noexcept {
    if (record.type() == RecordType::kStepBegin) {
      ++steps[static_cast<size_t>(step_kind(record.detail()))];
      const auto rows = static_cast<uint32_t>(record.end_ticks >> 32);
      const auto query_len = static_cast<uint32_t>(record.end_ticks);
      const bool has_rows = (record.detail() & kStepHasRows) != 0;  // then it is their sum
      if (rows != kNone32 && query_len != kNone32) {
        tokens_in += (has_rows ? 1 : uint64_t{rows}) * query_len;
      }
    } else if (record.type() != RecordType::kStepEnd && record.type() != RecordType::kStepDetail &&
               record.type() != RecordType::kUnrecorded &&
               record.type() != RecordType::kLogitsTime) {
      ++spans;
    }
  }
};

}  // namespace pertoken
