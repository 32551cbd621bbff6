#include "bindings/scope_links.h"

#include "bindings/owned.h"

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

void pass_over_closed(Scope* scope) {
  for (const ScopeLink link : kNearestLinks) {
    Scope* const target = scope->*link;
    if (target == nullptr || target == scope || target->is_open) continue;
    set_link(scope, link, target->nearest_open(link));
  }
  if (scope->outer != nullptr && !scope->outer->is_open) {
    set_link(scope, &Scope::outer, open_scope(scope->outer));
  }
}

void pass_over_closed(Scope* innermost, const Scope* closed) {
  const Scope* const behind = open_scope(closed->outer);  // only compared: it may go meanwhile
  Owned held(nullptr);
  for (Scope* scope = innermost; scope != nullptr && scope != closed && scope != behind;
       scope = scope->outer) {
    held.reset(Py_NewRef(reinterpret_cast<PyObject*>(scope)));
    pass_over_closed(scope);
  }
}

namespace {

// Gives a reference up. What nothing else holds, and what only that holds in turn, goes to a list
// that is linked by `outer`.
void give_up(Scope* scope, Scope*& list) {
  while (scope != nullptr) {
    if (Py_REFCNT(reinterpret_cast<PyObject*>(scope)) > 1) {
      Py_DECREF(reinterpret_cast<PyObject*>(scope));
      return;
    }
    Scope* const outer = scope->outer;
    scope->outer = list;
    list = scope;
    scope = outer;
  }
}

void take_links(Scope* scope, Scope*& list) {
  for (const ScopeLink link : kNearestLinks) {
    Scope* const target = scope->*link;
    scope->*link = nullptr;
    if (target != scope) give_up(target, list);
  }
  Scope* const parent = scope->parent;
  scope->parent = nullptr;
  give_up(parent, list);
}

}  // namespace

void drop_links(Scope* scope) {
  Scope* list = nullptr;
  take_links(scope, list);
  Scope* const outer = scope->outer;
  scope->outer = nullptr;
  give_up(outer, list);
  while (list != nullptr) {
    Scope* const next = list->outer;
    list->outer = nullptr;
    Scope* const gone = list;
    list = next;
    take_links(gone, list);
    Py_DECREF(reinterpret_cast<PyObject*>(gone));
  }
}

}  // namespace pertoken::bindings
