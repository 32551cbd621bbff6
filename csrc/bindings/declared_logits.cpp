#include "bindings/declared_logits.h"

#include <algorithm>
#include <new>
#include <utility>

#include "bindings/host_tensor.h"
#include "bindings/logit_reader.h"
#include "bindings/owned.h"
#include "bindings/scope.h"
#include "bindings/step_inputs.h"
#include "bindings/step_region.h"

namespace pertoken::bindings {

namespace {

// A loop by hand: the next forward of the request is fed what the step before has chosen, where it
// goes on behind it. Throws std::bad_alloc.
void tell_fed(ThreadBuffer& buffer, KeptLogits& kept, const LogitStep& next, PyObject* ids) {
  const LogitStep& of = kept.of;
  if (of.past < 0 || next.past < 0 || next.rows != of.rows || ids == nullptr) return;
  const int64_t column = of.past + of.positions - next.past;
  std::vector<int64_t> tokens;
  if (!read_tokens(ids, next.rows, column, 1, tokens)) return;
  ChosenTokens chosen;
  for (const int64_t token : tokens) chosen.push_back({token});
  tell_chosen(buffer, kept, chosen);
  kept.rows.clear();
}

// Where the tokens of a step will be told.
void keep_for_later(DeclaredLogits& declared, Scope* region, Scope* request) {
  const bool is_one_each = !has_told_rows(region) && declared.of.places() == 1 &&
                           int64_t{region->tokens_committed} == declared.of.rows;
  if (awaits_commit(region)) {
    declared.region.reset(Py_NewRef(reinterpret_cast<PyObject*>(region)));
  } else if (request != nullptr && is_one_each && declared.of.past >= 0) {
    declared.request.reset(Py_NewRef(reinterpret_cast<PyObject*>(request)));
  }
}

Scope* scope_of(const Owned& scope) { return reinterpret_cast<Scope*>(scope.get()); }

// Where the logits of a position that was fed stand among those that were put out; -1 nowhere.
int64_t kept_position(const DeclaredLogits& declared, int64_t positions_out, int64_t position) {
  if (declared.positions_kept.empty()) {
    const bool is_packed = declared.rows.rows != declared.rows.batch_rows;
    const int64_t left_out = declared.rows.positions - positions_out;
    return is_packed && left_out != 0 ? -1 : position - left_out;  // the last ones are kept
  }
  const std::vector<int64_t>& kept = declared.positions_kept;
  if (static_cast<int64_t>(kept.size()) != positions_out) return -1;
  const auto found = std::find(kept.begin(), kept.end(), position);
  return found == kept.end() ? -1 : found - kept.begin();
}

// Without the GIL. Throws std::bad_alloc.
class DeclaredReading {
 public:
  DeclaredReading(const DeclaredLogits& declared, const TensorView& view, ThreadBuffer& buffer,
                  KeptLogits* kept)
      : declared_(declared), view_(view), buffer_(buffer), kept_(kept) {}

  bool has_told() const { return has_told_; }

  void read() {
    if (kept_ != nullptr) kept_->logits.start(view_, declared_.rows.rows);
    if (declared_.rows.valid == nullptr) {
      for (int64_t row = 0; row < declared_.rows.rows; ++row) {
        read_run({row, row, 0, declared_.rows.positions});
      }
      return;
    }
    const std::vector<ValidRun>& runs = *declared_.rows.valid;
    for (size_t i = 0; i < runs.size(); ++i) {
      // What a mask leaves valid may be several runs, of which the last one ends the row.
      if (i + 1 == runs.size() || runs[i + 1].row != runs[i].row) read_run(runs[i]);
    }
  }

 private:
  // Of a run of positions, the last chooses a token; where candidates are verified, each does.
  void read_run(const ValidRun& run) {
    const LogitStep& of = declared_.of;
    const int64_t places = of.kind != StepKind::kVerify ? 1
                           : of.keep > 1                ? of.keep
                                                        : run.end - run.begin;
    for (int64_t place = 0; place < places; ++place) {
      const int64_t position = kept_position(declared_, view_.shape[1], run.end - places + place);
      if (position < 0 || position >= view_.shape[1]) continue;
      has_told_ = true;
      const TensorView one = logits_at(view_, run.batch_row, position);
      const LogitStats stats = logit_stats(one);
      push_logits(buffer_, of, run.row, place, stats, LogitStats::kUnknown);
      if (kept_ == nullptr) continue;
      kept_->logits.add(one);
      kept_->rows.push_back({static_cast<uint32_t>(run.row), static_cast<uint32_t>(place), stats});
    }
  }

