// Ctrl-C: the first one asks the running command to stop and report, the second one ends the program at once.
#pragma once

namespace tightkv::tool {

void install_interrupt_handler();
bool interrupted(); // polled between steps, and by llama.cpp between operations

} // namespace tightkv::tool
