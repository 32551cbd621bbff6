#include "bindings/named_values.h"

namespace pertoken::bindings {

namespace py = pybind11;

// None is inlined, at link time either: that a place only calls is what they are for.

[[gnu::noinline]] void NamedValues::put(const char* name, py::handle value) const {
  if (PyDict_SetItemString(values_.ptr(), name, value.ptr()) != 0) throw py::error_already_set();
}

[[gnu::noinline]] void NamedValues::put_owned(const char* name, py::handle value) const {
  if (!value) throw py::error_already_set();
  put(name, py::reinterpret_steal<py::object>(value));
}

[[gnu::noinline]] void NamedValues::put(const char* name, std::string_view text) const {
  put_owned(name,
            PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), nullptr));
}

[[gnu::noinline]] void NamedValues::put(const char* name, double value) const {
  put_owned(name, PyFloat_FromDouble(value));
}

[[gnu::noinline]] void NamedValues::put(const char* name, int64_t value) const {
  put_owned(name, PyLong_FromLongLong(value));
}

[[gnu::noinline]] void NamedValues::put(const char* name, uint64_t value) const {
  put_owned(name, PyLong_FromUnsignedLongLong(value));
}

template <typename Number>
[[gnu::noinline]] Number* NamedValues::column(const char* name, py::ssize_t length) const {
  py::array_t<Number> values(length);
  put(name, values);
  return values.mutable_data();
}

template int32_t* NamedValues::column(const char*, py::ssize_t) const;
template int64_t* NamedValues::column(const char*, py::ssize_t) const;
template uint64_t* NamedValues::column(const char*, py::ssize_t) const;
template double* NamedValues::column(const char*, py::ssize_t) const;
template float* NamedValues::column(const char*, py::ssize_t) const;

}  // namespace pertoken::bindings
