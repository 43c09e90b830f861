/* Runs @ID@ once, from plain C, on made-up values, and prints the outputs:  @PROGRAM@ @USAGE@ */
#include <stdio.h>
#include <stdlib.h>

#include "@ID@.h"

int main(int argc, char **argv) {
    @ID@_model m = {0};
    int64_t i;
    if (argc != @ARGC@) return fprintf(stderr, "usage: %s @USAGE@\n", argv[0]), 2;
    (void)argv;
@BUFFERS@
    edgec_status status = @OPEN_C@;
    if (!status) status = @ID@_run(&m, @CALL@);
    if (status) fprintf(stderr, "%s: %s\n", edgec_status_text(status), @ID@_error(&m));
@PRINTS@    @ID@_close(&m);
    return status != EDGEC_OK;
}
