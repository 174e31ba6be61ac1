/* On which CPU this thread runs, for the record of a detection. */
#ifndef SEDQ_CPU_H
#define SEDQ_CPU_H

#ifdef __linux__
int sched_getcpu(void); /* glibc and musl, declared by <sched.h> only for _GNU_SOURCE */
static inline int sedq_current_cpu(void)
{
    return sched_getcpu();
}
#else
static inline int sedq_current_cpu(void)
{
    return -1;
}
#endif

#endif
