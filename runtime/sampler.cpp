#include "sampler.h"

#include <math.h>
#include <string.h>

namespace edgec {
namespace {

uint64_t rotate(uint64_t x, int k) { return x << k | x >> (64 - k); }

// xoshiro256**, seeded by SplitMix64.
uint64_t next_random(uint64_t *s) {
    const uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

// The high half of a 64 x 64 bit product: a random number scaled to 0..n-1.
uint64_t scale_random(uint64_t random, uint64_t n) {
    const uint64_t a = random >> 32, b = random & 0xFFFFFFFF, c = n >> 32, d = n & 0xFFFFFFFF;
    const uint64_t middle = (b * d >> 32) + (a * d & 0xFFFFFFFF) + b * c;  // below 2^64: each part leaves room
    return a * c + (a * d >> 32) + (middle >> 32);
}

// Floats as integers in the same order; NaN below everything. -0 and 0 are one value.
uint32_t order_of(float x) {
    if (x != x) return 0;
    uint32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

float value_of(uint32_t order) {
    const uint32_t bits = order >> 31 ? order & 0x7FFFFFFFu : ~order;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

constexpr uint32_t kNothing = 0x007FFFFF;  // order_of(-infinity)

// 2^32 * e^((logit - max) / temperature), rounded down, for logit <= max: a fixed-point power of two. The polynomial
// is 2^-f for f in [0, 1), good to 2^-30.
struct Weights {
    float max;
    double scale;  // log2(e) / temperature, in units of 2^-32

    uint64_t of(float logit) const {
        if (logit == max) return 1ull << 32;  // also where both are infinite
        const double x = (double(max) - double(logit)) * scale;
        if (!(x < 33.0 * 4294967296.0)) return 0;
        const uint64_t fixed = uint64_t(x), f = fixed & 0xFFFFFFFF;
        // Taylor terms ln(2)^k / k! in units of 2^-32, Horner from the last.
        static const uint64_t kTerm[] = {4294967296, 2977044472, 1031764991, 238388332, 41309550, 5726720,
                                         661577,     65510,      5676,       437,       30};
        int64_t sum = 0;
        for (int k = 10; k >= 0; k--) sum = int64_t(kTerm[k]) - int64_t(uint64_t(sum) * f >> 32);
        return uint64_t(sum) >> (fixed >> 32);
    }
};

// Max-heap of order << 32 | ~id: the largest logit first, the lowest id of equals.
void sift(uint64_t *heap, uint64_t n, uint64_t i) {
    const uint64_t value = heap[i];
    for (uint64_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= value) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = value;
}

// Moves the largest of heap[0..n) to heap[n - 1].
uint64_t take(uint64_t *heap, uint64_t n) {
    const uint64_t top = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = top;
    if (n > 1) sift(heap, n - 1, 0);
    return top;
}

uint64_t weight_of(const Weights &weights, uint64_t entry) { return weights.of(value_of(uint32_t(entry >> 32))); }

// Sorts as far as top_k and top_p need, and samples among what they leave.
int32_t sample_sorted(Sampler *s, const Weights &weights, const float *logits, uint32_t vocab) {
    uint64_t *heap = s->scratch;
    uint64_t n = 0, total = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        const uint32_t order = order_of(logits[i]);
        if (order > kNothing) heap[n++] = uint64_t(order) << 32 | uint32_t(~i);
    }
    for (uint64_t i = n / 2; i-- > 0;) sift(heap, n, i);
    // With top_k the share of top_p is of the k largest alone, so those are taken out first.
    const uint64_t limit = s->top_k && s->top_k < n ? s->top_k : n;
    uint64_t taken = 0;
    if (limit < n) {
        for (; taken < limit; taken++) total += weight_of(weights, take(heap, n - taken));
    } else {
        for (uint64_t i = 0; i < n; i++) total += weight_of(weights, heap[i]);
    }
    const double wanted = double(s->top_p) * double(total);
    uint64_t kept = 0, sum = 0;
    while (kept < limit && (kept == 0 || double(sum) < wanted)) {
        const uint64_t entry = kept < taken ? heap[n - 1 - kept] : take(heap, n - kept);
        sum += weight_of(weights, entry);
        kept++;
    }
    uint64_t random = scale_random(next_random(s->rng), sum);
    for (uint64_t i = 0; i < kept; i++) {
        const uint64_t entry = heap[n - 1 - i], weight = weight_of(weights, entry);
        if (random < weight) return int32_t(uint32_t(~entry));
        random -= weight;
    }
    return int32_t(uint32_t(~heap[n - 1]));
}

}  // namespace

const char *sampler_check(float temperature, float top_p) {
    if (!(temperature >= 0) || temperature > 1e6f) return "temperature must be between 0 and 1000000";
    if (!(top_p > 0 && top_p <= 1)) return "top_p must be above 0 and at most 1";
    return nullptr;
}

uint64_t sampler_scratch_bytes(float temperature, float top_p, uint32_t top_k, uint32_t vocab) {
    const bool sorted = temperature > 0 && top_k != 1 && ((top_k > 0 && top_k < vocab) || top_p < 1);
    return sorted ? uint64_t(vocab) * sizeof(uint64_t) : 0;
}

void sampler_init(Sampler *sampler, float temperature, float top_p, uint32_t top_k, uint64_t seed, void *scratch) {
    for (uint64_t &word : sampler->rng) {
        seed += 0x9E3779B97F4A7C15u;
        uint64_t z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        word = z ^ z >> 31;
    }
    sampler->scratch = static_cast<uint64_t *>(scratch);
    sampler->temperature = temperature;
    sampler->top_p = top_p;
    sampler->top_k = top_k;
}

int32_t sample(Sampler *sampler, const float *logits, uint32_t vocab) {
    int32_t best = 0;
    float max = -INFINITY;
    for (uint32_t i = 0; i < vocab; i++) {
        if (logits[i] > max) {  // false for NaN
            max = logits[i];
            best = int32_t(i);
        }
    }
    if (max == -INFINITY || sampler->temperature == 0 || sampler->top_k == 1) return best;
    const Weights weights{max, 1.4426950408889634 * 4294967296.0 / double(sampler->temperature)};
    if (sampler_scratch_bytes(sampler->temperature, sampler->top_p, sampler->top_k, vocab))
        return sample_sorted(sampler, weights, logits, vocab);
    uint64_t total = 0;
    for (uint32_t i = 0; i < vocab; i++) total += logits[i] == logits[i] ? weights.of(logits[i]) : 0;
    uint64_t random = scale_random(next_random(sampler->rng), total);
    for (uint32_t i = 0; i < vocab; i++) {
        const uint64_t weight = logits[i] == logits[i] ? weights.of(logits[i]) : 0;
        if (random < weight) return int32_t(i);
        random -= weight;
    }
    return best;
}

}  // namespace edgec
