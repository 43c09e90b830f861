/* Opens each bundle, runs it on fixed inputs and prints the instruction set, the warning and the numbers:
 * smoke BUNDLE... Exit status 3: a bundle was refused, with the reason on stderr. */
#include <stdio.h>
#include <stdlib.h>

#include "edgec.h"

enum { MOST = 8192, PORTS = 4 };
static float input[MOST], output[PORTS][MOST];

static int failed(const char *what, const char *reason) {
    fprintf(stderr, "%s: %s\n", what, reason);
    return 3;
}

static void show(const float *values, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) printf(" %.9g", (double)values[i]);
}

static int use(const char *path) {
    char message[512];
    edgec_model *model;
    edgec_session *session;
    edgec_model_info info = {0};
    edgec_session_options options = {0};
    info.struct_size = sizeof info;
    options.struct_size = sizeof options;
    options.threads = 2;
    if (edgec_open(path, NULL, &model, message, sizeof message)) return failed(path, message);
    if (edgec_model_get_info(model, &info)) return failed(path, "no info");
    if (edgec_session_create(model, &options, &session, message, sizeof message)) return failed(path, message);
    printf("%s|%s|", info.isa, info.warning);
    if (info.kind == 1) {
        static const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
        if (edgec_step(session, tokens, 10, output[0])) return failed(path, edgec_last_error(session));
        show(output[0], info.vocab_size);
    } else {
        edgec_tensor in = {0}, out[PORTS] = {{0}};
        in.struct_size = sizeof in;
        if (info.n_inputs != 1 || info.n_outputs > PORTS || edgec_model_input(model, 0, &in) || in.bytes > sizeof input)
            return failed(path, "a model of another kind");
        for (int i = 0; i < MOST; i++) input[i] = (float)(i % 17 - 8) / 8;
        in.data = input;
        for (uint32_t i = 0; i < info.n_outputs; i++) {
            out[i].struct_size = sizeof out[i];
            if (edgec_model_output(model, i, &out[i]) || out[i].bytes > sizeof output[i])
                return failed(path, "outputs of another size");
            out[i].data = output[i];
        }
        if (edgec_run(session, &in, 1, out, info.n_outputs)) return failed(path, edgec_last_error(session));
        for (uint32_t i = 0; i < info.n_outputs; i++)
            if (out[i].dtype == EDGEC_F32) show(output[i], out[i].bytes / sizeof(float));
    }
    printf("\n");
    edgec_session_destroy(session);
    edgec_close(model);
    return 0;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const int status = use(argv[i]);
        if (status) return status;
    }
    return 0;
}
