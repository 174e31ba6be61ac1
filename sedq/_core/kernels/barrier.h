/* What the optimiser must not look through, for kernels on 512-bit vectors. */
#ifndef SEDQ_BARRIER_H
#define SEDQ_BARRIER_H

#ifdef SEDQ_EMULATE_AVX512 /* there are no such registers */
#define SEDQ_KEEP(x) ((void)0)
#define SEDQ_HIDE(x) __asm__ volatile("" : "+m"(x))
#define SEDQ_AFTER(x, y) __asm__ volatile("" : "+r"(x) : "m"(y))
#else
/* x stays in its register */
#define SEDQ_KEEP(x) __asm__("" : "+v"(x))
/* nothing is known of x any more: what is computed from it is not merged with what was */
#define SEDQ_HIDE(x) __asm__ volatile("" : "+v"(x))
/* nothing is known any more of x, an integer, and what is computed from it is computed after y, a vector */
#define SEDQ_AFTER(x, y) __asm__ volatile("" : "+r"(x) : "v"(y))
#endif

#endif
