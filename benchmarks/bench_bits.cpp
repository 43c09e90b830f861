// Products with weights of few bits against the machine's own limits: one row of activations beside a streaming read of
// the same bytes, in turn, over more memory than any cache holds; many rows beside the machine's integer products, of
// AVX-512 VNNI or of vpmaddwd and vpaddd, in the same run. Where lookups end (BitsMethod::least) is where `rows` of two
// builds meet, one with an instruction set's numbers all 5 and one with all 17.
//
//     c++ -std=c++17 -O2 -fno-exceptions -fno-rtti -fno-math-errno -o bench_bits benchmarks/bench_bits.cpp kernels/view.cpp
//         kernels/dispatch.cpp kernels/contract/*.cpp kernels/isa/*.cpp -lpthread
//     ./bench_bits decode ISA THREADS
//     ./bench_bits rows ISA M...   (4096 x 4096; one thread; "fast" instead of "rows": 8-bit arithmetic where there is)
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <vector>

#include "../kernels/contract/bits.h"

using namespace edgec;

// Seconds; `own`: of this thread alone, so that what others do at the same time counts as little as it can.
static double now(bool own = false) {
    timespec t;
    clock_gettime(own ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// The median of the fastest three quarters.
static double typical(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() * 3 / 8];
}

struct Bench {
    int64_t n, k, m;
    int bits;
    int64_t count = 1, bytes = 0;
    uint8_t *w = nullptr;
    std::vector<float> x, y;
    View op[5];
    int64_t i[7];
    float f[2] = {};
    int32_t fault = 0;

    Bench(int64_t rows, int64_t columns, int64_t many, int b, int64_t total, bool fast)
        : n(rows), k(columns), m(many), bits(b) {
        i[0] = i[1] = 0, i[2] = n, i[3] = bits, i[4] = 128, i[5] = 0, i[6] = fast;
        BitsShape s = bits_shape(i + 2, k);
        bytes = s.tiles() * s.tile_bytes();
        count = std::max<int64_t>(1, total / bytes);
        const size_t all = (size_t)(bytes * count + 65536);
        w = (uint8_t *)mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (w == MAP_FAILED) exit(3);
        madvise(w, all, MADV_HUGEPAGE);
        uint64_t state = 88172645463325252ull;
        for (size_t at = 0; at + 8 <= all; at += 8) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            memcpy(w + at, &state, 8);
        }
        for (int64_t at = 0; at < bytes * count;)  // scales that are numbers
            for (int64_t g = 0; g < s.groups(); ++g) {
                at += s.code_bytes(s.group_chunks(g));
                for (int64_t e = 0; e < s.scale_bytes() / 2; ++e, at += 2) {
                    const uint16_t h = f32_to_f16(0.001f * (float)(1 + e * 37 % 64));
                    memcpy(w + at, &h, 2);
                }
            }
        x.resize((size_t)(m * k)), y.resize((size_t)(m * n));
        for (float &v : x) v = (float)(rand() % 2000 - 1000) / 1000;
        op[0] = View{y.data(), F32, PLAIN, 2, {m, n}};
        op[1] = View{x.data(), F32, PLAIN, 2, {m, k}};
        op[2] = View{w, U8, PLAIN, 1, {bytes}};
    }
    ~Bench() { munmap(w, (size_t)(bytes * count + 65536)); }
    Args args() { return {op, i, f, 5, 7, 2, &fault}; }
};

static uint64_t g_sink;
__attribute__((target_clones("avx512f", "avx2", "default"))) static void read_all(const uint8_t *p, int64_t n) {
    typedef uint64_t words __attribute__((vector_size(64)));
    words sum[4] = {};
    for (int64_t i = 0; i + 256 <= n; i += 256)
        for (int j = 0; j < 4; ++j) {
            __builtin_prefetch(p + i + 3072 + 64 * j, 0, 3);
            sum[j] += *(const words *)(p + i + 64 * j);
        }
    for (int j = 0; j < 4; ++j) g_sink += sum[j][0];
}

// A pass over all matrices by `threads` threads that meet before each matrix, as a pool's would.
struct Pass {
    Bench *bench;
    RunFn run;  // nullptr: read only
    int threads;
    std::vector<double> *times;
    std::vector<uint8_t *> scratch;
    int64_t waiting = 0;
};
struct Part {
    Pass *pass;
    int index;
};

static void meet(Pass *p, int64_t turn) {
    __atomic_add_fetch(&p->waiting, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&p->waiting, __ATOMIC_SEQ_CST) < turn * p->threads) {}
}
static void *pass_part(void *arg) {
    const Part part = *(Part *)arg;
    Pass &p = *part.pass;
    Bench &b = *p.bench;
    const BitsShape s = bits_shape(b.i + 2, b.k);
    const int64_t t0 = s.tiles() * part.index / p.threads, t1 = s.tiles() * (part.index + 1) / p.threads;
    double start = 0;
    for (int64_t c = 0; c <= b.count; ++c) {
        meet(&p, c + 1);
        if (part.index == 0) {
            const double t = now(p.threads == 1);
            if (c) p.times->push_back(t - start);
            start = t;
        }
        if (c == b.count) break;
        uint8_t *w = b.w + c * b.bytes;
        if (!p.run) {
            read_all(w + t0 * s.tile_bytes(), (t1 - t0) * s.tile_bytes());
            continue;
        }
        View op[5];
        memcpy(op, b.op, sizeof op);
        op[2].data = w;
        Args a = b.args();
        a.op = op;
        p.run(a, 0, 0, p.scratch[(size_t)part.index]);
        p.run(a, t0, t1, p.scratch[(size_t)part.index]);
    }
    return nullptr;
}
static void pass(Bench &b, RunFn run, int threads, std::vector<double> *times) {
    Pass p = {&b, run, threads, times, {}};
    const Args args = b.args();
    const size_t bytes = (size_t)(find_kernel("linear_bits")->scratch(args) + 63) / 64 * 64;
    std::vector<pthread_t> id((size_t)threads);
    std::vector<Part> part((size_t)threads);
    for (int t = 0; t < threads; ++t) p.scratch.push_back((uint8_t *)aligned_alloc(64, bytes));
    for (int t = 0; t < threads; ++t) part[(size_t)t] = {&p, t};
    for (int t = 1; t < threads; ++t)
        if (pthread_create(&id[(size_t)t], nullptr, pass_part, &part[(size_t)t])) exit(3);
    pass_part(&part[0]);
    for (int t = 1; t < threads; ++t) pthread_join(id[(size_t)t], nullptr);
    for (uint8_t *s : p.scratch) free(s);
}

