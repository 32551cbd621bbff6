// How scopes hold each other: outwards, and straight to the nearest of each kind. Under the GIL.
#pragma once

#include <Python.h>

#include <array>

#include "bindings/scope.h"

namespace pertoken::bindings {

using ScopeLink = Scope* Scope::*;

inline constexpr std::array<ScopeLink, 3> kNearestLinks = {&Scope::region, &Scope::step,
                                                           &Scope::request};
inline constexpr std::array<ScopeLink, 4> kScopeLinks = {&Scope::region, &Scope::step,
                                                         &Scope::request, &Scope::outer};

// The link to the nearest scope of a kind.
ScopeLink link_of(ScopeKind kind);

// Sets a link of `scope`, which owns what it points to unless that is itself.
void set_link(Scope* scope, ScopeLink link, Scope* target);

// Takes a closed scope out of the chain above it, so that entries which overlap for ever, such as
// the requests of a server's loop, do not hold all that were before them. The chain goes from
// `innermost` to `inside`, which is next above `closed`.
void pass_over(Scope* innermost, Scope* inside, Scope* closed);

}  // namespace pertoken::bindings
