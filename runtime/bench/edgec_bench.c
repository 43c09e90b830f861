/* Measures a bundle where it runs and prints one JSON document: times of every call of the plan, of whole runs with and
 * without profiling, memory, what the system tells about the machine, and how fast this machine reads and multiplies.
 *
 *   edgec_bench BUNDLE [--threads N] [--runs N] [--warmup N] [--min-ms N] [--prompt N] [--tokens N] [--probe-mb N]
 *
 * C99 and POSIX threads over edgec.h, also as WebAssembly with WASI (one thread). What the system does not tell is null.
 * `edgec profile` builds it for the device, copies it there and reads the document; docs/cli.md describes that. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if !defined(__wasi__)
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>
#endif

#include "edgec.h"

enum { MAX_THREADS = 1024, MAX_CPUS = 1024, MAX_SAMPLES = 2000, BLOCK = 5, MAX_TURNS = 512,
       MAX_PACKAGES = 16, MAX_ZONES = 64 };

static void die(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fprintf(stderr, "edgec_bench: ");
    vfprintf(stderr, format, rest);
    fprintf(stderr, "\n");
    va_end(rest);
    exit(1);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void *need(size_t bytes) {
    void *memory = NULL;
    if (bytes == 0) bytes = 64;
#if defined(__wasi__)
    memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
#else
    if (posix_memalign(&memory, 64, bytes) != 0) memory = NULL;
#endif
    if (!memory) die("out of memory: %" PRIu64 " bytes", (uint64_t)bytes);
    return memory;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}


/* ---- JSON ---------------------------------------------------------------------------------------------------- */

static void put_string(const char *text) {
    if (!text) {
        printf("null");
        return;
    }
    putchar('"');
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') printf("\\%c", c);
        else if (c < 32 || c == 127) printf("\\u%04x", c);
        else putchar(c);
    }
    putchar('"');
}

static void put_field(const char *name, const char *text) {
    printf("\"%s\":", name);
    put_string(text);
    putchar(',');
}

/* A negative number stands for one that nobody told. */
static void put_number(const char *name, int64_t value) {
    if (value < 0) printf("\"%s\":null,", name);
    else printf("\"%s\":%" PRId64 ",", name, value);
}

static void put_numbers(const char *name, const uint64_t *values, uint64_t n) {
    printf("\"%s\":[", name);
    for (uint64_t i = 0; i < n; i++) printf("%s%" PRIu64, i ? "," : "", values[i]);
    printf("]");
}

/* ---- What the system tells ------------------------------------------------------------------------------------- */

/* The first line of a small file without its end; 0 when it cannot be read or is empty. */
static int read_line(const char *path, char *line, int bytes) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    line[0] = 0;
    const int good = fgets(line, bytes, file) != NULL;
    fclose(file);
    line[strcspn(line, "\r\n")] = 0;
    return good && line[0];
}

static int64_t read_number(const char *path) {
    char line[64], *end;
    if (!read_line(path, line, sizeof line)) return -1;
    const long long value = strtoll(line, &end, 10);
    return end == line || value < 0 ? -1 : (int64_t)value;
}

/* The value of "KEY : value" in a file of such lines. */
static int read_key(const char *path, const char *key, char *value, size_t bytes) {
    FILE *file = fopen(path, "r");
    char line[512];
    int found = 0;
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !colon) continue;
        const char *from = line + strlen(key);
        while (*from == ' ' || *from == '\t') from++;
        if (from != colon) continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\r\n")] = 0;
        snprintf(value, bytes, "%s", colon);
        found = value[0] != 0;
    }
    fclose(file);
    return found;
}

static int64_t key_bytes(const char *key) { /* of /proc/self/status, which counts in kB */
    char value[64];
    return read_key("/proc/self/status", key, value, sizeof value) ? (int64_t)strtoll(value, NULL, 10) * 1024 : -1;
}

/* Of Linux; elsewhere everything is unknown. */
typedef struct {
    int64_t khz[MAX_CPUS], temperature, throttles, microjoules;
    int cpus;
} state_of_machine;

