#include "bindings/scope_links.h"

namespace pertoken::bindings {

ScopeLink link_of(ScopeKind kind) {
  switch (kind) {
    case ScopeKind::kRegion:
      return &Scope::region;
    case ScopeKind::kStep:
      return &Scope::step;
    case ScopeKind::kRequest:
      break;
  }
  return &Scope::request;
}

void set_link(Scope* scope, ScopeLink link, Scope* target) {
  Scope* before = scope->*link;
  if (target != scope) Py_XINCREF(reinterpret_cast<PyObject*>(target));
  scope->*link = target;
  if (before != scope) Py_XDECREF(reinterpret_cast<PyObject*>(before));
}

void pass_over(Scope* innermost, Scope* inside, Scope* closed) {
  for (Scope* scope = innermost; scope != closed; scope = scope->outer) {
    // As open_parent() would find it, had it still the closed one to look at.
    if (scope->kind == ScopeKind::kRegion && closed->kind == ScopeKind::kRegion &&
        scope->thread_uid == closed->thread_uid) {
      for (int slot = 0; slot < kMaxRecorders; ++slot) {
        ScopeEntry& entry = scope->entries[slot];
        if (entry.parent_seq == closed->seq) entry.parent_seq = closed->entries[slot].parent_seq;
      }
    }
    const ScopeLink link = link_of(closed->kind);
    if (scope->*link == closed) {
      set_link(scope, link, closed->outer == nullptr ? nullptr : closed->outer->*link);
    }
  }
  set_link(inside, &Scope::outer, closed->outer);
}

}  // namespace pertoken::bindings
