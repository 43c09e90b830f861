/* tiny_cnn, compiled to a bundle and packaged by edgec 0.1.0. Generated: do not edit.
 *
 * input "image": float32 [batch, 8, 8, 3]
 * output "probabilities": float32 [batch, 10]
 * batch: 1 to 4
 */
#ifndef EDGEC_PACKAGE_TINY_CNN_H
#define EDGEC_PACKAGE_TINY_CNN_H

/* The runtime's functions have names of this package, so that a program can link several. */
#undef edgec_version
#define edgec_version tiny_cnn_edgec_version
#undef edgec_status_text
#define edgec_status_text tiny_cnn_edgec_status_text
#undef edgec_open
#define edgec_open tiny_cnn_edgec_open
#undef edgec_open_buffer
#define edgec_open_buffer tiny_cnn_edgec_open_buffer
#undef edgec_close
#define edgec_close tiny_cnn_edgec_close
#undef edgec_model_get_info
#define edgec_model_get_info tiny_cnn_edgec_model_get_info
#undef edgec_model_input
#define edgec_model_input tiny_cnn_edgec_model_input
#undef edgec_model_output
#define edgec_model_output tiny_cnn_edgec_model_output
#undef edgec_model_manifest
#define edgec_model_manifest tiny_cnn_edgec_model_manifest
#undef edgec_verify
#define edgec_verify tiny_cnn_edgec_verify
#undef edgec_selftest
#define edgec_selftest tiny_cnn_edgec_selftest
#undef edgec_session_create
#define edgec_session_create tiny_cnn_edgec_session_create
#undef edgec_session_destroy
#define edgec_session_destroy tiny_cnn_edgec_session_destroy
#undef edgec_last_error
#define edgec_last_error tiny_cnn_edgec_last_error
#undef edgec_session_memory
#define edgec_session_memory tiny_cnn_edgec_session_memory
#undef edgec_session_reset
#define edgec_session_reset tiny_cnn_edgec_session_reset
#undef edgec_session_position
#define edgec_session_position tiny_cnn_edgec_session_position
#undef edgec_session_seek
#define edgec_session_seek tiny_cnn_edgec_session_seek
#undef edgec_session_save
#define edgec_session_save tiny_cnn_edgec_session_save
#undef edgec_session_load
#define edgec_session_load tiny_cnn_edgec_session_load
#undef edgec_run
#define edgec_run tiny_cnn_edgec_run
#undef edgec_step
#define edgec_step tiny_cnn_edgec_step
#undef edgec_score
#define edgec_score tiny_cnn_edgec_score
#undef edgec_generate
#define edgec_generate tiny_cnn_edgec_generate
#undef edgec_tokenize
#define edgec_tokenize tiny_cnn_edgec_tokenize
#undef edgec_detokenize
#define edgec_detokenize tiny_cnn_edgec_detokenize
#undef edgec_profile_count
#define edgec_profile_count tiny_cnn_edgec_profile_count
#undef edgec_profile_get
#define edgec_profile_get tiny_cnn_edgec_profile_get
#undef edgec_profile_reset
#define edgec_profile_reset tiny_cnn_edgec_profile_reset
#include "edgec_runtime.h"

#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The bundle, linked into the program (tiny_cnn_data.c). */
extern const unsigned char tiny_cnn_bundle[], tiny_cnn_bundle_end[];

/* Values of "image"; -1 for sizes that the model does not take. */
static inline int64_t tiny_cnn_image_count(int64_t batch) {
    if (batch < 1 || batch > 4) return -1;
    return (int64_t)((uint64_t)(batch) * (uint64_t)(8) * (uint64_t)(8) * (uint64_t)(3));
}
/* Values of "probabilities"; -1 for sizes that the model does not take. */
static inline int64_t tiny_cnn_probabilities_count(int64_t batch) {
    if (batch < 1 || batch > 4) return -1;
    return (int64_t)((uint64_t)(batch) * (uint64_t)(10));
}

/* A model with one session. Initialize it with {0}; what fails leaves a sentence in `message`. */
typedef struct tiny_cnn_model {
    edgec_model *model;
    edgec_session *session;
    char message[512];
} tiny_cnn_model;

static inline void tiny_cnn_close(tiny_cnn_model *m) {
    edgec_session_destroy(m->session);
    edgec_close(m->model);
    m->model = NULL, m->session = NULL;
}

/* What the model answered when something failed. */
static inline const char *tiny_cnn_error(const tiny_cnn_model *m) { return m->message; }

static inline edgec_status tiny_cnn_begin_(tiny_cnn_model *m, edgec_status status, const edgec_session_options *options) {
    if (!status) status = edgec_session_create(m->model, options, &m->session, m->message, sizeof m->message);
    if (status) tiny_cnn_close(m);
    return status;
}

