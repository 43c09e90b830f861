/* edgec native runtime: C interface. C99 and C++; no globals, no exceptions, no abort.
 *
 * A model is an opened bundle (read-only, shareable between threads). A session owns the memory of one
 * conversation or one stream of runs; two sessions of one model may run on two threads, one session may not.
 * Every function that can fail returns a status. Those that take a message buffer explain a failure there, those
 * that take a session in edgec_last_error(session).
 *
 * Every struct that crosses the interface starts with `struct_size`, which the caller sets to sizeof of it, and grows
 * at its end. A caller built against an older header keeps working: what it does not know counts as zero, the default.
 * One built against a newer header works as long as it leaves zero what this library does not know (initialize structs
 * with = {0}); any other byte there is refused with EDGEC_ERROR_ARGUMENT and words that say that the library is the
 * older one, for an option such as a pinned key must not be ignored. Structs that are filled in get zeros there.
 * edgec_tensor, of which edgec_run takes arrays, must have exactly this library's size.
 */
#ifndef EDGEC_H
#define EDGEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define EDGEC_API __declspec(dllexport)
#else
#define EDGEC_API __attribute__((visibility("default")))
#endif

#define EDGEC_FORMAT_MAJOR 1
#define EDGEC_FORMAT_MINOR 0
#define EDGEC_MAX_RANK 8

typedef enum edgec_status {
    EDGEC_OK = 0,
    EDGEC_ERROR_ARGUMENT = 1,   /* a null pointer, a bad option, a wrong handle */
    EDGEC_ERROR_IO = 2,         /* the file cannot be opened, read or mapped */
    EDGEC_ERROR_FORMAT = 3,     /* not a bundle, damaged, or breaking a rule of the format */
    EDGEC_ERROR_VERSION = 4,    /* a bundle for a newer reader */
    EDGEC_ERROR_HASH = 5,       /* bytes do not match their SHA-256 */
    EDGEC_ERROR_MEMORY = 6,     /* an allocation failed */
    EDGEC_ERROR_LIMIT = 7,      /* max_memory or another limit of the caller would be exceeded */
    EDGEC_ERROR_TENSOR = 8,     /* wrong tensor name, dtype, rank, shape, strides, or token id */
    EDGEC_ERROR_CONTEXT = 9,    /* more tokens than the session's context holds */
    EDGEC_ERROR_UNSUPPORTED = 10, /* not possible for this model or in this build */
    EDGEC_ERROR_CANCELLED = 11, /* the callback asked to stop */
    EDGEC_ERROR_SELFTEST = 12,  /* a kernel disagrees with the scalar one, or a golden vector does not match */
    EDGEC_ERROR_FAULT = 13,     /* an index inside the data is out of range */
    EDGEC_ERROR_SIGNATURE = 14  /* no valid signature by the key that was asked for */
} edgec_status;

typedef enum edgec_dtype {
    EDGEC_F32 = 1, EDGEC_F16 = 2, EDGEC_BF16 = 3, EDGEC_I8 = 4, EDGEC_U8 = 5, EDGEC_I32 = 6, EDGEC_I64 = 7,
    EDGEC_BOOL = 8
} edgec_dtype;

typedef struct edgec_model edgec_model;
typedef struct edgec_session edgec_session;

/* A view of the caller's memory. strides are in elements; a null-equivalent (all zero) means row-major contiguous.
 * For outputs of edgec_run: data may be NULL, then rank and shape are filled in and nothing is copied. */
typedef struct edgec_tensor {
    uint32_t struct_size;
    uint32_t dtype; /* edgec_dtype */
    uint32_t rank;
    uint32_t reserved;
    int64_t shape[EDGEC_MAX_RANK];
    int64_t strides[EDGEC_MAX_RANK];
    void *data;
    uint64_t bytes; /* capacity of data */
    const char *name;
} edgec_tensor;

typedef struct edgec_allocator {
    uint32_t struct_size;
    void *(*allocate)(void *user, size_t bytes, size_t alignment); /* NULL on failure */
    void (*release)(void *user, void *memory, size_t bytes);
    void *user;
} edgec_allocator;

/* A caller's thread pool: run(user, work, work_arg, n) calls work(work_arg, i) for every i in 0..n-1, at most n at a
 * time, and returns when all are done. */
