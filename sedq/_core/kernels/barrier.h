/* What the optimiser must not look through, for kernels on 512-bit vectors. */
#ifndef SEDQ_BARRIER_H
#define SEDQ_BARRIER_H

#ifdef SEDQ_EMULATE_AVX512 /* there are no such registers */
#define SEDQ_KEEP(x) ((void)0)
#define SEDQ_HIDE(x) __asm__ volatile("" : "+m"(x))
#else
/* x stays in its register */
#define SEDQ_KEEP(x) __asm__("" : "+v"(x))
/* nothing is known of x any more: what is computed from it is not merged with what was */
#define SEDQ_HIDE(x) __asm__ volatile("" : "+v"(x))
#endif

#endif
