// At which sites values that are no finite numbers begin: a broken layer puts them out at every
// step, and only the first time is news. Used by the collector only.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "core/record.h"

namespace pertoken {

class NonfiniteWatch {
 public:
  // Whether the observation is the first bad one of its site since a step in which all that was
  // observed of it was good; outside of steps, since an observation that was good.
  // Throws std::bad_alloc.
  bool begins(uint32_t site, int64_t step, bool is_bad) {
    const auto found = sites_.find(site);
    if (found == sites_.end()) {
      if (is_bad) sites_.insert({site, {.step = step, .is_bad = true}});
      return is_bad;
    }
    State& state = found->second;
    if (step != state.step || step == kNoStep) {
      if (!state.is_bad && !is_bad) {  // good again, for a whole step
        sites_.erase(found);
        return false;
      }
      state = {.step = step, .was_bad = state.is_bad, .is_bad = false};
    }
    const bool is_first = is_bad && !state.is_bad && !state.was_bad;
    state.is_bad = state.is_bad || is_bad;
    return is_first;
  }
  void forget() noexcept { sites_.clear(); }

 private:
  struct State {
    int64_t step = kNoStep;  // the last one that it was observed in
    bool was_bad = false;    // in the one before
    bool is_bad = false;     // in this one
  };

  std::unordered_map<uint32_t, State> sites_;  // those that have been bad lately
};

}  // namespace pertoken
