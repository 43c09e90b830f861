/* How many float multiply-accumulates this machine does a second: independent sums in registers, by 1 or more threads.
 * Built for the CPU it runs on; a kernel is judged against this. */
#include <pthread.h>
#include <stdint.h>

#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
enum { LANES = BYTES / 4, SUMS = 12 };
#if defined(__aarch64__)
#define SUM "+w"
#else
#define SUM "+x"
#endif
typedef float vec __attribute__((vector_size(BYTES)));

struct part {
    uint64_t rounds;
    float seed, result;
};

static void *run(void *arg) {
    struct part *p = arg;
    vec s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11;
    vec x = {0}, y = {0};
    x += 0.5f * p->seed;
    y += p->seed;
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = s9 = s10 = s11 = y;
    for (uint64_t i = 0; i < p->rounds; ++i) {
        s0 = s0 * x + y, s1 = s1 * x + y, s2 = s2 * x + y, s3 = s3 * x + y;
        s4 = s4 * x + y, s5 = s5 * x + y, s6 = s6 * x + y, s7 = s7 * x + y;
        s8 = s8 * x + y, s9 = s9 * x + y, s10 = s10 * x + y, s11 = s11 * x + y;
        /* Equal sums must not be seen to be equal. */
        __asm__ volatile("" : SUM(s0), SUM(s1), SUM(s2), SUM(s3), SUM(s4), SUM(s5));
        __asm__ volatile("" : SUM(s6), SUM(s7), SUM(s8), SUM(s9), SUM(s10), SUM(s11));
    }
    s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
    p->result = s0[0];
    return 0;
}

/* Does `rounds` rounds in each of at most 64 threads; returns how many multiply-accumulates those were. */
uint64_t edgec_peak(uint64_t rounds, int threads) {
    struct part parts[64];
    pthread_t ids[64];
    if (threads < 1 || threads > 64) return 0;
    int started = 1;
    for (int t = 0; t < threads; ++t) parts[t] = (struct part){rounds, 1.0f, 0.0f};
    for (; started < threads; ++started)
        if (pthread_create(&ids[started], 0, run, &parts[started]) != 0) break;
    run(&parts[0]);
    for (int t = 1; t < started; ++t) pthread_join(ids[t], 0);
    return rounds * SUMS * LANES * (uint64_t)started;
}
