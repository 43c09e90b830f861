/* model, compiled to a bundle and packaged by edgec 0.1.0. Generated: do not edit.
 *
 * input "x": float32 [3, 40]
 * output "y": float32 [3, 24]
 */
#ifndef EDGEC_PACKAGE_MODEL_H
#define EDGEC_PACKAGE_MODEL_H

/* The runtime's functions have names of this package, so that a program can link several. */
#undef edgec_version
#define edgec_version model_edgec_version
#undef edgec_status_text
#define edgec_status_text model_edgec_status_text
#undef edgec_open
#define edgec_open model_edgec_open
#undef edgec_open_buffer
#define edgec_open_buffer model_edgec_open_buffer
#undef edgec_close
#define edgec_close model_edgec_close
#undef edgec_model_get_info
#define edgec_model_get_info model_edgec_model_get_info
#undef edgec_model_input
#define edgec_model_input model_edgec_model_input
#undef edgec_model_output
#define edgec_model_output model_edgec_model_output
#undef edgec_model_manifest
#define edgec_model_manifest model_edgec_model_manifest
#undef edgec_verify
#define edgec_verify model_edgec_verify
#undef edgec_selftest
#define edgec_selftest model_edgec_selftest
#undef edgec_session_create
#define edgec_session_create model_edgec_session_create
#undef edgec_session_destroy
#define edgec_session_destroy model_edgec_session_destroy
#undef edgec_last_error
#define edgec_last_error model_edgec_last_error
#undef edgec_session_memory
#define edgec_session_memory model_edgec_session_memory
#undef edgec_session_reset
#define edgec_session_reset model_edgec_session_reset
#undef edgec_session_position
#define edgec_session_position model_edgec_session_position
#undef edgec_session_seek
#define edgec_session_seek model_edgec_session_seek
#undef edgec_session_save
#define edgec_session_save model_edgec_session_save
#undef edgec_session_load
#define edgec_session_load model_edgec_session_load
#undef edgec_run
#define edgec_run model_edgec_run
#undef edgec_step
#define edgec_step model_edgec_step
#undef edgec_score
#define edgec_score model_edgec_score
#undef edgec_generate
#define edgec_generate model_edgec_generate
#undef edgec_tokenize
#define edgec_tokenize model_edgec_tokenize
#undef edgec_detokenize
#define edgec_detokenize model_edgec_detokenize
#undef edgec_profile_count
#define edgec_profile_count model_edgec_profile_count
#undef edgec_profile_get
#define edgec_profile_get model_edgec_profile_get
#undef edgec_profile_reset
#define edgec_profile_reset model_edgec_profile_reset
#include "edgec_runtime.h"

#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Values of "x". */
#define MODEL_X_COUNT ((int64_t)3 * (int64_t)40)
/* Values of "y". */
#define MODEL_Y_COUNT ((int64_t)3 * (int64_t)24)

/* A model with one session. Initialize it with {0}; what fails leaves a sentence in `message`. */
typedef struct model_model {
    edgec_model *model;
    edgec_session *session;
    char message[512];
} model_model;

static inline void model_close(model_model *m) {
    edgec_session_destroy(m->session);
    edgec_close(m->model);
    m->model = NULL, m->session = NULL;
}

/* What the model answered when something failed. */
static inline const char *model_error(const model_model *m) { return m->message; }

static inline edgec_status model_begin_(model_model *m, edgec_status status, const edgec_session_options *options) {
    if (!status) status = edgec_session_create(m->model, options, &m->session, m->message, sizeof m->message);
    if (status) model_close(m);
    return status;
}

static inline edgec_status model_end_(model_model *m, edgec_status status) {
    if (status) snprintf(m->message, sizeof m->message, "%s", edgec_last_error(m->session));
    return status;
}

/* Opens the bundle at `path`, which is mapped and not read. options: of the session; NULL for the defaults. */
static inline edgec_status model_open(model_model *m, const char *path, const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return model_begin_(m, edgec_open(path, NULL, &m->model, m->message, sizeof m->message), options);
}

/* Opens a bundle in memory: 64-byte aligned, there until the model is closed. */
static inline edgec_status model_open_buffer(model_model *m, const void *data, uint64_t bytes,
                                            const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return model_begin_(m, edgec_open_buffer(data, bytes, NULL, &m->model, m->message, sizeof m->message), options);
}

/* As model_open, and only a bundle that the holder of the Ed25519 key (32 bytes) has signed. Reads the whole file. What
 * was packaged without signatures refuses every key. */
static inline edgec_status model_open_signed(model_model *m, const char *path, const uint8_t *public_key,
                                            const edgec_session_options *options) {
    edgec_open_options wanted;
    memset(m, 0, sizeof *m);
    memset(&wanted, 0, sizeof wanted);
    if (!public_key) {
        snprintf(m->message, sizeof m->message, "public_key: found NULL, wanted 32 bytes");
        return EDGEC_ERROR_ARGUMENT;
    }
    wanted.struct_size = sizeof wanted, wanted.public_key = public_key;
    return model_begin_(m, edgec_open(path, &wanted, &m->model, m->message, sizeof m->message), options);
}

/* Runs the model. Every tensor is row-major and has as many values as the counts above say. */
static inline edgec_status model_run(model_model *m, const float *x, float *y) {
    edgec_tensor in[1];
    memset(in, 0, sizeof in);
    in[0].struct_size = sizeof in[0], in[0].dtype = EDGEC_F32, in[0].name = "x";
    in[0].data = (void *)x, in[0].bytes = (uint64_t)MODEL_X_COUNT * sizeof *x;
    in[0].rank = 2, in[0].shape[0] = 3, in[0].shape[1] = 40;
    edgec_tensor out[1];
    memset(out, 0, sizeof out);
    out[0].struct_size = sizeof out[0], out[0].dtype = EDGEC_F32, out[0].name = "y";
    out[0].data = y, out[0].bytes = (uint64_t)MODEL_Y_COUNT * sizeof *y;
    return model_end_(m, edgec_run(m->session, in, 1, out, 1));
}

#ifdef __cplusplus
}  // extern "C"

namespace model {

// The same, closed when it goes out of scope. One thread at a time.
class Model {
  public:
    Model() : m_() {}
    ~Model() { close(); }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    edgec_status open(const char *path, const edgec_session_options *options = nullptr) {
        close();
        return model_open(&m_, path, options);
    }
    edgec_status open_signed(const char *path, const uint8_t *public_key,
                             const edgec_session_options *options = nullptr) {
        close();
        return model_open_signed(&m_, path, public_key, options);
    }
    edgec_status open_buffer(const void *data, uint64_t bytes, const edgec_session_options *options = nullptr) {
        close();
        return model_open_buffer(&m_, data, bytes, options);
    }

    using XArray = float[3][40];
    using YArray = float[3][24];
    // The compiler checks the shapes.
    edgec_status run(const XArray &x, YArray &y) {
        return model_run(&m_, &x[0][0], &y[0][0]);
    }

    void close() { model_close(&m_); }
    const char *error() const { return model_error(&m_); }
    // For the rest of the runtime's interface.
    edgec_model *model() { return m_.model; }
    edgec_session *session() { return m_.session; }

  private:
    model_model m_;
};

}  // namespace model
#endif

#endif  /* EDGEC_PACKAGE_MODEL_H */