typedef struct edgec_threadpool {
    uint32_t struct_size;
    void (*run)(void *user, void (*work)(void *work_arg, uint32_t index), void *work_arg, uint32_t n);
    void *user;
} edgec_threadpool;

typedef struct edgec_open_options {
    uint32_t struct_size;
    uint32_t verify_weights;  /* 1: check the hashes of all weights now */
    uint32_t skip_selftest;   /* 1: do not compare the kernels of this CPU with the scalar ones */
    uint32_t reserved;
    const edgec_allocator *allocator; /* NULL: the C library's */
    /* 32 bytes, read during the call: an Ed25519 key. A bundle that it has not signed is refused with
     * EDGEC_ERROR_SIGNATURE before its contents are interpreted, and the hashes of all weights, through which the
     * signature covers them, are checked as by verify_weights. NULL: it does not matter who signed. The weights stay in
     * the file or buffer: whoever can write there while the model is open can change them after the check. */
    const uint8_t *public_key;
} edgec_open_options;

typedef struct edgec_session_options {
    uint32_t struct_size;
    uint32_t threads;     /* 0: one per core */
    uint64_t max_memory;  /* bytes the session may allocate; 0: no limit */
    uint32_t context;     /* tokens; 0: the model's maximum */
    uint32_t profile;     /* 1: time every call (see edgec_profile) */
    const edgec_allocator *allocator;   /* NULL: the model's */
    const edgec_threadpool *threadpool; /* NULL: the session's own threads */
} edgec_session_options;

typedef struct edgec_model_info {
    uint32_t struct_size;
    uint32_t kind;          /* 0 generic, 1 causal language model */
    uint32_t max_context, vocab_size, prefill_chunk, n_inputs, n_outputs, has_tokenizer;
    int32_t bos_token, eos_token; /* -1: none */
    uint64_t weight_bytes, file_bytes;
    const char *isa;        /* the instruction set in use: scalar, avx2, avx512, avx512vbmi, amx, neon, neondot, wasm */
    const char *warning;    /* empty, or what happened at open (e.g. self-test fell back to scalar) */
} edgec_model_info;

typedef struct edgec_memory {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t arena, scratch, state, other, total; /* bytes the session holds */
} edgec_memory;

/* One plan call as last profiled. */
typedef struct edgec_call_profile {
    uint32_t struct_size;
    uint32_t threads;
    const char *entry, *layer, *kernel;
    uint64_t count, nanoseconds; /* summed since the session was created or edgec_profile_reset */
    uint64_t bytes;              /* operand bytes of one execution at the newest shapes */
    const char *isa;             /* the instruction set whose body of the kernel runs */
    uint64_t waited;             /* nanoseconds of its threads, summed, in which they had no work: starting, waiting */
} edgec_call_profile;

typedef struct edgec_generate_options {
    uint32_t struct_size;
    uint32_t max_tokens;
    float temperature;  /* 0: greedy (the lowest id of the largest logits) */
    float top_p;        /* 1: off */
    uint32_t top_k;     /* 0: off */
    uint32_t ignore_eos;
    uint64_t seed;
    /* Called with each new token; text is its UTF-8 so far completed (may be empty), NULL without a tokenizer. Return
     * nonzero to stop: the call then returns EDGEC_ERROR_CANCELLED. May be NULL. */
    int (*on_token)(void *user, int32_t token, const char *text, size_t text_bytes);
    void *user;
    const volatile int *cancel; /* NULL, or set to nonzero from another thread to stop */
} edgec_generate_options;

EDGEC_API const char *edgec_version(void);
EDGEC_API const char *edgec_status_text(edgec_status status);

/* Opening. On failure *model is NULL and `message` (may be NULL) receives the reason, always NUL-terminated. The
 * buffer given to edgec_open_buffer must stay as it is until edgec_close, and be 64-byte aligned. */
EDGEC_API edgec_status edgec_open(const char *path, const edgec_open_options *options, edgec_model **model,
                                  char *message, size_t message_bytes);
EDGEC_API edgec_status edgec_open_buffer(const void *data, uint64_t bytes, const edgec_open_options *options,
                                         edgec_model **model, char *message, size_t message_bytes);
EDGEC_API void edgec_close(edgec_model *model); /* all its sessions must have been destroyed */

