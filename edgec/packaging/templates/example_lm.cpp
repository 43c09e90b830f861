// Continues a text with @ID@, from C++:  @PROGRAM@ @USAGE@
#include <cstdio>
#include <cstdlib>

#include "@ID@.h"

int main(int argc, char **argv) {
    if (argc != @ARGC@) return std::fprintf(stderr, "usage: %s @USAGE@\n", argv[0]), 2;
    @ID@::Model m;
    edgec_status status = m.@OPEN_CPP@;
@PROMPT@    const auto say = [](int32_t token, const char *text, size_t bytes) {
        if (text) std::fwrite(text, 1, bytes, stdout);
        else std::printf("%d ", int(token));
        return std::fflush(stdout) == 0;  // false stops
    };
    if (!status) status = m.@GENERATE@;
    std::puts("");
    if (status) std::fprintf(stderr, "%s: %s\n", edgec_status_text(status), m.error());
    return status != EDGEC_OK;
}
