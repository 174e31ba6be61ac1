#include "registry.h"
#ifdef SEDQ_FAULT_HOOK
#include "fault_sites.h"
#endif

#include <stddef.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

static void init_reference(sedq_context *c)
{
    SEDQ_INIT(gemm_reference)(c);
    SEDQ_INIT(embedding_reference)(c);
    SEDQ_INIT(again_reference)(c);
    SEDQ_INIT(dense_reference)(c);
}

/* What is not built is NULL in the table below. */
#ifdef SEDQ_BUILD_AVX2
static void init_avx2(sedq_context *c)
{
    init_reference(c);
    SEDQ_INIT(gemm_avx2)(c);
    SEDQ_INIT(epilogue_avx2)(c);
    SEDQ_INIT(embedding_avx2)(c);
    SEDQ_INIT(again_avx2)(c);
    SEDQ_INIT(scan_avx2)(c);
    SEDQ_INIT(dense_avx2)(c);
}
#else
#define init_avx2 NULL
#endif

#if defined SEDQ_BUILD_AVX2 && defined SEDQ_BUILD_AVXVNNI
static void init_avxvnni(sedq_context *c)
{
    init_avx2(c);
    SEDQ_INIT(gemm_avxvnni)(c);
}
#else
#define init_avxvnni NULL
#endif

/* What AVX-512 has no bag of its own for, AVX2 has: every machine with the one has the other. */
#ifdef SEDQ_BUILD_AVX2
#define AVX2_BAGS SEDQ_INIT(embedding_avx2)
#else
#define AVX2_BAGS(c) ((void)(c))
#endif

#ifdef SEDQ_BUILD_AVX512VNNI
static void init_avx512vnni(sedq_context *c)
{
    init_reference(c);
    AVX2_BAGS(c);
    SEDQ_INIT(gemm_avx512vnni)(c);
    SEDQ_INIT(epilogue_avx512vnni)(c);
    SEDQ_INIT(embedding_avx512vnni)(c);
#ifdef SEDQ_BUILD_AVX2
    SEDQ_INIT(again_avx2)(c); /* the second computation is to be another one, and its vectors are */
    SEDQ_INIT(scan_avx2)(c); /* what has AVX-512 has AVX2, and memory is no faster */
#endif
    SEDQ_INIT(dense_avx512vnni)(c);
}
#else
#define init_avx512vnni NULL
#endif

/* In the order of the table of instruction sets. */
static void (*const init[])(sedq_context *) = {init_reference, init_avx2, init_avxvnni, init_avx512vnni};

#ifdef SEDQ_FAULT_HOOK
void sedq_isa_context_hooked(int i, sedq_context *c)
{
    init[i](c);
    sedq_wrap_fault_sites(c);
}
#else

static int always(void)
{
    return 1;
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Every processor with AVX2 has it; older compilers don't know its name. */
static int has_f16c(void)
{
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

static int has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

#ifdef SEDQ_EMULATE_AVX512
#define has_avxvnni has_avx2
#define has_avx512vnni has_avx2
#else
static int has_avxvnni(void)
{
#if defined(__clang__) || __GNUC__ >= 12
    return has_avx2() && __builtin_cpu_supports("avxvnni");
#else
    return 0;
#endif
}

static int has_avx512vnni(void)
{
    __builtin_cpu_init();
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif
#else
static int never(void)
{
    return 0;
}
#define has_avx2 never
#define has_avxvnni never
#define has_avx512vnni never
#endif

#ifdef SEDQ_EMULATE_AVX512
enum { EMULATED = 1 };
#else
enum { EMULATED = 0 };
#endif

/* The instruction sets in order of preference: the last is best. */
static const struct {
    const char *name;
    int (*supported)(void);
    int emulated;
} isas[] = {
    {"reference", always, 0},
    {"avx2", has_avx2, 0},
    {"avxvnni", has_avxvnni, EMULATED},
    {"avx512vnni", has_avx512vnni, EMULATED},
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
    return init[i] != NULL;
}

int sedq_isa_supported(int i)
{
    return isas[i].supported();
}

int sedq_isa_emulated(int i)
{
    return isas[i].emulated;
}

void sedq_isa_context(int i, sedq_context *c)
{
    init[i](c);
}

void sedq_init_gemm_reference_scalar(sedq_context *);
void sedq_init_embedding_reference_scalar(sedq_context *);
void sedq_init_again_reference_scalar(sedq_context *);
void sedq_init_dense_reference_scalar(sedq_context *);

void sedq_scalar_context(sedq_context *c)
{
    sedq_init_gemm_reference_scalar(c);
    sedq_init_embedding_reference_scalar(c);
    sedq_init_again_reference_scalar(c);
    sedq_init_dense_reference_scalar(c);
}
#endif
