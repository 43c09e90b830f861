// What stands in for parts that a package leaves out (edgec/packaging): the same functions, which refuse, when a bundle is
// opened or when they are called, and say so. Empty in the whole library.
#include "ed25519.h"
#include "sampler.h"
#include "session.h"

namespace edgec {

#if defined(EDGEC_NO_TOKENIZER)
edgec_status tokenizer_open(const uint8_t *, uint64_t, uint32_t, const Allocator &, Tokenizer **, Message &message) {
    return fail(message, EDGEC_ERROR_UNSUPPORTED,
                "open: found a bundle with a tokenizer, which this program was packaged without; package this bundle");
}
void tokenizer_close(Tokenizer *) {}
edgec_status tokenizer_encode(const Tokenizer *, const char *, uint64_t, bool, int32_t *, uint64_t *, Message &) {
    return EDGEC_ERROR_UNSUPPORTED;
}
edgec_status tokenizer_decode(const Tokenizer *, const int32_t *, uint64_t, char *, uint64_t *, Message &) {
    return EDGEC_ERROR_UNSUPPORTED;
}
int32_t tokenizer_bos(const Tokenizer *) { return -1; }
int32_t tokenizer_eos(const Tokenizer *) { return -1; }
bool tokenizer_is_stop(const Tokenizer *, int32_t) { return false; }
uint64_t text_stream_capacity(const Tokenizer *) { return 0; }
void text_stream_begin(TextStream *, const Tokenizer *) {}
uint64_t text_stream_push(TextStream *, int32_t, char *) { return 0; }
uint64_t text_stream_end(TextStream *, char *) { return 0; }
#endif

#if defined(EDGEC_NO_LANGUAGE_MODELS)
static edgec_status no_language_models(edgec_session *s) {
    return fail(s->message, EDGEC_ERROR_UNSUPPORTED, "this program was packaged without language models; use run");
}
edgec_status lm_step(edgec_session *s, const int32_t *, uint32_t, float *) { return no_language_models(s); }
edgec_status lm_score(edgec_session *s, const int32_t *, uint32_t, float *) { return no_language_models(s); }
edgec_status lm_generate(edgec_session *s, const int32_t *, uint32_t, const edgec_generate_options &, uint32_t *) {
    return no_language_models(s);
}
#endif

#if defined(EDGEC_NO_SIGNATURES)
bool ed25519_verify(const uint8_t *, const uint8_t *, const uint8_t *, uint64_t) { return false; }
#endif

}  // namespace edgec
