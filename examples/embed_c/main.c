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
    (void)user;
    (void)token;
    if (text) fwrite(text, 1, bytes, stdout);
    return fflush(stdout) != 0; /* nonzero stops the generation */
}

int main(int argc, char **argv) {
    char message[512];
    int32_t prompt[256];
    uint64_t n = 256;
    uint32_t produced = 0;
    edgec_model *model = NULL;
    edgec_session *session = NULL;
    edgec_session_options memory = {0};
    edgec_generate_options options = {0};
    edgec_status status;

    if (argc != 3) return fprintf(stderr, "usage: %s MODEL.edgec PROMPT\n", argv[0]), 2;
    if (edgec_open(argv[1], NULL, &model, message, sizeof message) != EDGEC_OK)
        return fprintf(stderr, "%s\n", message), 1;
    memory.struct_size = sizeof memory;
    memory.max_memory = (uint64_t)64 << 20;
    memory.context = 512;
    if (edgec_session_create(model, &memory, &session, message, sizeof message) != EDGEC_OK)
        return fprintf(stderr, "%s\n", message), 1;

    status = edgec_tokenize(model, argv[2], strlen(argv[2]), 1, prompt, &n);
    if (status != EDGEC_OK) return fprintf(stderr, "tokenize: %s\n", edgec_status_text(status)), 1;
    options.struct_size = sizeof options;
    options.max_tokens = 60;
    options.top_p = 1.0f;
    options.on_token = print_token;
    status = edgec_generate(session, prompt, (uint32_t)n, &options, &produced);
    printf("\n[%u tokens]\n", produced);
    if (status != EDGEC_OK) fprintf(stderr, "%s\n", edgec_last_error(session));
    edgec_session_destroy(session);
    edgec_close(model);
    return status != EDGEC_OK;
}
