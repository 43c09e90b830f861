/* Continues a text with @ID@, from plain C:  @PROGRAM@ @USAGE@ */
#include <stdio.h>
#include <stdlib.h>

#include "@ID@.h"

static int print_token(void *user, int32_t token, const char *text, size_t bytes) {
    (void)user;
    if (text) fwrite(text, 1, bytes, stdout);
    else printf("%d ", (int)token);
    return fflush(stdout) != 0; /* nonzero stops */
}

int main(int argc, char **argv) {
    @ID@_model m = {0};
    if (argc != @ARGC@) return fprintf(stderr, "usage: %s @USAGE@\n", argv[0]), 2;
    edgec_generate_options options = @ID@_options((uint32_t)atoi(argv[@LAST@]));
    options.on_token = print_token;
    edgec_status status = @OPEN_C@;
@PROMPT@    if (!status) status = @GENERATE@;
    puts("");
    if (status) fprintf(stderr, "%s: %s\n", edgec_status_text(status), @ID@_error(&m));
    @ID@_close(&m);
    return status != EDGEC_OK;
}