  const DeclaredLogits& declared_;
  const TensorView& view_;
  ThreadBuffer& buffer_;
  KeptLogits* kept_;
  bool has_told_ = false;
};

}  // namespace

void tell_chosen(ThreadBuffer& buffer, const KeptLogits& kept,
                 const ChosenTokens& chosen) noexcept {
  for (size_t at = 0; at < kept.rows.size(); ++at) {
    const KeptLogits::Row& row = kept.rows[at];
    if (row.row >= chosen.size() || row.place >= chosen[row.row].size()) continue;
    const double logprob = kept.logits.logprob(at, chosen[row.row][row.place], row.stats);
    push_logits(buffer, kept.of, row.row, row.place, row.stats, logprob);
  }
}

std::unique_ptr<DeclaredLogits> begin_declared_logits(LogitReader& reader, Recorder& recorder,
                                                      ThreadBuffer& buffer, Scope* region,
                                                      const LogitStep& step,
                                                      const LogitArguments& arguments) {
  if (region->step_kind == StepKind::kDraft) return nullptr;
  try {
    Scope* request = region->nearest_open(&Scope::request);
    KeptLogits* before = request == nullptr ? nullptr : request->entries[recorder.slot()].logits;
    if (before != nullptr && before->recorder_uid == recorder.uid() && !before->rows.empty()) {
      tell_fed(buffer, *before, step, arguments.ids);
    }
    const float weight = reader.weight(region->step_kind);
    if (weight == 0 || is_being_traced()) return nullptr;
    auto declared = std::make_unique<DeclaredLogits>();
    declared->of = step;
    declared->of.kind = region->step_kind;
    declared->of.weight = weight;
    ObservedStep& rows = declared->rows;
    rows.rows = rows.batch_rows = step.rows;
    rows.positions = step.positions;
    if (arguments.mask != nullptr && step.rows > 0 &&
        valid_runs(arguments.mask, step.rows, step.past, step.positions, declared->runs)) {
      rows.valid = &declared->runs;
    }
    place_told_rows(region, rows, declared->runs);
    if (arguments.keep != nullptr && !PyLong_Check(arguments.keep)) {
      read_tokens(arguments.keep, 1, 0, -1, declared->positions_kept);
    }
    const bool fits = region->step_rows == kNone32 || rows.rows == int64_t{region->step_rows};
    if (rows.rows > 0 && fits && step.positions > 0) {
      keep_for_later(*declared, region, request);
      return declared;
    }
    reader.skip("the rows of a declared step are not those of its forward");
  } catch (const std::bad_alloc&) {
    reader.skip("no memory");
  }
  return nullptr;
}

void end_declared_logits(LogitReader& reader, DeclaredLogits& declared, Recorder& recorder,
                         ThreadBuffer& buffer, PyObject* output) {
  TensorView view;
  Owned memory(nullptr);
  if (output == nullptr || !reader.view(output, declared.rows.batch_rows, view, memory)) return;
  const bool is_kept = declared.region || declared.request;
  // Apart from where it is kept, to which others may come while the GIL is given up.
  KeptLogits kept;
  KeptLogits** next =
      declared.request ? &scope_of(declared.request)->entries[recorder.slot()].logits : nullptr;
  if (next != nullptr && *next != nullptr) std::swap(kept, **next);
  kept.of = declared.of;
  kept.recorder_uid = recorder.uid();
  kept.rows.clear();
  DeclaredReading reading(declared, view, buffer, is_kept ? &kept : nullptr);
  const bool is_read =
      read_many(recorder, declared.rows.rows, view.shape[2], [&] { reading.read(); });
  if (is_read && !reading.has_told()) reader.skip("the positions of the rows are not known");
  if (!is_read || kept.rows.empty()) return;
  try {
    if (next == nullptr) {
      keep_until_commit(scope_of(declared.region), std::move(kept));
      return;
    }
    if (*next == nullptr) *next = new KeptLogits;
    std::swap(kept, **next);
  } catch (const std::bad_alloc&) {
    recorder.count_fault();
  }
}

}  // namespace pertoken::bindings
