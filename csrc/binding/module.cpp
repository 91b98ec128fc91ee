// SPDX-License-Identifier: Apache-2.0
// What every kernel module has besides its registrations: an empty Python module, so that `import` loads the library,
// and the table of registered signatures for the tests.
#include <Python.h>

#include "register.h"

#define SPECDEC_CONCAT_(a, b) a##b
#define SPECDEC_CONCAT(a, b) SPECDEC_CONCAT_(a, b)
#define SPECDEC_STRING_(a) #a
#define SPECDEC_STRING(a) SPECDEC_STRING_(a)

extern "C" __attribute__((visibility("default"))) const char* SPECDEC_CONCAT(specdec_signatures, SPECDEC_MODULE)() {
  return specdec::binding::signatures().c_str();
}

extern "C" __attribute__((visibility("default"))) PyObject* SPECDEC_CONCAT(PyInit_, SPECDEC_MODULE)() {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, SPECDEC_STRING(SPECDEC_MODULE), nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