static void decode(RunFn run, int threads) {
    const int64_t shapes[][2] = {{4096, 4096}, {11008, 4096}, {4096, 11008}};
    for (const auto &shape : shapes)
        for (const int bits : {2, 3, 4}) {
            Bench b(shape[0], shape[1], 1, bits, 640000000, false);
            std::vector<double> read, ours;
            for (int turn = 0; turn < 5; ++turn) {
                pass(b, nullptr, threads, &read);
                pass(b, run, threads, &ours);
            }
            const double r = typical(read), o = typical(ours);
            printf("%5lld x %5lld  %d bits  %4lld x %5.1f MB  read %5.1f GB/s  ours %5.1f GB/s  %3.0f %%\n", (long long)b.n,
                   (long long)b.k, bits, (long long)b.count, (double)b.bytes / 1e6, (double)b.bytes / r / 1e9,
                   (double)b.bytes / o / 1e9, 100 * r / o);
            fflush(stdout);
        }
}

// Multiplications per second of the instructions that add up products of integers, alone: of bytes where there is VNNI,
// else of pairs of 16 bits; 0 elsewhere. About a fifth of a millisecond.
static double integer_peak(const char **what) {
    *what = "no integer products";
#if defined(__x86_64__)
    const bool vnni = available_isas() >> AVX512VBMI & 1;
    if (!(available_isas() >> AVX2 & 1)) return 0;
    *what = vnni ? "vpdpbusd" : "vpmaddwd + vpaddd";
    constexpr int kRounds = 100000;
    const double start = now(true);
    for (int i = 0; vnni && i < kRounds; ++i)
        __asm__ volatile(
                "vpdpbusd %%zmm16, %%zmm17, %%zmm0\nvpdpbusd %%zmm16, %%zmm17, %%zmm1\nvpdpbusd %%zmm16, %%zmm17, %%zmm2\n"
                "vpdpbusd %%zmm16, %%zmm17, %%zmm3\nvpdpbusd %%zmm16, %%zmm17, %%zmm4\nvpdpbusd %%zmm16, %%zmm17, %%zmm5\n"
                "vpdpbusd %%zmm16, %%zmm17, %%zmm6\nvpdpbusd %%zmm16, %%zmm17, %%zmm7\nvpdpbusd %%zmm16, %%zmm17, %%zmm8\n"
                "vpdpbusd %%zmm16, %%zmm17, %%zmm9\nvpdpbusd %%zmm16, %%zmm17, %%zmm10\nvpdpbusd %%zmm16, %%zmm17, %%zmm11\n"
                : : : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
#define PAIR(n) "vpmaddwd %%ymm12, %%ymm13, %%ymm14\nvpaddd %%ymm14, %%ymm" n ", %%ymm" n "\n"
    for (int i = 0; !vnni && i < kRounds; ++i)
        __asm__ volatile(
                PAIR("0") PAIR("1") PAIR("2") PAIR("3") PAIR("4") PAIR("5")
                PAIR("6") PAIR("7") PAIR("8") PAIR("9") PAIR("10") PAIR("11")
                : : : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                      "xmm14");
#undef PAIR
    return 12.0 * (vnni ? 64 : 16) * kRounds / (now(true) - start);
#else
    return 0;
#endif
}

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

// Clocks change with time and with what runs beside: every product stands between two measurements of the peak.
static void rows(RunFn run, bool fast, int n, char **m) {
    const char *what;
    for (int i = 0; i < n; ++i)
        for (const int bits : {1, 2, 3, 4, 8}) {
            Bench b(4096, 4096, std::max(1, atoi(m[i])), bits, 1, fast);
            std::vector<double> times, shares;
            for (int turn = 0; turn < 15; ++turn) {
                double peak = integer_peak(&what);
                pass(b, run, 1, &times);
                peak = (peak + integer_peak(&what)) / 2;
                shares.push_back(peak > 0 ? (double)(b.m * b.n * b.k) / times.back() / peak : 0);
            }
            const double typical = median(times);
            printf("%4lld rows  %d bits  %8.3f ms  %5.0f G multiplications/s  %3.0f %% of %s\n", (long long)b.m, bits,
                   typical * 1e3, (double)(b.m * b.n * b.k) / typical / 1e9, 100 * median(shares), what);
            fflush(stdout);
        }
}

int main(int argc, char **argv) {
    Isa isa;
    if (argc < 4 || !parse_isa(argv[2], &isa) || !(available_isas() >> isa & 1)) {
        fprintf(stderr, "usage: bench_bits decode ISA THREADS | rows|fast ISA M...; instruction sets of this machine only\n");
        return 2;
    }
    const RunFn run = find_kernel("linear_bits")->run[isa];
    if (!strcmp(argv[1], "decode")) decode(run, std::max(1, atoi(argv[3])));
    else rows(run, !strcmp(argv[1], "fast"), argc - 3, argv + 3);
    return 0;
}
