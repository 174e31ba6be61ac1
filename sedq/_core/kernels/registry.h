/* Which contexts there are: built (compiled in), and supported (by this CPU, or emulated on it in a test build).
 * Both must hold to run one. */
#ifndef SEDQ_REGISTRY_H
#define SEDQ_REGISTRY_H

#include "context.h"

int sedq_isa_count(void);
const char *sedq_isa_name(int i);
int sedq_isa_built(int i);
int sedq_isa_supported(int i);
int sedq_isa_emulated(int i);
/* Fill in context i; it must be built. The hooked build has the same function over the hooked kernels. */
#ifdef SEDQ_FAULT_HOOK
void sedq_isa_context_hooked(int i, sedq_context *c);
#else
void sedq_isa_context(int i, sedq_context *c);
/* The portable kernels, compiled without vector instructions: another code path than every context above. */
void sedq_scalar_context(sedq_context *c);
#endif

#endif
