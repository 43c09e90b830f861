/* How fast this machine reads memory: the sum of all 64-bit words of a buffer, by 1 or more threads. Loads are 32 or 64
 * bytes wide where the CPU has them, with the prefetch distance that measured best; a kernel is judged against this. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t words __attribute__((vector_size(64), aligned(64)));

struct part {
    const unsigned char *data;
    size_t bytes;
    uint64_t sum;
};

__attribute__((target_clones("avx512f", "avx2", "default"))) static uint64_t sum_of(const unsigned char *p, size_t n) {
    words a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 256 <= n; i += 256) {
        for (int k = 0; k < 4; ++k) {
            __builtin_prefetch(p + i + 3072 + 64 * k, 0, 3);
        }
        a += *(const words *)(p + i);
        b += *(const words *)(p + i + 64);
        c += *(const words *)(p + i + 128);
        d += *(const words *)(p + i + 192);
    }
    a += b + c + d;
    uint64_t sum = 0;
    for (int k = 0; k < 8; ++k) sum += a[k];
    return sum;
}

static void *run(void *arg) {
    struct part *p = arg;
    p->sum = sum_of(p->data, p->bytes);
    return NULL;
}

/* data: 64-byte aligned; at most 64 threads. The part of the last 256 * threads bytes that does not divide is not read. */
uint64_t edgec_probe(const unsigned char *data, size_t bytes, int threads) {
    struct part parts[64];
    pthread_t ids[64];
    if (threads < 1 || threads > 64) return 0;
    const size_t share = bytes / (size_t)threads / 256 * 256;
    int started = 1;
    for (int t = 0; t < threads; ++t) parts[t] = (struct part){data + share * (size_t)t, share, 0};
    for (; started < threads; ++started)
        if (pthread_create(&ids[started], NULL, run, &parts[started]) != 0) break;
    run(&parts[0]);
    uint64_t sum = parts[0].sum;
    for (int t = 1; t < started; ++t) {
        pthread_join(ids[t], NULL);
        sum += parts[t].sum;
    }
    for (int t = started; t < threads; ++t) sum += sum_of(parts[t].data, parts[t].bytes);
    return sum;
}
