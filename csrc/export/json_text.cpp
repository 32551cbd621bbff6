#include "export/json_text.h"

#include <cstring>

namespace pertoken::exporting {
namespace {

constexpr char kDigitPairs[] =
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
    "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
    "8081828384858687888990919293949596979899";
constexpr char kHexDigits[] = "0123456789abcdef";
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Sequence {
  size_t bytes;
  bool valid;
};

bool is_continuation(unsigned char byte, unsigned char low = 0x80, unsigned char high = 0xBF) {
  return byte >= low && byte <= high;
}

// The sequence that begins at text[0], a byte of 0x80 or more. Where it is malformed, `bytes` is
// its longest part that could have begun a character, at least 1.
Sequence decode(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : static_cast<unsigned char>(0);
  };
  const unsigned char lead = byte(0);
  if (lead >= 0xC2 && lead <= 0xDF) {
    return is_continuation(byte(1)) ? Sequence{2, true} : Sequence{1, false};
  }
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned char low = lead == 0xE0 ? 0xA0 : 0x80;
    if (!is_continuation(byte(1), low)) return {1, false};
    if (!is_continuation(byte(2))) return {2, false};
    // U+D800 to U+DFFF: Python's surrogates, as its "surrogatepass" encodes them.
    return {3, !(lead == 0xED && byte(1) >= 0xA0)};
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned char low = lead == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = lead == 0xF4 ? 0x8F : 0xBF;
    if (!is_continuation(byte(1), low, high)) return {1, false};
    if (!is_continuation(byte(2))) return {2, false};
    return is_continuation(byte(3)) ? Sequence{4, true} : Sequence{3, false};
  }
  return {1, false};
}

void append_escaped_ascii(std::string& out, unsigned char c) {
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      if (c >= 0x20 && c != 0x7F) {
        out += static_cast<char>(c);
        return;
      }
      out += "\\u00";
      out += kHexDigits[c >> 4];
      out += kHexDigits[c & 15];
  }
}

char* write_three_digits(char* out, uint64_t value) {
  *out++ = static_cast<char>('0' + value / 100);
  std::memcpy(out, kDigitPairs + 2 * (value % 100), 2);
  return out + 2;
}

}  // namespace

char* write_unsigned(char* out, uint64_t value) {
  char digits[kMaxIntegerChars];
  char* const end = digits + sizeof digits;
  char* begin = end;
  while (value >= 100) {
    begin -= 2;
    std::memcpy(begin, kDigitPairs + 2 * (value % 100), 2);
    value /= 100;
  }
  if (value >= 10) {
    begin -= 2;
    std::memcpy(begin, kDigitPairs + 2 * value, 2);
  } else {
    *--begin = static_cast<char>('0' + value);
  }
  const auto size = static_cast<size_t>(end - begin);
  std::memcpy(out, begin, size);
  return out + size;
}

char* write_integer(char* out, int64_t value) {
  auto magnitude = static_cast<uint64_t>(value);
  if (value < 0) {
    *out++ = '-';
    magnitude = 0 - magnitude;
  }
  return write_unsigned(out, magnitude);
}

char* write_microseconds(char* out, uint64_t ns) {
  out = write_unsigned(out, ns / 1000);
  *out++ = '.';
  return write_three_digits(out, ns % 1000);
}

char* write_signed_microseconds(char* out, int64_t ns) {
  auto magnitude = static_cast<uint64_t>(ns);
  if (ns < 0) {
    *out++ = '-';
    magnitude = 0 - magnitude;
  }
  return write_microseconds(out, magnitude);
}

void append_escaped(std::string& out, std::string_view utf8) {
  while (!utf8.empty()) {
    const auto first = static_cast<unsigned char>(utf8[0]);
    if (first < 0x80) {
      append_escaped_ascii(out, first);
      utf8.remove_prefix(1);
      continue;
    }
    const Sequence sequence = decode(utf8);
    out += sequence.valid ? utf8.substr(0, sequence.bytes) : kReplacement;
    utf8.remove_prefix(sequence.bytes);
  }
}

void EscapedStrings::add(std::string_view utf8) {
  append_escaped(text_, utf8);
  ends_.push_back(text_.size());
}

}  // namespace pertoken::exporting
