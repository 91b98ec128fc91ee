// SPDX-License-Identifier: Apache-2.0
// Run-time dispatch over instruction sets. Files in csrc/cpu/kernels are compiled once per instruction set with
// SPECDEC_ISA defined as the name of its namespace; everybody else calls through `SPECDEC_DISPATCH`.
//
// One-definition trap: inline and template code that is instantiated in several of these objects must live in the
// namespace of the instruction set (SPECDEC_ISA_BEGIN/END) or be static; otherwise the linker may hand a function that
// was compiled for AVX-512 to a caller on a machine without it.
#pragma once

#if defined(__x86_64__)
#define SPECDEC_ISA_LIST(X) X(baseline) X(avx2) X(avx512)
#else
#define SPECDEC_ISA_LIST(X) X(baseline)
#endif

#define SPECDEC_ISA_BEGIN  \
  namespace specdec::cpu { \
  namespace SPECDEC_ISA {
#define SPECDEC_ISA_END \
  }                     \
  }

namespace specdec::cpu {

enum class Isa { baseline, avx2, avx512 };

// The instruction set in use: the best one that this processor and operating system offer, or what the environment
// variable SPECDEC_CPU_ISA (baseline, avx2, avx512) lowers it to. Read once.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace specdec::cpu

// Declares `R name(args)` in the namespace of every instruction set.
#define SPECDEC_DECLARE_KERNEL(R, name, args) \
  namespace specdec::cpu::baseline {          \
  R name args;                                \
  }                                           \
  namespace specdec::cpu::avx2 {              \
  R name args;                                \
  }                                           \
  namespace specdec::cpu::avx512 {            \
  R name args;                                \
  }

// Calls the variant of `name` for the current instruction set.
#if defined(__x86_64__)
#define SPECDEC_DISPATCH(name, ...)                                                                         \
  (::specdec::cpu::current_isa() == ::specdec::cpu::Isa::avx512 ? ::specdec::cpu::avx512::name(__VA_ARGS__) \
   : ::specdec::cpu::current_isa() == ::specdec::cpu::Isa::avx2 ? ::specdec::cpu::avx2::name(__VA_ARGS__)   \
                                                                : ::specdec::cpu::baseline::name(__VA_ARGS__))
#else
#define SPECDEC_DISPATCH(name, ...) ::specdec::cpu::baseline::name(__VA_ARGS__)
#endif
