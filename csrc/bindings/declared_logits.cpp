#include "bindings/declared_logits.h"

#include <algorithm>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "bindings/host_tensor.h"
#include "bindings/logit_reader.h"
#include "bindings/owned.h"
#include "bindings/sampled_forward.h"
#include "bindings/scope.h"
#include "bindings/step_inputs.h"
#include "bindings/step_region.h"

namespace pertoken::bindings {

namespace {

constexpr int32_t kUntold = std::numeric_limits<int32_t>::min();

// `token_of(row)` is what is known of the token of each. Throws std::bad_alloc.
template <typename TokenOf>
void tell_on_gpu(LogitReader& reader, const KeptLogits& kept, const cuda::DeviceTokens& fed,
                 TokenOf&& token_of) {
  GpuLogitStep& gpu = *kept.gpu;
  gpu.tokens.clear();
  for (size_t at = 0; at < kept.rows.size(); ++at) {
    const KeptLogits::Row& row = kept.rows[at];
    const int32_t token = token_of(row);
    if (token == kUntold) continue;
    gpu.tokens.push_back({static_cast<uint32_t>(at), row.row, row.place, token});
  }
  std::string reason;
  reader.gpus().tell(gpu, kept.of, fed, reason);
  reader.skip_if(reason);
}

// A loop by hand: the next forward of the request is fed what the step before has chosen, where it
// goes on behind it. Throws std::bad_alloc.
void tell_fed(LogitReader& reader, Recorder& recorder, ThreadBuffer& buffer, KeptLogits& kept,
              const LogitStep& next, PyObject* ids) {
  const LogitStep& of = kept.of;
  if (of.past < 0 || next.past < 0 || next.rows != of.rows || ids == nullptr) return;
  const uint64_t start_ticks = now_ticks();
  const int64_t column = of.past + of.positions - next.past;
  std::vector<int64_t> tokens;
  if (read_tokens(ids, next.rows, column, 1, tokens)) {
    ChosenTokens chosen;
    for (const int64_t token : tokens) chosen.push_back({token});
    tell_chosen(recorder, buffer, kept, chosen);
  } else if (kept.gpu != nullptr) {
    const cuda::DeviceTokens fed =
        tokens_on_gpu(ids, kept.gpu->kept.device(), next.rows, column, 1);
    if (fed.address == 0) return;
    tell_on_gpu(reader, kept, fed, [](const KeptLogits::Row&) { return cuda::kFedToken; });
  } else {
    return;
  }
  kept.rows.clear();
  charge_logits(recorder, buffer, of, now_ticks() - start_ticks, next.step, true);
}

// Of the request's last step, taken out meanwhile: another thread of the request may come to it.
void tell_fed_before(LogitReader& reader, Recorder& recorder, ThreadBuffer& buffer, Scope& request,
                     const LogitStep& next, PyObject* ids) {
  KeptLogits*& held = request.entries[recorder.slot()].logits;
  if (held == nullptr || held->recorder_uid != recorder.uid() || held->rows.empty()) return;
  std::unique_ptr<KeptLogits> before(std::exchange(held, nullptr));
  tell_fed(reader, recorder, buffer, *before, next, ids);
  if (held == nullptr) held = before.release();
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

// Calls visit(row, place, logits) for each position that chooses a token, as the last of a run of
// positions does, or, where candidates are verified, each of them; `logits` are its own.
template <typename Visit>
void visit_run(const DeclaredLogits& declared, const TensorView& view, const ValidRun& run,
               Visit&& visit) {
  const LogitStep& of = declared.of;
  const int64_t length = run.end - run.begin;
  const int64_t places = of.kind != StepKind::kVerify ? 1
                         : of.keep > 1                ? std::min(of.keep, length)
                                                      : length;
  for (int64_t place = 0; place < places; ++place) {
    const int64_t position = kept_position(declared, view.shape[1], run.end - places + place);
    if (position < 0 || position >= view.shape[1]) continue;
    visit(static_cast<uint32_t>(run.row), static_cast<uint32_t>(place),
          logits_at(view, run.batch_row, position));
  }
}

template <typename Visit>
void visit_places(const DeclaredLogits& declared, const TensorView& view, Visit&& visit) {
  if (declared.rows.valid == nullptr) {
    for (int64_t row = 0; row < declared.rows.rows; ++row) {
      visit_run(declared, view, {row, row, 0, declared.rows.positions}, visit);
    }
    return;
  }
  const std::vector<ValidRun>& runs = *declared.rows.valid;
  for (size_t i = 0; i < runs.size(); ++i) {
    // What a mask leaves valid may be several runs, of which the last one ends the row.
    if (i + 1 == runs.size() || runs[i + 1].row != runs[i].row) {
      visit_run(declared, view, runs[i], visit);
    }
  }
}

// Without the GIL where there are many. Whether there was any to tell of.
bool read_on_host(const DeclaredLogits& declared, const TensorView& view, ThreadBuffer& buffer,
                  KeptLogits* kept) {
  bool has_told = false;
  if (kept != nullptr) kept->logits.start(view, declared.rows.rows);
  visit_places(declared, view, [&](uint32_t row, uint32_t place, const TensorView& one) {
    has_told = true;
    const LogitStats stats = logit_stats(one);
    push_logits(buffer, declared.of, row, place, stats, LogitStats::kUnknown);
    if (kept == nullptr) return;
    kept->logits.add(one);
    kept->rows.push_back({row, place, stats});
  });
  return has_told;
}

// Likewise; what is read is told behind the GPU. False, counted, also where it cannot be read.
bool read_on_gpu(LogitReader& reader, const DeclaredLogits& declared, const TensorView& view,
                 const cuda::GpuPlace& place, bool is_kept, KeptLogits& kept) {
  if (kept.gpu == nullptr) kept.gpu = std::make_unique<GpuLogitStep>();
  kept.gpu->addresses.clear();
  visit_places(declared, view, [&](uint32_t row, uint32_t at, const TensorView& one) {
    kept.gpu->addresses.push_back(reinterpret_cast<uintptr_t>(one.data));
    kept.rows.push_back({row, at, {}});
  });
  if (kept.rows.empty()) return false;
  std::string reason;
  const bool is_read = reader.gpus().read(view, place, 1, kNoTokens, is_kept, *kept.gpu, reason);
  reader.skip_if(reason);
  if (is_read) {
    tell_on_gpu(reader, kept, kNoTokens,
                [](const KeptLogits::Row&) { return cuda::kUnknownToken; });
  }
  if (!is_read || !kept.gpu->kept.has_copies()) kept.rows.clear();
  return true;
}

void read_declared(LogitReader& reader, const DeclaredLogits& declared, Recorder& recorder,
                   ThreadBuffer& buffer, PyObject* output) {
  TensorView view;
  Owned memory(nullptr);
  cuda::GpuPlace place{-1, nullptr};
  if (output == nullptr || !reader.view(output, declared.rows.batch_rows, view, memory, place)) {
    return;
  }
  const bool is_kept = declared.region || declared.request;
  // Apart from where it is kept, to which others may come while the GIL is given up.
  KeptLogits kept;
  KeptLogits** next =
      declared.request ? &scope_of(declared.request)->entries[recorder.slot()].logits : nullptr;
  if (next != nullptr && *next != nullptr) std::swap(kept, **next);
  kept.of = declared.of;
  kept.recorder_uid = recorder.uid();
  kept.rows.clear();
  bool has_told = false;
  bool is_read = false;
  if (place.device >= 0) {
    is_read = guarded_read(recorder, [&] {
      has_told = read_on_gpu(reader, declared, view, place, is_kept, kept);
      return true;
    });
  } else {
    kept.gpu.reset();
    is_read = read_many(recorder, declared.rows.rows, view.shape[2], [&] {
      has_told = read_on_host(declared, view, buffer, is_kept ? &kept : nullptr);
    });
  }
  if (is_read && !has_told) reader.skip("the positions of the rows are not known");
  if (!is_read || kept.rows.empty() || !is_kept) return;
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

}  // namespace

void tell_chosen(Recorder& recorder, ThreadBuffer& buffer, const KeptLogits& kept,
                 const ChosenTokens& chosen) {
  const auto is_known = [&](const KeptLogits::Row& row) {
    return row.row < chosen.size() && row.place < chosen[row.row].size();
  };
  if (kept.gpu != nullptr) {
    guarded_read(recorder, [&] {
      tell_on_gpu(*recorder.logit_reader(), kept, kNoTokens, [&](const KeptLogits::Row& row) {
        return is_known(row) ? told_token(chosen[row.row][row.place]) : kUntold;
      });
      return true;
    });
    return;
  }
  for (size_t at = 0; at < kept.rows.size(); ++at) {
    const KeptLogits::Row& row = kept.rows[at];
    if (!is_known(row)) continue;
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
    const Owned held_request(Py_XNewRef(reinterpret_cast<PyObject*>(request)));
    if (request != nullptr)
      tell_fed_before(reader, recorder, buffer, *request, step, arguments.ids);
    PackedChoices& choices = region->entries[recorder.slot()].choices;
    const float weight = reader.choose(buffer, region->step_kind, false, choices);
    if (weight == 0 || is_being_traced()) return nullptr;
    const uint64_t start_ticks = now_ticks();
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
      declared->begin_ticks = now_ticks() - start_ticks;
      return declared;
    }
    reader.skip("the rows of a declared step are not those of its forward");
  } catch (const std::bad_alloc&) {
    reader.skip("no memory");
  }
  return nullptr;
}

void end_declared_logits(LogitReader& reader, const DeclaredLogits& declared, Recorder& recorder,
                         ThreadBuffer& buffer, PyObject* output) {
  const uint64_t start_ticks = now_ticks();
  read_declared(reader, declared, recorder, buffer, output);
  const uint64_t ticks = declared.begin_ticks + now_ticks() - start_ticks;
  charge_logits(recorder, buffer, declared.of, ticks, declared.of.step, false);
}

}  // namespace pertoken::bindings
