// The methods of the lab, one file each, which has the source and the formula. `bits` is that of a code.
#pragma once
#include "lab/methods/method.h"

namespace tightkv::lab {

std::unique_ptr<Method> make_turbo(int bits);                   // coded_rows.cpp: this project's own formats, as control
std::unique_ptr<Method> make_cat(int bits, bool one_vector);    // cat.cpp
std::unique_ptr<Method> make_squat(int bits, bool one_vector);  // squat.cpp
std::unique_ptr<Method> make_innerq(int bits, bool one_vector); // innerq.cpp
std::unique_ptr<Method> make_qjl(int bits);                     // qjl.cpp
enum class Blocks { rotor, quaternion, givens };
std::unique_ptr<Method> make_rotor(int bits, Blocks blocks); // rotor.cpp
std::unique_ptr<Method> make_kivi(int bits);                 // kivi.cpp
std::unique_ptr<Method> make_outlier(int bits);              // outlier.cpp: bits + 1/2 on average

} // namespace tightkv::lab