/* CPUs that there are, switched off ones too. */
static int cpu_numbers(void) {
#if defined(__wasi__)
    return 0;
#else
    const long n = sysconf(_SC_NPROCESSORS_CONF);
    return n < 1 ? 1 : n > MAX_CPUS ? MAX_CPUS : (int)n;
#endif
}

static state_of_machine look(void) {
    state_of_machine s;
    char path[128];
    s.temperature = s.throttles = -1, s.cpus = 0;
    s.microjoules = -1;
    for (int i = 0; i < MAX_PACKAGES; i++) { /* one counter for each package */
        snprintf(path, sizeof path, "/sys/class/powercap/intel-rapl:%d/energy_uj", i);
        const int64_t used = read_number(path);
        if (used >= 0) s.microjoules = (s.microjoules < 0 ? 0 : s.microjoules) + used;
    }
    for (int i = 0; i < MAX_ZONES; i++) {
        snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/temp", i);
        const int64_t t = read_number(path);
        if (t > s.temperature) s.temperature = t;
    }
    const int cpus = cpu_numbers();
    for (int i = 0; i < cpus; i++) {
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", i);
        s.khz[i] = read_number(path);
        if (s.khz[i] >= 0) s.cpus = i + 1;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/thermal_throttle/core_throttle_count", i);
        const int64_t count = read_number(path);
        if (count >= 0) s.throttles = (s.throttles < 0 ? 0 : s.throttles) + count;
    }
    return s;
}

static void put_khz(const char *name, const state_of_machine *s) {
    printf("\"%s\":", name);
    if (!s->cpus) {
        printf("null,");
        return;
    }
    for (int i = 0; i < s->cpus; i++) {
        printf("%c", i ? ',' : '[');
        if (s->khz[i] < 0) printf("null");
        else printf("%" PRId64, s->khz[i]);
    }
    printf("],");
}

static void put_device(const state_of_machine *before, const state_of_machine *after) {
    char text[512];
    const char *told = NULL;
    static const char *const names[] = {"model name", "Hardware", "Model", "uarch"};
    state_of_machine most = look();
    printf("\"device\":{");
    for (int i = 0; i < 4 && !told; i++)
        if (read_key("/proc/cpuinfo", names[i], text, sizeof text)) told = text;
    put_field("cpu", told);
#if defined(__wasi__)
    printf("\"os\":null,\"machine\":null,\"cores\":null,");
#else
    struct utsname os;
    if (uname(&os) == 0) {
        snprintf(text, sizeof text, "%.100s %.100s", os.sysname, os.release);
        put_field("os", text);
        put_field("machine", os.machine);
    } else {
        printf("\"os\":null,\"machine\":null,");
    }
    put_number("cores", sysconf(_SC_NPROCESSORS_ONLN));
#endif
    put_field("governor", read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", text, sizeof text) ? text
                                                                                                               : NULL);
    most.cpus = 0;
    const int cpus = cpu_numbers();
    for (int i = 0; i < cpus; i++) {
        snprintf(text, sizeof text, "/sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq", i);
        most.khz[i] = read_number(text);
        if (most.khz[i] >= 0) most.cpus = i + 1;
    }
    put_khz("max_khz", &most), put_khz("khz_before", before), put_khz("khz_after", after);
    put_number("millidegrees_before", before->temperature), put_number("millidegrees_after", after->temperature);
    put_number("throttles", before->throttles < 0 ? -1 : after->throttles - before->throttles);
    put_field("battery", read_line("/sys/class/power_supply/battery/status", text, sizeof text) ||
                                 read_line("/sys/class/power_supply/BAT0/status", text, sizeof text) ? text : NULL);
    /* A package's counter starts again at zero some time; then nothing can be said. */
    put_number("microjoules", before->microjoules < 0 ? -1 : after->microjoules - before->microjoules);
    printf("\"page_bytes\":");
#if defined(__wasi__)
    printf("65536}");
#else
    printf("%ld}", sysconf(_SC_PAGESIZE));
#endif
}

/* ---- How fast this machine reads and multiplies ------------------------------------------------------------------ */

/* Both probes of one width of vectors. read: reads `bytes` (a multiple of 256) once. multiply: `rounds` times twelve
 * independent chains of one multiply-add each, which hides its latency on every core we know. */
