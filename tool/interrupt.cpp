#include "interrupt.h"

#include <csignal>
#include <ctime>
#include <unistd.h>

#include "errors.h"

namespace tightkv::tool {

namespace {
volatile std::sig_atomic_t flag = 0;
timespec                   first; // when flag was set; only the handler reads it

// The first interrupt asks for an orderly end, a second one a second later ends at once. Closer together they are one: programs that
// start us (timeout, shells) send the signal to the process and again to its group.
void on_interrupt(int) {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!flag) {
        first = now;
        flag  = 1;
        return;
    }
    if ((now.tv_sec - first.tv_sec) * 1000 + (now.tv_nsec - first.tv_nsec) / 1000000 >= 1000) _exit(kExitInterrupted);
}
} // namespace

void install_interrupt_handler() {
    struct sigaction action = {};
    action.sa_handler       = on_interrupt;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return flag != 0; }

} // namespace tightkv::tool
