/* Faults in what kernels read and leave behind. */
#ifndef SEDQ_FAULT_SITES_H
#define SEDQ_FAULT_SITES_H

#include "context.h"

/* Put a wrapper that strikes around kernels of a hooked context. One instruction set at a time in each thread. */
void sedq_wrap_fault_sites(sedq_context *c);

#endif
