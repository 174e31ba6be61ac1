#include "registry.h"
#include "fault_hook.h"

#include <stddef.h>

#ifdef SEDQ_FAULT_HOOK
sedq_fault_plan sedq_tile_fault = {-1, 0, 0, 0, 0}, sedq_bag_fault = {-1, 0, 0, 0, 0};
#endif

static void init_reference(sedq_context *c)
{
    SEDQ_INIT(gemm_reference)(c);
    SEDQ_INIT(embedding_reference)(c);
    SEDQ_INIT(dense_reference)(c);
}

#ifdef SEDQ_BUILD_AVX512VNNI
static void init_avx512vnni(sedq_context *c)
{
    init_reference(c);
    SEDQ_INIT(gemm_avx512vnni)(c);
    SEDQ_INIT(embedding_avx512vnni)(c);
    SEDQ_INIT(dense_avx512vnni)(c);
}
#endif

#ifdef SEDQ_FAULT_HOOK
static void (*const init[])(sedq_context *) = {
    init_reference,
#ifdef SEDQ_BUILD_AVX512VNNI
    init_avx512vnni,
#else
    NULL,
#endif
};

void sedq_isa_context_hooked(int i, sedq_context *c)
{
    init[i](c);
}
#else

static int always(void)
{
    return 1;
}

static int has_avx512vnni(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

/* In order of preference, the last is best. */
static const struct {
    const char *name;
    void (*init)(sedq_context *);
    int (*supported)(void);
} isas[] = {
    {"reference", init_reference, always},
#ifdef SEDQ_BUILD_AVX512VNNI
    {"avx512vnni", init_avx512vnni, has_avx512vnni},
#else
    {"avx512vnni", NULL, has_avx512vnni},
#endif
};

int sedq_isa_count(void)
{
    return (int)(sizeof isas / sizeof *isas);
}

const char *sedq_isa_name(int i)
{
    return isas[i].name;
}

int sedq_isa_built(int i)
{
    return isas[i].init != NULL;
}

int sedq_isa_supported(int i)
{
    return isas[i].supported();
}

void sedq_isa_context(int i, sedq_context *c)
{
    isas[i].init(c);
}
#endif
