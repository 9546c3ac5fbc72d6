// SPDX-License-Identifier: BSD-3-Clause
// serve: the control loop of a running instance.
#pragma once

#include "core/control/instance.hh"

namespace weir {

// Readable when SIGINT, SIGTERM or SIGHUP came. To be called before any thread is made, so that no thread is interrupted instead.
Result<Fd> catch_stop_signals();

// Lets the instance go, answers questions and ticks until `stop` is readable, or until what comes in has come to its end. Prints when it is
// ready, each warning when it begins to hold, and the summary of a run whose sources have an end.
Result<> serve(Instance& instance, const Fd& stop);

}  // namespace weir
