#include "bindings/step_rows.h"

#include <array>
#include <new>

#include "bindings/owned.h"

namespace pertoken::bindings {

namespace {

// In the order of StepKind.
constexpr std::array<const char*, kStepKinds> kPhaseNames = {"prefill", "decode", "verify",
                                                             "draft",   "mixed",  "other"};

bool read_phase(PyObject* value, StepKind& phase) {
  if (PyUnicode_Check(value)) {
    for (size_t i = 0; i < kPhaseNames.size(); ++i) {
      if (PyUnicode_CompareWithASCIIString(value, kPhaseNames[i]) != 0) continue;
      phase = static_cast<StepKind>(i);
      if (phase != StepKind::kMixed) return true;
    }
  }
  PyErr_Format(PyExc_ValueError, "phase=%R: a row is in prefill, decode, verify, draft or other",
               value);
  return false;
}

}  // namespace

bool read_count(PyObject* value, uint32_t& count) {
  count = kNone32;
  if (value == Py_None) return true;
  const Py_ssize_t number = PyNumber_AsSsize_t(value, PyExc_ValueError);
  if (number == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
  } else if (number >= -1 && number < Py_ssize_t{kNone32}) {
    if (number >= 0) count = static_cast<uint32_t>(number);
    return true;
  }
  PyErr_Format(PyExc_ValueError, "%R: give a count of tokens, or -1 when it is unknown", value);
  return false;
}

StepRows::~StepRows() {
  for (const Row& row : rows_) Py_XDECREF(reinterpret_cast<PyObject*>(row.request));
}

bool StepRows::read(PyObject* rows, PyObject* requests) {
  static uint64_t last_batch = 0;
  const uint64_t batch = ++last_batch;
  // A copy: to read a row may run code of the user's, which may change the list.
  const Owned items(PySequence_Tuple(rows));
  if (!items) {
    PyErr_SetString(PyExc_ValueError, "rows are a sequence of Row");
    return false;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(items.get());
  rows_.reserve(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!read_row(PyTuple_GET_ITEM(items.get(), i), requests, batch)) return false;
  }
  return true;
}

bool StepRows::read_row(PyObject* row, PyObject* requests, uint64_t batch) {
  constexpr Py_ssize_t kFields = 5;
  if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) != kFields) {
    PyErr_Format(PyExc_ValueError, "%R: rows are a sequence of Row", row);
    return false;
  }
  Row read{};
  if (!read_phase(PyTuple_GET_ITEM(row, 1), read.phase) ||
      !read_count(PyTuple_GET_ITEM(row, 2), read.query_len) ||
      !read_count(PyTuple_GET_ITEM(row, 3), read.context_len) ||
      !read_count(PyTuple_GET_ITEM(row, 4), read.committed)) {
    return false;
  }
  PyObject* name = PyTuple_GET_ITEM(row, 0);
  if (name != Py_None) {
    PyObject* found = requests == nullptr ? nullptr : PyDict_GetItemWithError(requests, name);
    if (found == nullptr || !is_row_request(found)) {
      if (PyErr_Occurred() == nullptr) PyErr_SetObject(PyExc_KeyError, name);
      return false;
    }
    read.request = reinterpret_cast<RowRequest*>(found);
    if (read.request->last_batch == batch) {
      PyErr_Format(PyExc_ValueError, "%R: a request has one row in a step", name);
      return false;
    }
    read.request->last_batch = batch;
    Py_INCREF(found);
  }
  rows_.push_back(read);  // its place is reserved
  return true;
}

StepKind StepRows::kind() const noexcept {
  if (rows_.empty()) return StepKind::kOther;
  for (const Row& row : rows_) {
    if (row.phase != rows_.front().phase) return StepKind::kMixed;
  }
  return rows_.front().phase;
}

uint32_t StepRows::query_len() const noexcept {
  uint64_t total = 0;
  for (const Row& row : rows_) {
    if (row.query_len == kNone32) return kNone32;
    total += row.query_len;
  }
  return total < kNone32 ? static_cast<uint32_t>(total) : kNone32;
}

bool StepRows::packed_runs(int64_t positions, std::vector<ValidRun>& runs) const noexcept {
  if (query_len() == kNone32 || query_len() > positions) return false;
  try {
    int64_t at = 0;
    for (size_t row = 0; row < rows_.size(); ++row) {
      const int64_t length = rows_[row].query_len;
      runs.push_back({static_cast<int64_t>(row), 0, at, at + length});
      at += length;
    }
  } catch (const std::bad_alloc&) {
    runs.clear();
    return false;
  }
  return true;
}

void StepRows::push(Recorder& recorder, ThreadBuffer& buffer, uint32_t step,
                    uint32_t generation) const {
  for (uint32_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    uint32_t number = generation;
    if (row.request != nullptr) {
      const RowSequence* sequence = row_sequence(row.request, recorder);
      number = sequence == nullptr ? kNone32 : sequence->generation;
    }
    buffer.push({i, uint64_t{row.query_len} << 32 | row.context_len,
                 make_tag(RecordType::kRow, static_cast<uint32_t>(row.phase)), number, 0, step});
  }
}

void StepRows::push_commits(Recorder& recorder, ThreadBuffer& buffer, uint32_t step,
                            uint64_t end_ticks, const std::vector<uint32_t>& committed) const {
  for (uint32_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    const uint32_t count = committed.empty() ? row.committed : committed[i];
    RowSequence* sequence =
        row.request == nullptr ? nullptr : known_row_sequence(row.request, recorder);
    if (count == kNone32) {
      if (sequence != nullptr) sequence->tokens_unknown = true;
      continue;
    }
    uint32_t before = kNone32;
    if (sequence != nullptr) {
      if (!sequence->tokens_unknown) before = sequence->tokens;
      sequence->tokens += count;
      if (count > 0 && sequence->first_commit_ticks == 0) sequence->first_commit_ticks = end_ticks;
    }
    buffer.push({i, uint64_t{before} << 32 | count, make_tag(RecordType::kRowCommit, 0),
                 sequence == nullptr ? kNone32 : sequence->generation, 0, step});
  }
}

}  // namespace pertoken::bindings