#define PROBES(NAME, WIDTH, ATTRIBUTE)                                                                                 \
    typedef uint64_t NAME##_words __attribute__((vector_size(WIDTH)));                                                 \
    typedef float NAME##_floats __attribute__((vector_size(WIDTH)));                                                   \
    ATTRIBUTE static uint64_t read_##NAME(const void *data, uint64_t bytes) {                                          \
        const NAME##_words *p = (const NAME##_words *)data, *const end = p + bytes / WIDTH;                            \
        NAME##_words a = {0}, b = {0}, c = {0}, d = {0};                                                               \
        for (; p < end; p += 4) a ^= p[0], b ^= p[1], c ^= p[2], d ^= p[3];                                            \
        a ^= b ^ c ^ d;                                                                                                \
        return a[0] ^ a[1];                                                                                            \
    }                                                                                                                  \
    ATTRIBUTE static float multiply_##NAME(uint64_t rounds, float factor, float term) {                                \
        NAME##_floats x[12], m, t;                                                                                     \
        float sum = 0;                                                                                                 \
        for (int i = 0; i < (int)(WIDTH / 4); i++) m[i] = factor, t[i] = term;                                         \
        for (int k = 0; k < 12; k++) x[k] = t * (float)k;                                                              \
        for (uint64_t r = 0; r < rounds; r++) {                                                                        \
            x[0] = x[0] * m + t, x[1] = x[1] * m + t, x[2] = x[2] * m + t, x[3] = x[3] * m + t;                        \
            x[4] = x[4] * m + t, x[5] = x[5] * m + t, x[6] = x[6] * m + t, x[7] = x[7] * m + t;                        \
            x[8] = x[8] * m + t, x[9] = x[9] * m + t, x[10] = x[10] * m + t, x[11] = x[11] * m + t;                    \
        }                                                                                                              \
        for (int k = 0; k < 12; k++) sum += x[k][0] + x[k][WIDTH / 4 - 1];                                             \
        return sum;                                                                                                    \
    }

PROBES(plain, 16, )
#if defined(__x86_64__)
PROBES(avx2, 32, __attribute__((target("avx2,fma"))))
PROBES(avx512, 64, __attribute__((target("avx512f"))))
#endif

typedef struct {
    uint64_t (*read)(const void *, uint64_t);
    float (*multiply)(uint64_t, float, float);
    int floats; /* per vector */
} probe_kind;

/* With the vectors of the instruction set that the model runs on. */
static probe_kind probe_of(const char *isa) {
    probe_kind kind = {read_plain, multiply_plain, 4};
#if defined(__x86_64__)
    if (strcmp(isa, "avx2") == 0) kind.read = read_avx2, kind.multiply = multiply_avx2, kind.floats = 8;
    else if (strncmp(isa, "avx512", 6) == 0 || strcmp(isa, "amx") == 0)
        kind.read = read_avx512, kind.multiply = multiply_avx512, kind.floats = 16;
#endif
    (void)isa;
    return kind;
}

typedef struct {
    probe_kind kind;
    const uint8_t *data; /* NULL: multiply */
    uint64_t bytes;
    double rate; /* bytes or operations per nanosecond, of the median turn */
    uint64_t kept;
} probe_job;

/* Short turns, of which the median counts: a turn that another program interrupts is one of few. */
static void *probe(void *arg) {
    probe_job *job = (probe_job *)arg;
    const uint64_t enough = 40000000, rounds = 5000;
    const uint64_t piece = job->bytes < 1 << 20 ? job->bytes : 1 << 20;
    double rate[MAX_TURNS];
    uint64_t at = 0;
    int turns = 0;
    const uint64_t start = now();
    /* The whole part at least once. */
    for (uint64_t sweeps = 0; turns < MAX_TURNS && (now() - start < enough || sweeps == 0); turns++) {
        const uint64_t before = now();
        uint64_t done;
        if (job->data) {
            job->kept ^= job->kind.read(job->data + at, piece), done = piece;
            at += piece;
            if (at + piece > job->bytes) at = 0, sweeps++;
        } else {
            /* The values stay near 1: neither subnormal, which would be slow, nor infinite. */
            job->kept += (uint64_t)(int64_t)job->kind.multiply(rounds, 0.5f, 0.5f);
            done = rounds * 12 * 2 * (uint64_t)job->kind.floats, sweeps++;
        }
        const uint64_t spent = now() - before;
        rate[turns] = (double)done / (double)(spent ? spent : 1);
    }
    qsort(rate, (size_t)turns, sizeof *rate, by_value);
    job->rate = rate[turns / 2];
    return NULL;
}

