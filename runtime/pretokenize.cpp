#include "pretokenize.h"

#include "unicode.h"

namespace edgec {
namespace {

struct Char {
    uint32_t c = 0, length = 0;  // length 0: the end
    CharClass cls = CLASS_OTHER;
};

struct Text {
    const uint8_t *data;
    uint64_t n;

    Char at(uint64_t i) const {
        Char out;
        if (i < n) {
            out.c = utf8_decode(data + i, &out.length);
            out.cls = class_of(out.c);
        }
        return out;
    }
};

bool number(const Char &c) { return c.cls == CLASS_NUMBER; }
bool letter(const Char &c) { return is_letter(c.cls); }
bool mark(const Char &c) { return c.cls == CLASS_MARK; }
bool letter_or_mark(const Char &c) { return letter(c) || mark(c); }
bool space(const Char &c) { return c.cls == CLASS_SPACE; }
bool newline(const Char &c) { return c.length && (c.c == '\n' || c.c == '\r'); }
bool symbol(const Char &c) { return c.length && !letter(c) && !number(c) && !space(c); }
bool symbol_no_mark(const Char &c) { return symbol(c) && !mark(c); }
// The two overlapping halves of a word in O200K.
bool upper(const Char &c) { return letter_or_mark(c) && c.cls != CLASS_LOWER; }
bool lower(const Char &c) { return letter_or_mark(c) && c.cls != CLASS_UPPER && c.cls != CLASS_TITLE; }
// What may stand glued before a word: anything but a line end, a letter, a number.
bool glue(const Char &c) { return c.length && !newline(c) && !letter(c) && !number(c); }

// End of the run of characters for which `accept` holds, from i on, at most `limit` of them.
template <class Accept>
uint64_t run(const Text &t, uint64_t i, Accept accept, uint64_t limit = UINT64_MAX) {
    for (; limit; limit--) {
        const Char c = t.at(i);
        if (!c.length || !accept(c)) break;
        i += c.length;
    }
    return i;
}

// Length of 's 't 're 've 'm 'll 'd at i, or 0. Ignoring case also accepts the long s, which folds to s.
uint64_t contraction(const Text &t, uint64_t i, bool any_case) {
    if (i >= t.n || t.data[i] != '\'') return 0;
    const Char first = t.at(i + 1), second = t.at(i + 1 + first.length);
    const auto fold = [any_case](uint32_t c) { return any_case && c >= 'A' && c <= 'Z' ? c + 32 : c; };
    const uint32_t a = fold(first.c), b = fold(second.c);
    if (any_case && a == 0x17F) return 1 + first.length;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return 0;
}

// \s+(?!\S)|\s+ : a run of spaces leaves its last character to the word that follows.
uint64_t spaces(const Text &t) {
    uint64_t end = 0, last = 0;
    for (Char c = t.at(0); space(c); c = t.at(end)) {
        last = end;
        end += c.length;
    }
    return end == t.n || last == 0 ? end : last;
}

// \s*[\r\n]+ : through the last line end of the run of spaces; 0 if there is none.
uint64_t lines(const Text &t) {
    uint64_t end = 0, found = 0;
    for (Char c = t.at(0); space(c); c = t.at(end)) {
        end += c.length;
        if (newline(c)) found = end;
    }
    return found;
}

uint64_t gpt2(const Text &t) {
    if (const uint64_t n = contraction(t, 0, false)) return n;
    const uint64_t blank = t.data[0] == ' ' ? 1 : 0;
    const Char c = t.at(blank);
    if (letter(c)) return run(t, blank, letter);
    if (number(c)) return run(t, blank, number);
    if (symbol(c)) return run(t, blank, symbol);
    return spaces(t);
}

// What LLAMA3, QWEN2, MARKS and O200K share once words and numbers are dealt with.
template <class Symbol>
uint64_t symbols_and_spaces(const Text &t, Symbol is_symbol, bool slash) {
    const uint64_t blank = t.data[0] == ' ' ? 1 : 0;
    if (is_symbol(t.at(blank))) {
        const uint64_t end = run(t, blank, is_symbol);
        return run(t, end, [slash](const Char &c) { return newline(c) || (slash && c.c == '/'); });
    }
    if (const uint64_t n = lines(t)) return n;
    return spaces(t);
}

template <class Letter, class Symbol>
uint64_t tiktoken(const Text &t, uint64_t digits, Letter is_letter, Symbol is_symbol) {
    if (const uint64_t n = contraction(t, 0, true)) return n;
    const Char first = t.at(0);
    if (is_letter(first)) return run(t, 0, is_letter);
    if (glue(first) && is_letter(t.at(first.length))) return run(t, first.length, is_letter);
    if (number(first)) return run(t, 0, number, digits);
    return symbols_and_spaces(t, is_symbol, false);
}

// [upper]*[lower]+ from i: the end, or 0. The star gives back just enough for one lower character to be left.
uint64_t word_lower(const Text &t, uint64_t i) {
    uint64_t given_back = 0, at = i;
    for (Char c = t.at(at); upper(c); c = t.at(at)) {
        at += c.length;
        if (lower(c)) given_back = at;
    }
    const uint64_t end = run(t, at, lower);
    return end > at ? end : given_back;
}

// [upper]+[lower]* from i: the end, or 0.
uint64_t word_upper(const Text &t, uint64_t i) {
    const uint64_t end = run(t, i, upper);
    return end > i ? run(t, end, lower) : 0;
}

uint64_t o200k(const Text &t) {
    const Char first = t.at(0);
    const bool glued = glue(first);
    uint64_t end = glued ? word_lower(t, first.length) : 0;
    if (!end) end = word_lower(t, 0);
    if (!end && glued) end = word_upper(t, first.length);
    if (!end) end = word_upper(t, 0);
    if (end) return end + contraction(t, end, true);
    if (number(first)) return run(t, 0, number, 3);
    return symbols_and_spaces(t, symbol, true);
}

}  // namespace

uint64_t next_word(Pattern pattern, const uint8_t *text, uint64_t n) {
    const Text t{text, n};
    switch (pattern) {
        case PATTERN_GPT2: return gpt2(t);
        case PATTERN_LLAMA3: return tiktoken(t, 3, letter, symbol);
        case PATTERN_QWEN2: return tiktoken(t, 1, letter, symbol);
        case PATTERN_MARKS: return tiktoken(t, 1, letter_or_mark, symbol_no_mark);
        case PATTERN_O200K: return o200k(t);
        case PATTERN_SPACES: {
            uint64_t i = 1;
            while (i < n && text[i] != ' ') i++;
            return i;
        }
        case PATTERN_WORDS: {
            uint64_t i = 1;
            while (i < n && (text[i] != ' ' || text[i - 1] == ' ')) i++;
            return i;
        }
        default: return n;
    }
}

uint64_t next_digits(Digits digits, const uint8_t *text, uint64_t n) {
    if (digits == DIGITS_NONE) return n;
    const Text t{text, n};
    const auto numeric = [](const Char &c) { return c.cls == CLASS_NUMBER || c.cls == CLASS_NUMBER_ONLY; };
    const Char first = t.at(0);
    if (!numeric(first)) return run(t, 0, [&](const Char &c) { return !numeric(c); });
    return digits == DIGITS_ALONE ? first.length : run(t, 0, numeric);
}

uint64_t leading_space(const uint8_t *text, uint64_t n) { return run(Text{text, n}, 0, space); }

uint64_t trailing_space(const uint8_t *text, uint64_t n) {
    const Text t{text, n};
    uint64_t begin = n;
    while (begin > 0) {
        uint64_t i = begin - 1;
        while (i > 0 && (text[i] & 0xC0) == 0x80) i--;
        if (!space(t.at(i))) break;
        begin = i;
    }
    return n - begin;
}

}  // namespace edgec
