// How far one generate() call is: what the root wrapper needs to name a step without asking
// anybody. Made by Python at the entry of generate(), held in a context variable of the recording,
// so that threads and tasks that generate at once do not meet. All under the GIL.
//
// The thread's time inside generate() is covered without a hole: a region for the whole call, and
// in it, by turns, gaps (logits processing, sampling, stopping) and the steps.
#pragma once

#include <Python.h>

#include <cstdint>

#include "core/recorder.h"

namespace pertoken::bindings {

struct PendingLogits;

struct GenerationState {
  PyObject_HEAD
  // What each step looks at comes first.
  uint64_t model;       // whose generate() it is: an identity, never followed
  uint32_t depth;       // 0: the outermost; deeper ones draft for it
  uint32_t generation;  // its number in the recording
  uint32_t steps;
  uint32_t commits;
  int64_t past;          // tokens in the cache before the next step, or one of those below
  PyObject* last_cache;  // of the last step; strong, so that no other can take its address
  int64_t last_past;     // and before the last one
  int64_t last_query_len;
  int64_t last_keep;
  uint32_t last_step;
  StepKind last_kind;
  bool keep_known;          // forward is told how many positions' logits to keep
  bool had_cache;           // some step had one
  uint64_t last_end_ticks;  // of the last step
  uint64_t thread_uid;      // where the region and the gap are open, 0 when they are not
  uint64_t gap_start_ticks;
  uint32_t gap_seq;
  uint32_t region_seq;

  PyObject* owner;
  Recorder* recorder;
  bool fresh_cache;             // no cache was handed in, so the first step starts from nothing
  bool is_chunked;              // the prefill may take several steps
  bool has_beams;               // rows are not the sequences
  bool tokens_unknown;          // some commit did not say how many
  bool says_tokens;             // the last one did: candidates may have been verified
  uint32_t tokens;              // committed a row, so far
  int64_t prompt_len;           // tokens in the cache at the first commit, -1 unknown
  PendingLogits* logits;        // of the last step, where they are read; owned
  uint64_t first_commit_ticks;  // the end of the step that committed first, 0 none yet
  uint32_t region_parent_seq;
  uint32_t outer_seq;  // what was open on the thread before
  uint64_t region_start_ticks;
};

inline constexpr int64_t kPastUnknown = -1;
inline constexpr int64_t kPastUntold = -2;  // only the cache itself can tell

extern PyTypeObject* generation_state_type;
// How many there are: while there is none, no context holds one.
extern uint32_t generation_states;

extern uint32_t gap_site;

inline bool open_here(const GenerationState& state) {
  return tls_thread_state != nullptr && state.thread_uid == tls_thread_state->uid;
}

// Called by the root wrapper at the border of a gap and a step, on any thread; does nothing where
// the region is not open on this one.
inline void close_gap(GenerationState& state, ThreadBuffer& buffer, uint64_t now,
                      uint32_t next_step) {
  if (!open_here(state) || state.gap_seq == 0) return;
  buffer.push({state.gap_start_ticks, now, make_tag(RecordType::kGap, gap_site), state.gap_seq,
               state.region_seq, next_step});
  state.gap_seq = 0;
  buffer.open_seq = state.region_seq;
}

inline void open_gap(GenerationState& state, ThreadBuffer& buffer, uint64_t now) {
  if (!open_here(state)) return;
  state.gap_seq = tls_thread_state->next_seq();
  state.gap_start_ticks = now;
  buffer.open_seq = state.gap_seq;
}

}  // namespace pertoken::bindings
