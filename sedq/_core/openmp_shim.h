/* The only contact with OpenMP. Without it the same calls answer for one thread. */
#ifndef SEDQ_OPENMP_SHIM_H
#define SEDQ_OPENMP_SHIM_H

#ifdef _OPENMP
#include <omp.h>
#define SEDQ_OPENMP 1
static inline int sedq_max_threads(void)
{
    return omp_get_max_threads();
}
#else
#define SEDQ_OPENMP 0
static inline int sedq_max_threads(void)
{
    return 1;
}
#endif

#endif
