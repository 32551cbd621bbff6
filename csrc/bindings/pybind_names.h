// Names of pybind11's types, for headers that files without it include: its own headers cost each
// file seconds.
#pragma once

namespace pybind11 {

template <typename Type, typename... Options>
class class_;
class module_;
class object;

}  // namespace pybind11
