/* tiny_lm, compiled to a bundle and packaged by edgec 0.1.0. Generated: do not edit.
 *
 * A language model: tokens in, tokens out.
 */
#ifndef EDGEC_PACKAGE_TINY_LM_H
#define EDGEC_PACKAGE_TINY_LM_H

/* The runtime's functions have names of this package, so that a program can link several. */
#undef edgec_version
#define edgec_version tiny_lm_edgec_version
#undef edgec_status_text
#define edgec_status_text tiny_lm_edgec_status_text
#undef edgec_open
#define edgec_open tiny_lm_edgec_open
#undef edgec_open_buffer
#define edgec_open_buffer tiny_lm_edgec_open_buffer
#undef edgec_close
#define edgec_close tiny_lm_edgec_close
#undef edgec_model_get_info
#define edgec_model_get_info tiny_lm_edgec_model_get_info
#undef edgec_model_input
#define edgec_model_input tiny_lm_edgec_model_input
#undef edgec_model_output
#define edgec_model_output tiny_lm_edgec_model_output
#undef edgec_model_manifest
#define edgec_model_manifest tiny_lm_edgec_model_manifest
#undef edgec_verify
#define edgec_verify tiny_lm_edgec_verify
#undef edgec_selftest
#define edgec_selftest tiny_lm_edgec_selftest
#undef edgec_session_create
#define edgec_session_create tiny_lm_edgec_session_create
#undef edgec_session_destroy
#define edgec_session_destroy tiny_lm_edgec_session_destroy
#undef edgec_last_error
#define edgec_last_error tiny_lm_edgec_last_error
#undef edgec_session_memory
#define edgec_session_memory tiny_lm_edgec_session_memory
#undef edgec_session_reset
#define edgec_session_reset tiny_lm_edgec_session_reset
#undef edgec_session_position
#define edgec_session_position tiny_lm_edgec_session_position
#undef edgec_session_seek
#define edgec_session_seek tiny_lm_edgec_session_seek
#undef edgec_session_save
#define edgec_session_save tiny_lm_edgec_session_save
#undef edgec_session_load
#define edgec_session_load tiny_lm_edgec_session_load
#undef edgec_run
#define edgec_run tiny_lm_edgec_run
#undef edgec_step
#define edgec_step tiny_lm_edgec_step
#undef edgec_score
#define edgec_score tiny_lm_edgec_score
#undef edgec_generate
#define edgec_generate tiny_lm_edgec_generate
#undef edgec_tokenize
#define edgec_tokenize tiny_lm_edgec_tokenize
#undef edgec_detokenize
#define edgec_detokenize tiny_lm_edgec_detokenize
#undef edgec_profile_count
#define edgec_profile_count tiny_lm_edgec_profile_count
#undef edgec_profile_get
#define edgec_profile_get tiny_lm_edgec_profile_get
#undef edgec_profile_reset
#define edgec_profile_reset tiny_lm_edgec_profile_reset
#include "edgec_runtime.h"

#include <stdio.h>
#include <string.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TINY_LM_CONTEXT 32u
#define TINY_LM_VOCAB 300u

/* A model with one session. Initialize it with {0}; what fails leaves a sentence in `message`. */
typedef struct tiny_lm_model {
    edgec_model *model;
    edgec_session *session;
    char message[512];
} tiny_lm_model;

static inline void tiny_lm_close(tiny_lm_model *m) {
    edgec_session_destroy(m->session);
    edgec_close(m->model);
    m->model = NULL, m->session = NULL;
}

/* What the model answered when something failed. */
static inline const char *tiny_lm_error(const tiny_lm_model *m) { return m->message; }

static inline edgec_status tiny_lm_begin_(tiny_lm_model *m, edgec_status status, const edgec_session_options *options) {
    if (!status) status = edgec_session_create(m->model, options, &m->session, m->message, sizeof m->message);
    if (status) tiny_lm_close(m);
    return status;
}

static inline edgec_status tiny_lm_end_(tiny_lm_model *m, edgec_status status) {
    if (status) snprintf(m->message, sizeof m->message, "%s", edgec_last_error(m->session));
    return status;
}

/* Opens the bundle at `path`, which is mapped and not read. options: of the session; NULL for the defaults. */
static inline edgec_status tiny_lm_open(tiny_lm_model *m, const char *path, const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return tiny_lm_begin_(m, edgec_open(path, NULL, &m->model, m->message, sizeof m->message), options);
}

/* Opens a bundle in memory: 64-byte aligned, there until the model is closed. */
static inline edgec_status tiny_lm_open_buffer(tiny_lm_model *m, const void *data, uint64_t bytes,
                                            const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return tiny_lm_begin_(m, edgec_open_buffer(data, bytes, NULL, &m->model, m->message, sizeof m->message), options);
}

/* As tiny_lm_open, and only a bundle that the holder of the Ed25519 key (32 bytes) has signed. Reads the whole file. What
 * was packaged without signatures refuses every key. */
