#include "bindings/step_plan.h"

#include <vector>

#include "bindings/cache_length.h"

namespace pertoken::bindings {

namespace {

// By the cache and the shapes alone, and only where they leave no doubt.
StepKind kind_by_cache(const StepPlan& plan) {
  if (plan.cache == nullptr) return plan.asks_for_cache ? StepKind::kPrefill : StepKind::kOther;
  if (plan.past == 0) return StepKind::kPrefill;
  if (plan.past < 0) return StepKind::kOther;
  if (plan.query_len == 1) return StepKind::kDecode;
  return plan.keep > 1 && plan.keep == plan.query_len ? StepKind::kVerify : StepKind::kOther;
}

// Inside generate() its progress tells what the shapes do not: a chunk of the prefill that looks
// like a decode, a draft on the root itself, a decode without a cache.
StepKind kind_in_generation(const GenerationState& state, const StepPlan& plan, bool keep_known) {
  if (state.depth > 0) return StepKind::kDraft;
  if (state.commits == 0 && (state.steps == 0 || state.is_chunked)) return StepKind::kPrefill;
  if (plan.is_new_cache && plan.past == 0) return StepKind::kPrefill;
  if (state.commits == 0) return kind_by_cache(plan);
  if (plan.cache == nullptr) return state.had_cache ? kind_by_cache(plan) : StepKind::kDecode;
  if (plan.query_len == 1) return StepKind::kDecode;
  return keep_known ? kind_by_cache(plan) : StepKind::kVerify;
}

// Tokens in the cache before a step of generate(), asked of the cache only where they were not
// followed.
int64_t past_in_generation(const GenerationState& state, const StepPlan& plan, bool& failed) {
  if (plan.cache == nullptr || (state.steps == 0 && state.fresh_cache)) return 0;
  const bool is_followed = state.steps > 0 && (state.commits > 0 || state.is_chunked) &&
                           !plan.is_new_cache && state.past != kPastUntold;
  return is_followed ? state.past : cache_length(plan.cache, failed);
}

}  // namespace

StepPlan plan_step(const ForwardSignature& signature, LastCache& last_cache, Recorder& recorder,
                   const GenerationState* state, PyObject* args, PyObject* kwargs) {
  StepPlan plan;
  bool failed = false;
  const InputShape shape = input_shape(signature, args, kwargs, failed);
  plan.rows = shape.rows;
  plan.query_len = shape.query_len;
  plan.keep = integer_argument(signature.find(ArgumentRole::kKeep, args, kwargs), 0);
  plan.cache = signature.find(ArgumentRole::kCache, args, kwargs);
  plan.asks_for_cache =
      plan.cache == nullptr && signature.find(ArgumentRole::kUseCache, args, kwargs) == Py_True;
  if (state != nullptr) {
    plan.generation = state->generation;
    // Models that make their cache themselves pass none at first.
    plan.is_new_cache = plan.cache != nullptr && plan.cache != state->last_cache &&
                        (state->steps == 0 || state->had_cache);
    plan.past = past_in_generation(*state, plan, failed);
    plan.kind = kind_in_generation(*state, plan, signature.knows(ArgumentRole::kKeep));
  } else {
    if (plan.cache != nullptr) {
      plan.past = last_cache.length(plan.cache);
      if (plan.past < 0) plan.past = last_cache.ask(plan.cache, failed);
    } else if (!signature.takes_first_positional()) {
      plan.past = 0;
    }
    plan.kind = kind_by_cache(plan);
  }
  if (failed) recorder.count_fault();
  return plan;
}

void push_padding(StepPlan& plan, PyObject* mask, ThreadBuffer& buffer, uint32_t step) {
  std::vector<RowTokens> valid;
  if (!valid_tokens(mask, plan.rows, plan.past, plan.query_len, valid)) {
    plan.flags |= kStepMaskUnread;
    return;
  }
  for (uint32_t row = 0; row < valid.size(); ++row) {
    buffer.push({row, uint64_t{valid[row].context} << 32 | valid[row].query,
                 make_tag(RecordType::kRowValid, 0), 0, 0, step});
  }
}

}  // namespace pertoken::bindings