static volatile uint64_t kept; /* so that no compiler leaves the probes out */

/* Best of three of all threads together, in bytes or operations per nanosecond. */
static double probe_all(probe_kind kind, const uint8_t *data, uint64_t bytes, uint32_t threads) {
    double best = 0;
    const uint64_t part = bytes / threads / 256 * 256;
    for (int turn = 0; turn < 3; turn++) {
        probe_job job[MAX_THREADS];
        double rate = 0;
        for (uint32_t t = 0; t < threads; t++) {
            const probe_job one = {kind, data ? data + t * part : NULL, part, 0, 0};
            job[t] = one;
        }
#if defined(__wasi__)
        probe(&job[0]);
#else
        pthread_t thread[MAX_THREADS];
        for (uint32_t t = 1; t < threads; t++)
            if (pthread_create(&thread[t], NULL, probe, &job[t]) != 0) die("a thread of the probe cannot be started");
        probe(&job[0]);
        for (uint32_t t = 1; t < threads; t++) pthread_join(thread[t], NULL);
#endif
        for (uint32_t t = 0; t < threads; t++) rate += job[t].rate, kept ^= job[t].kept;
        best = rate > best ? rate : best;
    }
    return best;
}

static void put_roofline(const char *isa, uint32_t threads, uint64_t weights, uint64_t far) {
    const probe_kind kind = probe_of(isa);
    const uint64_t least = (uint64_t)threads << 16, most = (uint64_t)MAX_TURNS << 20;
    weights = weights < least ? least : weights > most ? most : weights;
    far = far < weights ? weights : far;
    uint8_t *memory = (uint8_t *)need(far);
    memset(memory, 1, far); /* every page exists */
    printf("\"roofline\":{\"threads\":%" PRIu32 ",\"vector_bits\":%d,", threads, kind.floats * 32);
    printf("\"weights_bytes\":%" PRIu64 ",\"weights_gb_s\":%.4f,", weights, probe_all(kind, memory, weights, threads));
    printf("\"memory_bytes\":%" PRIu64 ",\"memory_gb_s\":%.4f,", far, probe_all(kind, memory, far, threads));
    const uint64_t start = now();
    for (int i = 0; i < 1000; i++) kept += now();
    printf("\"clock_ns\":%.1f,", (double)(now() - start) / 1000);
    printf("\"multiply_add_gop_s\":%.4f}", probe_all(kind, NULL, 0, threads));
    free(memory);
}

/* ---- Runs ------------------------------------------------------------------------------------------------------ */

static edgec_session *make_session(edgec_model *model, uint32_t threads, uint32_t context, int profile) {
    edgec_session_options options = {0};
    edgec_session *session;
    char message[512];
    options.struct_size = sizeof options, options.threads = threads, options.context = context;
    options.profile = profile ? 1 : 0;
    if (edgec_session_create(model, &options, &session, message, sizeof message) != EDGEC_OK) die("%s", message);
    return session;
}

typedef struct {
    edgec_tensor *in, *out;
    uint32_t n_in, n_out;
    int32_t *ids;
    uint32_t prompt, tokens;
} work_t;

