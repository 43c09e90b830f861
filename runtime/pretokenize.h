// Cutting text into the words that byte-pair merges stay within. Each pattern is the regular expression of a known
// family of tokenizers, written out by hand: linear in the text, no backtracking past one scanned run.
#pragma once
#include <stdint.h>

namespace edgec {

enum Pattern : uint32_t {
    PATTERN_NONE = 0,       // the whole text is one word
    PATTERN_GPT2 = 1,
    PATTERN_LLAMA3 = 2,     // digits in threes
    PATTERN_QWEN2 = 3,      // digits alone
    PATTERN_MARKS = 4,      // QWEN2 with combining marks counted as letters
    PATTERN_O200K = 5,      // words broken where lower case turns to upper
    PATTERN_SPACES = 6,     // every space begins a word
    PATTERN_WORDS = 7,      // a space after something else begins a word
    PATTERN_COUNT = 8
};

// Whether the digits are cut out before the pattern: alone, or in runs.
enum Digits : uint32_t { DIGITS_NONE = 0, DIGITS_ALONE = 1, DIGITS_RUNS = 2, DIGITS_COUNT = 3 };

// Length in bytes (> 0) of the first word of valid UTF-8; n > 0.
uint64_t next_word(Pattern pattern, const uint8_t *text, uint64_t n);
// Length in bytes (> 0) of the first piece between digits, or of the first digits; n > 0.
uint64_t next_digits(Digits digits, const uint8_t *text, uint64_t n);
// Bytes of white space that `text` begins with; of white space that it ends with.
uint64_t leading_space(const uint8_t *text, uint64_t n);
uint64_t trailing_space(const uint8_t *text, uint64_t n);

}  // namespace edgec
