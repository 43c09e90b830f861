/* Continues a prompt with a compiled language model, from plain C.
 *
 *   edgec compile examples/models/prose_lm -o out
 *   cc -std=c99 -Iout/include examples/embed_c/main.c -Lout -ledgec -Wl,-rpath,"$PWD/out" -o generate
 *   ./generate out/model.edgec "It was a quiet evening"
 */
#include <edgec.h>
#include <stdio.h>
#include <string.h>

static int print_token(void *user, int32_t token, const char *text, size_t bytes) {
    (void)user, (void)token;
    fwrite(text, 1, bytes, stdout);
    return fflush(stdout) != 0; /* nonzero stops the generation */
}

int main(int argc, char **argv) {
    edgec_session_options limits = {.struct_size = sizeof limits, .context = 512, .max_memory = 64 << 20};
    edgec_generate_options options = {
        .struct_size = sizeof options, .max_tokens = 60, .top_p = 1, .on_token = print_token};
    edgec_model *model = NULL;
    edgec_session *session = NULL;
    int32_t prompt[256];
    uint64_t n = 256;
    char message[512];

    if (argc != 3) return fprintf(stderr, "usage: %s MODEL.edgec PROMPT\n", argv[0]), 2;
    edgec_status status = edgec_open(argv[1], NULL, &model, message, sizeof message);
    if (!status) status = edgec_session_create(model, &limits, &session, message, sizeof message);
    if (!status) status = edgec_tokenize(model, argv[2], strlen(argv[2]), 1, prompt, &n);
    if (!status) status = edgec_generate(session, prompt, (uint32_t)n, &options, NULL);
    if (session) puts("");
    if (status) fprintf(stderr, "%s: %s\n", edgec_status_text(status), session ? edgec_last_error(session) : message);
    edgec_session_destroy(session);
    edgec_close(model);
    return status != EDGEC_OK;
}