static uint64_t random_state = 88172645463325252u;
static uint32_t next_random(void) { /* xorshift64 */
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static edgec_tensor *tensors(const edgec_model *model, uint32_t n, int input) {
    static const int size[] = {0, 4, 2, 2, 1, 1, 4, 8, 1};
    edgec_tensor *all = (edgec_tensor *)need(n * sizeof *all);
    memset(all, 0, n * sizeof *all);
    for (uint32_t i = 0; i < n; i++) {
        edgec_tensor *t = &all[i];
        uint64_t count = 1;
        t->struct_size = sizeof *t;
        if ((input ? edgec_model_input : edgec_model_output)(model, i, t) != EDGEC_OK) die("port %" PRIu32, i);
        for (uint32_t k = 0; k < t->rank; k++) count *= (uint64_t)t->shape[k];
        t->bytes = count * (uint64_t)size[t->dtype];
        t->data = need((size_t)t->bytes);
        memset(t->data, 0, (size_t)t->bytes);
        /* About normal: the sum of four uniform numbers. Other types than float32 stay zero, indices among them. */
        if (input && t->dtype == EDGEC_F32)
            for (uint64_t k = 0; k < count; k++) {
                float sum = 0;
                for (int j = 0; j < 4; j++) sum += (float)next_random() / 4294967296.0f - 0.5f;
                ((float *)t->data)[k] = sum * 1.7320508f;
            }
    }
    return all;
}

/* One sample's work: 0 a run, 1 a prompt from an empty context, 2 a token behind what is there. */
static uint64_t one(edgec_session *session, const work_t *w, int kind, uint32_t at) {
    edgec_status status;
    if (kind != 2 && edgec_session_reset(session) != EDGEC_OK) die("%s", edgec_last_error(session));
    const uint64_t start = now();
    if (kind == 0) status = edgec_run(session, w->in, w->n_in, w->out, w->n_out);
    else if (kind == 1) status = edgec_step(session, w->ids, w->prompt, NULL);
    else status = edgec_step(session, w->ids + at, 1, NULL);
    const uint64_t spent = now() - start;
    if (status != EDGEC_OK) die("%s: %s", edgec_status_text(status), edgec_last_error(session));
    return spent;
}

typedef struct {
    uint64_t *wall, *plain, *call; /* samples; plain: without profiling; call: [samples, calls] */
    uint64_t *waited;              /* [calls], of all samples together */
    uint64_t n, n_plain;
} samples_t;

/* Blocks of runs with and without profiling in turn, the first of each untimed: so that caches hold what the session
 * needs. Of a language model a block of decoding begins with the prompt. */
static samples_t sample(edgec_session *with, edgec_session *without, const work_t *w, int kind, uint32_t calls,
                        uint64_t runs, uint64_t min_ns) {
    samples_t s = {NULL, NULL, NULL, NULL, 0, 0};
    const uint64_t start = now();
    const uint32_t block = kind == 2 ? w->tokens : BLOCK;
    s.wall = (uint64_t *)need(MAX_SAMPLES * sizeof *s.wall), s.plain = (uint64_t *)need(MAX_SAMPLES * sizeof *s.plain);
    s.call = (uint64_t *)need((size_t)MAX_SAMPLES * calls * sizeof *s.call);
    s.waited = (uint64_t *)need((size_t)calls * sizeof *s.waited);
    memset(s.waited, 0, (size_t)calls * sizeof *s.waited);
    for (uint64_t round = 0; (s.n < runs || now() - start < min_ns) && s.n + block <= MAX_SAMPLES; round++) {
        for (uint64_t turn = 0; turn < 2; turn++) {
            /* Which of the two is first changes from round to round. */
            edgec_session *session = (round + turn) & 1 ? without : with;
            one(session, w, kind == 0 ? 0 : 1, 0);
            if (kind != 2) one(session, w, kind, 0);
            for (uint32_t i = 0; i < block; i++) {
                if (session == with) edgec_profile_reset(session);
                const uint64_t spent = one(session, w, kind, w->prompt + i);
                /* On both sides, for worker threads fall asleep meanwhile and have to be woken by the next run. */
                for (uint32_t c = 0; c < calls; c++) {
                    edgec_call_profile p = {0};
                    p.struct_size = sizeof p;
                    if (edgec_profile_get(with, c, &p) != EDGEC_OK) die("call %" PRIu32 " cannot be read", c);
                    if (session == with) s.call[s.n * calls + c] = p.nanoseconds, s.waited[c] += p.waited;
                }
                if (session == with) s.wall[s.n++] = spent;
                else s.plain[s.n_plain++] = spent;
            }
        }
    }
    return s;
}

/* After its samples: the session's profile still is that of the last one, and says which calls it ran. */
static void put_test(const char *name, edgec_session *with, const samples_t *s, uint32_t calls, uint64_t work,
                     uint64_t position) {
    uint64_t *column = (uint64_t *)need(s->n * sizeof *column);
    int first = 1;
    printf("{\"name\":\"%s\",\"work\":%" PRIu64 ",\"position\":%" PRIu64 ",", name, work, position);
    put_numbers("wall_ns", s->wall, s->n), putchar(',');
    put_numbers("plain_ns", s->plain, s->n_plain);
    printf(",\"calls\":[");
    for (uint32_t c = 0; c < calls; c++) {
        edgec_call_profile p = {0};
        p.struct_size = sizeof p;
        if (edgec_profile_get(with, c, &p) != EDGEC_OK) die("call %" PRIu32 " cannot be read", c);
        if (p.count == 0) continue;
        printf("%s{\"index\":%" PRIu32 ",", first ? "" : ",\n", c);
        put_field("entry", p.entry), put_field("layer", p.layer), put_field("kernel", p.kernel), put_field("isa", p.isa);
        printf("\"threads\":%" PRIu32 ",\"count\":%" PRIu64 ",", p.threads, p.count);
        printf("\"waited_ns\":%" PRIu64 ",", s->waited[c]);
        for (uint64_t i = 0; i < s->n; i++) column[i] = s->call[i * calls + c];
        put_numbers("ns", column, s->n);
        printf("}");
        first = 0;
    }
    printf("]}");
    free(column);
}

static uint64_t option(char **value, const char *name, uint64_t least, uint64_t most) {
    char *end;
    if (!*value) die("%s wants a number", name);
    const unsigned long long n = strtoull(*value, &end, 10);
    if (end == *value || *end || (*value)[0] == '-' || n < least || n > most)
        die("%s: found '%s', wanted %" PRIu64 "..%" PRIu64, name, *value, least, most);
    return n;
}

int main(int argc, char **argv) {
    uint64_t threads = 0, runs = 20, warmup = 3, min_ms = 300, prompt = 128, tokens = 32, probe_mb = 64;
    if (argc < 2 || argv[1][0] == '-') die("wanted BUNDLE [options]; found %s", argc < 2 ? "nothing" : argv[1]);
    for (int i = 2; i < argc; i += 2) {
        char **value = &argv[i + 1]; /* argv ends with NULL */
        if (strcmp(argv[i], "--threads") == 0) threads = option(value, argv[i], 0, MAX_THREADS);
        else if (strcmp(argv[i], "--runs") == 0) runs = option(value, argv[i], 1, MAX_SAMPLES);
        else if (strcmp(argv[i], "--warmup") == 0) warmup = option(value, argv[i], 0, 1000);
        else if (strcmp(argv[i], "--min-ms") == 0) min_ms = option(value, argv[i], 0, 600000);
        else if (strcmp(argv[i], "--prompt") == 0) prompt = option(value, argv[i], 1, 1 << 20);
        else if (strcmp(argv[i], "--tokens") == 0) tokens = option(value, argv[i], 1, MAX_SAMPLES);
        else if (strcmp(argv[i], "--probe-mb") == 0) probe_mb = option(value, argv[i], 1, 4096);
        else die("found %s, wanted --threads, --runs, --warmup, --min-ms, --prompt, --tokens or --probe-mb", argv[i]);
    }
#if defined(__wasi__)
    threads = 1;
#else
    if (threads == 0) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
        cpu_set_t mine; /* those that this process may use, as under taskset */
        if (sched_getaffinity(0, sizeof mine, &mine) == 0) cores = CPU_COUNT(&mine);
#endif
        threads = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (uint64_t)cores;
    }
#endif
    char message[512];
    edgec_model *model;
    uint64_t start = now();
    if (edgec_open(argv[1], NULL, &model, message, sizeof message) != EDGEC_OK) die("%s", message);
    const uint64_t open_ns = now() - start;
    edgec_model_info info = {0};
    info.struct_size = sizeof info;
    if (edgec_model_get_info(model, &info) != EDGEC_OK) die("no information about the model");
    const int language = info.kind == 1;
    if (language && prompt + tokens > info.max_context)
        die("a prompt of %" PRIu64 " and %" PRIu64 " tokens do not fit the context of %" PRIu32, prompt, tokens,
            info.max_context);
    const uint32_t context = language ? (uint32_t)(prompt + tokens) : 0;
    work_t w = {NULL, NULL, info.n_inputs, info.n_outputs, NULL, (uint32_t)prompt, (uint32_t)tokens};
    if (language) {
        w.ids = (int32_t *)need(context * sizeof *w.ids);
        for (uint32_t i = 0; i < context; i++) w.ids[i] = (int32_t)(next_random() % info.vocab_size);
    } else {
        w.in = tensors(model, w.n_in, 1), w.out = tensors(model, w.n_out, 0);
    }
    start = now();
    edgec_session *with = make_session(model, (uint32_t)threads, context, 1);
    const uint64_t session_ns = now() - start;
    const uint64_t cold_ns = one(with, &w, language ? 1 : 0, 0);
    edgec_memory memory = {0};
    memory.struct_size = sizeof memory;
    if (edgec_session_memory(with, &memory) != EDGEC_OK) die("no figures about memory");
    for (uint64_t i = 0; i < warmup; i++) one(with, &w, language ? 1 : 0, 0);
    /* Before the second session and the probes exist, which are the measurement's and not the model's. */
    int64_t peak = key_bytes("VmHWM");
#if defined(__APPLE__)
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0) peak = (int64_t)usage.ru_maxrss;
#endif
    const int64_t own = key_bytes("RssAnon"), mapped = key_bytes("RssFile");
    edgec_session *without = make_session(model, (uint32_t)threads, context, 0);
    for (uint64_t i = 0; i < warmup; i++) one(without, &w, language ? 1 : 0, 0);

    const uint32_t calls = edgec_profile_count(with);
    const state_of_machine before = look();
    printf("{\"edgec_bench\":1,");
    put_field("edgec_version", edgec_version()), put_field("isa", info.isa), put_field("warning", info.warning);
    printf("\"kind\":%" PRIu32 ",\"threads\":%" PRIu64 ",\"context\":%" PRIu32 ",\"prefill_chunk\":%" PRIu32
           ",\"weight_bytes\":%" PRIu64 ",\"file_bytes\":%" PRIu64 ",\n", info.kind, threads, context,
           info.prefill_chunk, info.weight_bytes, info.file_bytes);
    printf("\"phases\":{\"open_ns\":%" PRIu64 ",\"session_ns\":%" PRIu64 ",\"first_run_ns\":%" PRIu64 "},\n", open_ns,
           session_ns, cold_ns);
    printf("\"memory\":{\"arena\":%" PRIu64 ",\"scratch\":%" PRIu64 ",\"state\":%" PRIu64 ",\"other\":%" PRIu64
           ",\"session\":%" PRIu64 ",", memory.arena, memory.scratch, memory.state, memory.other, memory.total);
    put_number("resident_own", own), put_number("resident_mapped", mapped);
    printf("\"resident_peak\":");
    if (peak < 0) printf("null},\n");
    else printf("%" PRId64 "},\n", peak);
    printf("\"tests\":[");
    for (int kind = language ? 1 : 0; kind <= (language ? 2 : 0); kind++) {
        static const char *const names[] = {"run", "prefill", "decode"};
        samples_t s = sample(with, without, &w, kind, calls, runs, min_ms * 1000000u);
        if (kind == 2) putchar(',');
        put_test(names[kind], with, &s, calls, kind == 1 ? prompt : 1, kind == 2 ? prompt : 0);
        free(s.wall), free(s.plain), free(s.call), free(s.waited);
    }
    printf("],\n");
    const state_of_machine after = look();
    put_roofline(info.isa, (uint32_t)threads, info.weight_bytes, probe_mb << 20);
    printf(",\n");
    put_device(&before, &after);
    printf("}\n");
    edgec_session_destroy(with), edgec_session_destroy(without);
    edgec_close(model);
    return ferror(stdout) || fflush(stdout) ? 1 : 0;
}
