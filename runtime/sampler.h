// Choosing the next token from logits. The same logits, settings and seed give the same token on every machine: past
// the one subtraction and the one multiplication per logit, all arithmetic is in integers.
#pragma once
#include <stdint.h>

namespace edgec {

struct Sampler {
    uint64_t rng[4];
    uint64_t *scratch;  // sampler_scratch_bytes of the caller's memory
    float temperature, top_p;
    uint32_t top_k;
};

// nullptr when the settings can be used, else a sentence that says why not.
const char *sampler_check(float temperature, float top_p);

// 0 when neither top_k nor top_p needs the logits sorted.
uint64_t sampler_scratch_bytes(float temperature, float top_p, uint32_t top_k, uint32_t vocab);

// temperature 0: greedy. top_p 1, top_k 0: off. scratch: 8-byte aligned, kept until the last sample().
void sampler_init(Sampler *sampler, float temperature, float top_p, uint32_t top_k, uint64_t seed, void *scratch);

// vocab > 0. Greedy takes the lowest id of the largest logit; NaN never wins; with no number above -infinity the
// answer is 0.
int32_t sample(Sampler *sampler, const float *logits, uint32_t vocab);

}  // namespace edgec
