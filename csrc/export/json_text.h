// JSON's text forms: escaped strings and numbers. Pure functions, used by the exporters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pertoken::exporting {

// The most characters that one of the functions below writes.
inline constexpr size_t kMaxIntegerChars = 20;
inline constexpr size_t kMaxMicrosecondsChars = 22;

// Each writes at `out` and returns the end. Times go from integers: a double holds no nanoseconds
// of an epoch time, and printing one is slower.
char* write_unsigned(char* out, uint64_t value);
char* write_integer(char* out, int64_t value);
// Nanoseconds as microseconds with exactly three decimals: 1500 gives 1.500.
char* write_microseconds(char* out, uint64_t ns);
char* write_signed_microseconds(char* out, int64_t ns);

// Appends `utf8` as it stands between the quotes of a JSON string. Any bytes are taken: what is not
// UTF-8 becomes U+FFFD, one for each unpaired surrogate or malformed sequence.
void append_escaped(std::string& out, std::string_view utf8);

// A table of strings, each escaped once.
class EscapedStrings {
 public:
  void add(std::string_view utf8);
  size_t size() const { return ends_.size() - 1; }
  // The text of `code`, which lies between -1 and size() - 1; -1 is the empty string.
  std::string_view operator[](int32_t code) const {
    const auto index = static_cast<size_t>(int64_t{code} + 1);
    const size_t begin = index == 0 ? 0 : ends_[index - 1];
    return {text_.data() + begin, ends_[index] - begin};
  }

 private:
  std::string text_;
  std::vector<size_t> ends_{0};
};

}  // namespace pertoken::exporting