EDGEC_API edgec_status edgec_model_get_info(const edgec_model *model, edgec_model_info *info);
/* Declared inputs and outputs of a generic model: dtype, rank, name, shape (symbolic dims: their maximum). */
EDGEC_API edgec_status edgec_model_input(const edgec_model *model, uint32_t index, edgec_tensor *tensor);
EDGEC_API edgec_status edgec_model_output(const edgec_model *model, uint32_t index, edgec_tensor *tensor);
EDGEC_API edgec_status edgec_model_manifest(const edgec_model *model, const char **json, uint64_t *bytes);
EDGEC_API edgec_status edgec_verify(edgec_model *model); /* hashes of all weights */
/* Kernels against the scalar ones on synthetic data, and unless `golden` is NULL the compiler's golden vectors again, in
 * a session of their own with these options. max_memory bounds that session and the vectors' inputs and outputs
 * together, of the largest shape that the model declares; context and profile do not matter. */
EDGEC_API edgec_status edgec_selftest(edgec_model *model, const edgec_session_options *golden, char *message,
                                      size_t message_bytes);

EDGEC_API edgec_status edgec_session_create(edgec_model *model, const edgec_session_options *options,
                                            edgec_session **session, char *message, size_t message_bytes);
EDGEC_API void edgec_session_destroy(edgec_session *session);
EDGEC_API const char *edgec_last_error(const edgec_session *session);
EDGEC_API edgec_status edgec_session_memory(const edgec_session *session, edgec_memory *memory);
EDGEC_API edgec_status edgec_session_reset(edgec_session *session);
EDGEC_API uint32_t edgec_session_position(const edgec_session *session);
/* Forgets every token from `position` on; position <= the current one. */
EDGEC_API edgec_status edgec_session_seek(edgec_session *session, uint32_t position);
/* State to and from memory. save: *bytes is capacity in, size out; data NULL asks for the size. */
EDGEC_API edgec_status edgec_session_save(const edgec_session *session, void *data, uint64_t *bytes);
EDGEC_API edgec_status edgec_session_load(edgec_session *session, const void *data, uint64_t bytes);

/* Generic models: named tensors in any order; all inputs and at least one output must be given. An output may lie over
 * inputs, not over another output. How long a run takes is up to the model: for one that is not trusted, use a process
 * that can be ended. */
EDGEC_API edgec_status edgec_run(edgec_session *session, const edgec_tensor *inputs, uint32_t n_inputs,
                                 edgec_tensor *outputs, uint32_t n_outputs);

/* Language models. step: appends tokens; logits (may be NULL) receives vocab_size floats for the last one.
 * score: likewise, logits receives n x vocab_size floats, one row per token. A call that fails leaves the position
 * where it was. */
EDGEC_API edgec_status edgec_step(edgec_session *session, const int32_t *tokens, uint32_t n, float *logits);
EDGEC_API edgec_status edgec_score(edgec_session *session, const int32_t *tokens, uint32_t n, float *logits);
/* Appends the prompt (n >= 1), then generates; n + max_tokens must fit the rest of the context. The token that ends the
 * text is neither delivered nor counted. Afterwards the session holds the prompt and all *generated tokens (may be
 * NULL), also when the caller stopped it; stopped before the whole prompt was in, or after any other error, the
 * position is where it was. The callback must not use the session. */
EDGEC_API edgec_status edgec_generate(edgec_session *session, const int32_t *prompt, uint32_t n,
                                      const edgec_generate_options *options, uint32_t *generated);

/* Text. *count / *bytes: capacity in, size out; a NULL buffer asks for the size. add_special: with the beginning token
 * the tokenizer's own rules add. Invalid UTF-8 is refused. detokenize writes no terminating NUL. */
EDGEC_API edgec_status edgec_tokenize(const edgec_model *model, const char *text, uint64_t text_bytes, int add_special,
                                      int32_t *tokens, uint64_t *count);
EDGEC_API edgec_status edgec_detokenize(const edgec_model *model, const int32_t *tokens, uint64_t count, char *text,
                                        uint64_t *bytes);

EDGEC_API uint32_t edgec_profile_count(const edgec_session *session);
EDGEC_API edgec_status edgec_profile_get(const edgec_session *session, uint32_t index, edgec_call_profile *profile);
EDGEC_API void edgec_profile_reset(edgec_session *session);

#ifdef __cplusplus
}
#endif
#endif