static inline edgec_status tiny_cnn_end_(tiny_cnn_model *m, edgec_status status) {
    if (status) snprintf(m->message, sizeof m->message, "%s", edgec_last_error(m->session));
    return status;
}

/* Opens the bundle at `path`, which is mapped and not read. options: of the session; NULL for the defaults. */
static inline edgec_status tiny_cnn_open(tiny_cnn_model *m, const char *path, const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return tiny_cnn_begin_(m, edgec_open(path, NULL, &m->model, m->message, sizeof m->message), options);
}

/* Opens a bundle in memory: 64-byte aligned, there until the model is closed. */
static inline edgec_status tiny_cnn_open_buffer(tiny_cnn_model *m, const void *data, uint64_t bytes,
                                            const edgec_session_options *options) {
    memset(m, 0, sizeof *m);
    return tiny_cnn_begin_(m, edgec_open_buffer(data, bytes, NULL, &m->model, m->message, sizeof m->message), options);
}

/* As tiny_cnn_open, and only a bundle that the holder of the Ed25519 key (32 bytes) has signed. Reads the whole file. What
 * was packaged without signatures refuses every key. */
static inline edgec_status tiny_cnn_open_signed(tiny_cnn_model *m, const char *path, const uint8_t *public_key,
                                            const edgec_session_options *options) {
    edgec_open_options wanted;
    memset(m, 0, sizeof *m);
    memset(&wanted, 0, sizeof wanted);
    if (!public_key) {
        snprintf(m->message, sizeof m->message, "public_key: found NULL, wanted 32 bytes");
        return EDGEC_ERROR_ARGUMENT;
    }
    wanted.struct_size = sizeof wanted, wanted.public_key = public_key;
    return tiny_cnn_begin_(m, edgec_open(path, &wanted, &m->model, m->message, sizeof m->message), options);
}

/* Opens the bundle that is part of the program. */
static inline edgec_status tiny_cnn_open_linked(tiny_cnn_model *m, const edgec_session_options *options) {
    return tiny_cnn_open_buffer(m, tiny_cnn_bundle, (uint64_t)(tiny_cnn_bundle_end - tiny_cnn_bundle), options);
}

/* Runs the model. Every tensor is row-major and has as many values as the counts above say. */
static inline edgec_status tiny_cnn_run(tiny_cnn_model *m, int64_t batch, const float *image, float *probabilities) {
    if (batch < 1 || batch > 4) {
        snprintf(m->message, sizeof m->message, "batch: found %lld, wanted 1 to 4", (long long)batch);
        return EDGEC_ERROR_TENSOR;
    }
    edgec_tensor in[1];
    memset(in, 0, sizeof in);
    in[0].struct_size = sizeof in[0], in[0].dtype = EDGEC_F32, in[0].name = "image";
    in[0].data = (void *)image, in[0].bytes = (uint64_t)tiny_cnn_image_count(batch) * sizeof *image;
    in[0].rank = 4, in[0].shape[0] = batch, in[0].shape[1] = 8, in[0].shape[2] = 8, in[0].shape[3] = 3;
    edgec_tensor out[1];
    memset(out, 0, sizeof out);
    out[0].struct_size = sizeof out[0], out[0].dtype = EDGEC_F32, out[0].name = "probabilities";
    out[0].data = probabilities, out[0].bytes = (uint64_t)tiny_cnn_probabilities_count(batch) * sizeof *probabilities;
    return tiny_cnn_end_(m, edgec_run(m->session, in, 1, out, 1));
}

#ifdef __cplusplus
}  // extern "C"

namespace tiny_cnn {

// The same, closed when it goes out of scope. One thread at a time.
class Model {
  public:
    Model() : m_() {}
    ~Model() { close(); }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    edgec_status open(const char *path, const edgec_session_options *options = nullptr) {
        close();
        return tiny_cnn_open(&m_, path, options);
    }
    edgec_status open_signed(const char *path, const uint8_t *public_key,
                             const edgec_session_options *options = nullptr) {
        close();
        return tiny_cnn_open_signed(&m_, path, public_key, options);
    }
    edgec_status open_buffer(const void *data, uint64_t bytes, const edgec_session_options *options = nullptr) {
        close();
        return tiny_cnn_open_buffer(&m_, data, bytes, options);
    }
    edgec_status open_linked(const edgec_session_options *options = nullptr) {
        close();
        return tiny_cnn_open_linked(&m_, options);
    }

    edgec_status run(int64_t batch, const float *image, float *probabilities) { return tiny_cnn_run(&m_, batch, image, probabilities); }

    void close() { tiny_cnn_close(&m_); }
    const char *error() const { return tiny_cnn_error(&m_); }
    // For the rest of the runtime's interface.
    edgec_model *model() { return m_.model; }
    edgec_session *session() { return m_.session; }

  private:
    tiny_cnn_model m_;
};

}  // namespace tiny_cnn
#endif

#endif  /* EDGEC_PACKAGE_TINY_CNN_H */
