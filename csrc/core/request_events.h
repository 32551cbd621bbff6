// What only the caller's side knows of requests, on its way to the collector: where requests and
// generations begin and end. Pushed once a generate(), so that a lock may be taken, which nobody
// holds for longer than it takes to move one event.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

namespace pertoken {

struct RequestBegin {
  uint32_t request;
  uint32_t label_set;
  uint64_t start_ticks;
};

// Who says what the steps of a generation commit.
enum class CommitSource : uint8_t {
  kGenerate,  // generate(), step by step, and at its end what of it holds
  kDeclared,  // the user, of each step
  kRows       // an engine, of each row: one row of a step is the whole generation
};

// Sequences that grow together; the steps that carry its number are theirs.
struct GenerationBegin {
  uint32_t generation;
  uint32_t request;
  CommitSource source;
  bool can_end_rows;  // some rows may end before others
  bool is_beam_search;
  // Of what is continued; -1 unknown.
  int64_t prompt_rows;
  int64_t prompt_length;
  int64_t prompt_tokens;
};

struct GenerationEnd {
  uint32_t generation;
  uint64_t first_commit_ticks;  // 0: none
  bool has_failed;
  bool is_delegated;                                 // another generation stands for it
  bool commits_known;                                // its steps have told what they commit
  std::optional<std::vector<uint32_t>> row_lengths;  // tokens committed to each returned row
};

struct RequestEnd {
  uint32_t request;
  uint64_t end_ticks;
  bool has_failed;
};

using RequestEvent = std::variant<RequestBegin, GenerationBegin, GenerationEnd, RequestEnd>;

class RequestEvents {
 public:
  void push(RequestEvent event) {
    const std::lock_guard guard(mutex_);
    events_.push_back(std::move(event));
  }
  std::vector<RequestEvent> take() {
    const std::lock_guard guard(mutex_);
    return std::exchange(events_, {});
  }

  // Held over a fork.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
  std::vector<RequestEvent> events_;
};

}  // namespace pertoken
