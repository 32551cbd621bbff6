// Escaping of any bytes, and numbers, as the exporters write them.
#include <cstdint>
#include <string>
#include <string_view>

#include "check.h"
#include "export/json_text.h"

using namespace pertoken::exporting;

namespace {

constexpr std::string_view kReplaced = "\xEF\xBF\xBD";

std::string escaped(std::string_view text) {
  std::string out;
  append_escaped(out, text);
  return out;
}

template <typename T>
std::string written(char* (*write)(char*, T), T value) {
  char text[64];
  return {text, write(text, value)};
}

std::string replaced(int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += kReplaced;
  return out;
}

}  // namespace

TEST(escapes_what_json_forbids_and_nothing_else) {
  CHECK_EQ(escaped("plain / <tag>"), "plain / <tag>");
  CHECK_EQ(escaped("\"\\\n\r\t"), "\\\"\\\\\\n\\r\\t");
  CHECK_EQ(escaped(std::string_view("\0\x01\x1f\x7f", 4)), "\\u0000\\u0001\\u001f\\u007f");
  for (int c = 0; c < 0x80; ++c) {
    const char text = static_cast<char>(c);
    const std::string out = escaped({&text, 1});
    const bool plain = c >= 0x20 && c != 0x7f && text != '"' && text != '\\';
    CHECK_EQ(out.size() == 1, plain);
  }
}

TEST(keeps_characters_at_the_edges_of_each_length) {
  for (const char* text : {"\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
                           "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    CHECK_EQ(escaped(text), text);
  }
}

TEST(replaces_each_malformed_sequence_once) {
  CHECK_EQ(escaped("a\x80z"), "a" + replaced(1) + "z");  // a continuation alone
  CHECK_EQ(escaped("\xC0\xAF"), replaced(2));            // overlong
  CHECK_EQ(escaped("\xE0\x80\xAF"), replaced(3));        // overlong
  CHECK_EQ(escaped("\xF0\x8F\xBF\xBF"), replaced(4));    // overlong
  CHECK_EQ(escaped("\xF4\x90\x80\x80"), replaced(4));    // past U+10FFFF
  CHECK_EQ(escaped("\xED\xA0\x80|\xED\xBF\xBF"), replaced(1) + "|" + replaced(1));  // surrogates
  CHECK_EQ(escaped("\xE2\x82"), replaced(1));                   // cut off at the end
  CHECK_EQ(escaped("\xF0\x9F\x9A\"x"), replaced(1) + "\\\"x");  // cut off by another
  CHECK_EQ(escaped("\xFF\xFE\xF5"), replaced(3));               // never a byte of UTF-8
  CHECK_EQ(escaped("\xC3"), replaced(1));
}

TEST(every_three_bytes_give_utf8_without_raw_controls) {
  const auto replacements = [](std::string_view text) {
    int count = 0;
    for (size_t at = 0; (at = text.find(kReplaced, at)) != std::string_view::npos; ++at) ++count;
    return count;
  };
  // Every lead byte, with bytes at the edges of what may follow it.
  const unsigned char edges[] = {0x00, 0x1F, '"',  0x7F, 0x80, 0x8F,
                                 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF};
  for (int lead = 0; lead < 256; ++lead) {
    for (const unsigned char second : edges) {
      for (const unsigned char third : edges) {
        const char text[] = {static_cast<char>(lead), static_cast<char>(second),
                             static_cast<char>(third)};
        const std::string out = escaped({text, sizeof text});
        CHECK_EQ(replacements(escaped(out)), replacements(out));  // all of it is UTF-8 now
        for (const char c : out) CHECK(static_cast<unsigned char>(c) >= 0x20);
      }
    }
  }
}

TEST(strings_are_found_by_code) {
  EscapedStrings strings;
  CHECK_EQ(strings[-1], "");
  strings.add("a\n");
  strings.add("");
  strings.add("b");
  CHECK_EQ(strings.size(), size_t{3});
  CHECK_EQ(strings[-1], "");
  CHECK_EQ(strings[0], "a\\n");
  CHECK_EQ(strings[1], "");
  CHECK_EQ(strings[2], "b");
}

TEST(integers_are_written_as_the_standard_library_does) {
  uint64_t value = 1;
  for (int digits = 1; digits <= 20; ++digits, value *= 10) {
    for (const uint64_t near : {value - 1, value, value + 1}) {
      CHECK_EQ(written<uint64_t>(write_unsigned, near), std::to_string(near));
      const auto number = static_cast<int64_t>(near);
      CHECK_EQ(written<int64_t>(write_integer, number), std::to_string(number));
    }
  }
  CHECK_EQ(written<uint64_t>(write_unsigned, UINT64_MAX), std::to_string(UINT64_MAX));
  CHECK_EQ(written<int64_t>(write_integer, INT64_MIN), std::to_string(INT64_MIN));
}

TEST(microseconds_have_three_decimals) {
  CHECK_EQ(written<uint64_t>(write_microseconds, 0), "0.000");
  CHECK_EQ(written<uint64_t>(write_microseconds, 999), "0.999");
  CHECK_EQ(written<uint64_t>(write_microseconds, 1'020), "1.020");
  CHECK_EQ(written<uint64_t>(write_microseconds, UINT64_MAX), "18446744073709551.615");
  CHECK_EQ(written<int64_t>(write_signed_microseconds, -1), "-0.001");
  CHECK_EQ(written<int64_t>(write_signed_microseconds, INT64_MIN), "-9223372036854775.808");
  CHECK(written<int64_t>(write_signed_microseconds, INT64_MIN).size() <= kMaxMicrosecondsChars);
}