static inline edgec_status tiny_lm_open_signed(tiny_lm_model *m, const char *path, const uint8_t *public_key,
                                            const edgec_session_options *options) {
    edgec_open_options wanted;
    memset(m, 0, sizeof *m);
    memset(&wanted, 0, sizeof wanted);
    if (!public_key) {
        snprintf(m->message, sizeof m->message, "public_key: found NULL, wanted 32 bytes");
        return EDGEC_ERROR_ARGUMENT;
    }
    wanted.struct_size = sizeof wanted, wanted.public_key = public_key;
    return tiny_lm_begin_(m, edgec_open(path, &wanted, &m->model, m->message, sizeof m->message), options);
}

/* Options to change: greedy, `max_tokens` tokens. */
static inline edgec_generate_options tiny_lm_options(uint32_t max_tokens) {
    edgec_generate_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options, options.max_tokens = max_tokens, options.top_p = 1;
    return options;
}

/* Appends the tokens, then generates; options->on_token is called with each new one. *generated may be NULL. */
static inline edgec_status tiny_lm_generate_tokens(tiny_lm_model *m, const int32_t *tokens, uint32_t n,
                                                const edgec_generate_options *options, uint32_t *generated) {
    return tiny_lm_end_(m, edgec_generate(m->session, tokens, n, options, generated));
}

/* Appends tokens; logits (may be NULL) receives TINY_LM_VOCAB floats for the last one. */
static inline edgec_status tiny_lm_step(tiny_lm_model *m, const int32_t *tokens, uint32_t n, float *logits) {
    return tiny_lm_end_(m, edgec_step(m->session, tokens, n, logits));
}

/* Forgets everything that was said. */
static inline edgec_status tiny_lm_reset(tiny_lm_model *m) { return tiny_lm_end_(m, edgec_session_reset(m->session)); }

/* Appends a text (UTF-8), then generates, as tiny_lm_generate_tokens. Tokens that begin a text come where nothing was said
 * before. */
static inline edgec_status tiny_lm_generate(tiny_lm_model *m, const char *text, const edgec_generate_options *options,
                                         uint32_t *generated) {
    const int first = edgec_session_position(m->session) == 0;
    uint64_t n = 0;
    int32_t *tokens = NULL;
    edgec_status status = edgec_tokenize(m->model, text, strlen(text), first, NULL, &n);
    if (!status && n > TINY_LM_CONTEXT) status = EDGEC_ERROR_CONTEXT;
    if (!status && !(tokens = (int32_t *)malloc((size_t)(n + 1) * sizeof *tokens))) status = EDGEC_ERROR_MEMORY;
    if (!status) status = edgec_tokenize(m->model, text, strlen(text), first, tokens, &n);
    if (status) snprintf(m->message, sizeof m->message, "text: %s", edgec_status_text(status));
    else status = tiny_lm_generate_tokens(m, tokens, (uint32_t)n, options, generated);
    free(tokens);
    return status;
}

#ifdef __cplusplus
}  // extern "C"

namespace tiny_lm {

// The same, closed when it goes out of scope. One thread at a time.
class Model {
  public:
    Model() : m_() {}
    ~Model() { close(); }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    edgec_status open(const char *path, const edgec_session_options *options = nullptr) {
        close();
        return tiny_lm_open(&m_, path, options);
    }
    edgec_status open_signed(const char *path, const uint8_t *public_key,
                             const edgec_session_options *options = nullptr) {
        close();
        return tiny_lm_open_signed(&m_, path, public_key, options);
    }
    edgec_status open_buffer(const void *data, uint64_t bytes, const edgec_session_options *options = nullptr) {
        close();
        return tiny_lm_open_buffer(&m_, data, bytes, options);
    }

    // on_token(int32_t token, const char *text, size_t bytes): whether to go on. It must not throw.
    template <class OnToken>
    edgec_status generate_tokens(const int32_t *tokens, uint32_t n, edgec_generate_options options, OnToken &&on_token,
                                 uint32_t *generated = nullptr) {
        set(options, on_token);
        return tiny_lm_generate_tokens(&m_, tokens, n, &options, generated);
    }
    edgec_status step(const int32_t *tokens, uint32_t n, float *logits) { return tiny_lm_step(&m_, tokens, n, logits); }
    edgec_status reset() { return tiny_lm_reset(&m_); }
    template <class OnToken>
    edgec_status generate(const char *text, edgec_generate_options options, OnToken &&on_token,
                          uint32_t *generated = nullptr) {
        set(options, on_token);
        return tiny_lm_generate(&m_, text, &options, generated);
    }

    void close() { tiny_lm_close(&m_); }
    const char *error() const { return tiny_lm_error(&m_); }
    // For the rest of the runtime's interface.
    edgec_model *model() { return m_.model; }
    edgec_session *session() { return m_.session; }

  private:
    template <class OnToken>
    static void set(edgec_generate_options &options, OnToken &on_token) {
        options.user = const_cast<void *>(static_cast<const void *>(&on_token));
        options.on_token = [](void *user, int32_t token, const char *text, size_t bytes) -> int {
            return (*static_cast<OnToken *>(user))(token, text, bytes) ? 0 : 1;
        };
    }

    tiny_lm_model m_;
};

}  // namespace tiny_lm
#endif

#endif  /* EDGEC_PACKAGE_TINY_LM_H */
