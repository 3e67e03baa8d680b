/* Uses the installed library as a stranger would: version, one row there and back. */
#include <math.h>
#include <stdio.h>
#include <tightkv/tightkv.h>

int main(void) {
    float   x[64], y[64];
    uint8_t bytes[66];
    for (int i = 0; i < 64; i++) x[i] = (float)(i * i % 37) - 18.0f;
    if (tkv_row_bytes("turbo8", 64) != sizeof bytes || tkv_encode_row("turbo8", 64, x, bytes, NULL) != TKV_OK ||
        tkv_decode_row("turbo8", 64, bytes, y) != TKV_OK) {
        fprintf(stderr, "tightkv: %s\n", tkv_last_error());
        return 1;
    }
    for (int i = 0; i < 64; i++)
        if (fabsf(x[i] - y[i]) > 0.5f) return 2;
    printf("tightkv %s, %s\n", tkv_version(), tkv_isa());
    return 0;
}
