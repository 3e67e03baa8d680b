// Preloaded into the tool, it makes the host another one. MEDDLE says how:
//   ops      its operation codes have other names: no host that the adapter knows
//   logits   every context but the first computes something else, by the smallest step of one logit
// Without MEDDLE everything is as before.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int meddle(const char* how) {
    const char* asked = getenv("MEDDLE");
    return asked && strcmp(asked, how) == 0;
}

const char* ggml_op_name(int op) {
    static const char* (*real)(int);
    if (!real) real = (const char* (*)(int))dlsym(RTLD_NEXT, "ggml_op_name");
    return meddle("ops") ? "ANOTHER_OP" : real(op);
}

float* llama_get_logits_ith(void* context, int i) {
    static float* (*real)(void*, int);
    static const void* first;
    if (!real) real = (float* (*)(void*, int))dlsym(RTLD_NEXT, "llama_get_logits_ith");
    if (!first) first = context;
    float* logits = real(context, i);
    if (logits && context != first && meddle("logits")) logits[0] = nextafterf(logits[0], INFINITY);
    return logits;
}
