#include "interrupt.h"

#include <csignal>
#include <unistd.h>

#include "errors.h"

namespace tightkv::tool {

namespace {
volatile std::sig_atomic_t flag = 0;

void on_interrupt(int) {
    if (flag) _exit(kExitInterrupted);
    flag = 1;
}
} // namespace

void install_interrupt_handler() {
    struct sigaction action = {};
    action.sa_handler       = on_interrupt;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
}

bool interrupted() { return flag != 0; }

} // namespace tightkv::tool
