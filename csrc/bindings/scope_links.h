// How scopes hold each other: outwards, and straight to the nearest of each kind. Under the GIL.
#pragma once

#include <Python.h>

#include <array>

#include "bindings/scope.h"

namespace pertoken::bindings {

using ScopeLink = Scope* Scope::*;

inline constexpr std::array<ScopeLink, 3> kNearestLinks = {&Scope::region, &Scope::step,
                                                           &Scope::request};

// The link to the nearest scope of a kind.
ScopeLink link_of(ScopeKind kind);

// Sets a link of `scope`, which owns what it points to unless that is itself.
void set_link(Scope* scope, ScopeLink link, Scope* target);

// The scope itself where it is open, else the next further out that is.
inline Scope* open_scope(Scope* scope) noexcept {
  while (scope != nullptr && !scope->is_open) scope = scope->outer;
  return scope;
}

// Takes what was closed out of the links of one scope, which the caller holds: what is dropped may
// run Python code. Done to each scope that is closed, all that it then still holds was open at that
// moment: so entries which overlap for ever, such as the requests of a server's loop or tasks that
// start each other, do not hold all that were before them.
void pass_over_closed(Scope* scope);
// The same of all from `innermost` to `closed`, which has just been closed, and both held.
void pass_over_closed(Scope* innermost, const Scope* closed);

// Sets all links of a scope that goes to null. What goes with it, goes one after the other: there
// may be more than the stack has room for.
void drop_links(Scope* scope);

}  // namespace pertoken::bindings
