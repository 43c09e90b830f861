// Runs @ID@ once, from C++, on made-up values, and prints the outputs:  @PROGRAM@ @USAGE@
#include <cstdio>
#include <cstdlib>

#include "@ID@.h"

int main(int argc, char **argv) {
    if (argc != @ARGC@) return std::fprintf(stderr, "usage: %s @USAGE@\n", argv[0]), 2;
    (void)argv;
    int64_t i;
@BUFFERS@
    @ID@::Model m;
    edgec_status status = m.@OPEN_CPP@;
    if (!status) status = m.run(@CALL@);
    if (status) std::fprintf(stderr, "%s: %s\n", edgec_status_text(status), m.error());
@PRINTS@    return status != EDGEC_OK;
}
