// A dictionary that is made name by name. py::dict would put the whole of an assignment, with what
// cleans up after a failure, at every place that makes one; here a place only calls. Cold, under
// the GIL. Throws what py::dict throws.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <concepts>
#include <cstdint>
#include <string_view>

namespace pertoken::bindings {

class NamedValues {
 public:
  class Place {
   public:
    Place(const NamedValues& values, const char* name) : values_(values), name_(name) {}

    void operator=(pybind11::handle value) && { values_.put(name_, value); }
    void operator=(pybind11::object&& value) && { values_.put_owned(name_, value.release()); }
    void operator=(std::string_view text) && { values_.put(name_, text); }
    void operator=(const char* text) && { values_.put(name_, std::string_view(text)); }
    void operator=(bool value) && {
      values_.put(name_, pybind11::handle(value ? Py_True : Py_False));
    }
    void operator=(std::floating_point auto value) && { values_.put(name_, double{value}); }
    void operator=(std::signed_integral auto value) && { values_.put(name_, int64_t{value}); }
    void operator=(std::unsigned_integral auto value) && { values_.put(name_, uint64_t{value}); }

   private:
    const NamedValues& values_;
    const char* name_;
  };

  Place operator[](const char* name) const { return {*this, name}; }

  // A new array of `length` under `name`; the values are for the caller to write.
  template <typename Number>
  Number* column(const char* name, pybind11::ssize_t length) const;

  operator pybind11::dict() const { return values_; }

 private:
  void put(const char* name, pybind11::handle value) const;
  void put(const char* name, std::string_view text) const;
  void put(const char* name, double value) const;
  void put(const char* name, int64_t value) const;
  void put(const char* name, uint64_t value) const;
  // Takes the reference; null means that making the value has failed.
  void put_owned(const char* name, pybind11::handle value) const;

  pybind11::dict values_;
};

}  // namespace pertoken::bindings
