// SPDX-License-Identifier: Apache-2.0
// What the tests read of the launches since they last asked: bytes of global memory through the wrappers, and launches.
#include "../control.h"

extern "C" __attribute__((visibility("default"))) void specdec_emulator_report(int64_t* read, int64_t* written,
                                                                               int64_t* launches) {
  const specdec::emulator::Report report = specdec::emulator::total();
  *read = report.global_bytes_read;
  *written = report.global_bytes_written;
  *launches = report.launches;
  specdec::emulator::reset_total();
}
