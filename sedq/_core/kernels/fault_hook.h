/* Where a fault may strike inside a kernel.
 *
 * In the ordinary build the macros are empty: the fast kernels have no branch for faults. The kernels are compiled a
 * second time with SEDQ_FAULT_HOOK, into the module that sedq.faults loads; there the plans below say which bits of
 * which word change. What a kernel reads or leaves behind needs no macro: fault_sites.c wraps the kernels of a context. */
#ifndef SEDQ_FAULT_HOOK_H
#define SEDQ_FAULT_HOOK_H

#include <stdint.h>
#include <string.h>

/* A struck word w becomes (((w & keep) | put) ^ flip) + add. */
typedef struct {
    int64_t countdown; /* visits until the fault strikes, that one included; 0: disarmed */
    int64_t element;   /* which word, taken modulo how many there are */
    uint32_t keep, put, flip, add;
    int pair;          /* whether the word's neighbour in its row takes -add */
    int64_t repeat;    /* how many visits in a row are struck */
    int64_t fired;     /* how many were */
    int64_t changed;   /* how many of these changed the word */
} sedq_fault_plan;

enum {
    SEDQ_FAULT_TILE_SITE,     /* accumulators of a product */
    SEDQ_FAULT_BAG_SITE,      /* accumulators of a bag */
    SEDQ_FAULT_EPILOGUE_SITE, /* outputs as requantisation has computed them, in registers */
    SEDQ_FAULT_ADDRESS_SITE,  /* where outputs of a tile or bag are stored: `add` bytes further, for a test that has the room */
    SEDQ_FAULT_STORE_SITE,    /* outputs of a product, as stored */
    SEDQ_FAULT_POOLED_SITE,   /* outputs of a bag, as stored */
    SEDQ_FAULT_CHECKS_SITE,   /* what the rows of a product must sum to */
    SEDQ_FAULT_SUMS_SITE,     /* integer sums of a bag */
    SEDQ_FAULT_CODES_SITE,    /* codes as quantisation wrote them */
    SEDQ_FAULT_DOTS_SITE,     /* dot products of the interaction */
    SEDQ_FAULT_INDEX_SITE,    /* indices, after their range was checked */
    SEDQ_FAULT_REQUEST_SITE,  /* which rows a bag pools: what its begin, end, indices and weights are off by, in elements */
    SEDQ_FAULT_CHUNK_SITE,    /* a chunk of bags, which is skipped */
    SEDQ_FAULT_READ_SITE,     /* outputs of 32 bits, stored, before they are read back */
    SEDQ_FAULT_ROWSUM_SITE,   /* sums of the rows of x, as they were made */
    SEDQ_FAULT_GIVEN_SITE,    /* sums of the rows of x, as the epilogue is given them: another copy than the checks have */
    SEDQ_FAULT_SITES
};

#ifdef SEDQ_FAULT_HOOK
#ifdef _MSC_VER
#define SEDQ_THREAD_LOCAL __declspec(thread)
#else
#define SEDQ_THREAD_LOCAL _Thread_local
#endif
/* of this thread: a plan counts the visits of the thread that armed it */
extern SEDQ_THREAD_LOCAL sedq_fault_plan sedq_fault_plans[SEDQ_FAULT_SITES];

static inline uint32_t sedq_struck(const sedq_fault_plan *plan, uint32_t word)
{
    return (((word & plan->keep) | plan->put) ^ plan->flip) + plan->add;
}

/* Whether the fault of a site is due at this visit; counts the visit. */
static inline int sedq_fault_due(sedq_fault_plan *plan)
{
    if (plan->countdown != 1) {
        plan->countdown -= plan->countdown > 1;
        return 0;
    }
    plan->fired++;
    if (--plan->repeat <= 0)
        plan->countdown = 0;
    return 1;
}

/* One of n words of `size` bytes (1, 4 or 8, of which the low 4 are struck). */
static inline void sedq_strike_word(sedq_fault_plan *plan, void *words, int64_t at, int size)
{
    char *p = (char *)words + at * size;
    uint32_t word = 0, struck;
    const size_t n = size < 4 ? (size_t)size : 4;
    memcpy(&word, p, n);
    struck = sedq_struck(plan, word);
    plan->changed += memcmp(&struck, &word, n) != 0;
    memcpy(p, &struck, n);
}

/* Strike rows x cols words of `size` bytes, `ld` words from row to row; the second of a pair is the next in its row. */
static inline void sedq_strike(int site, void *words, int64_t rows, int64_t cols, int64_t ld, int size)
{
    sedq_fault_plan *plan = &sedq_fault_plans[site];
    if (rows * cols == 0 || !sedq_fault_due(plan))
        return;
    const int64_t e = plan->element % (rows * cols), row = e / cols, col = e % cols;
    sedq_strike_word(plan, words, row * ld + col, size);
    if (plan->pair && cols > 1) {
        plan->add = 0u - plan->add;
        sedq_strike_word(plan, words, row * ld + (col + 1) % cols, size);
        plan->add = 0u - plan->add;
    }
}

/* The second computation of what a site counted, which is no visit: words first .. first + count of the n that there are. A fault
 * that is stuck, struck once and armed still, strikes whatever is in the lane that it is in. */
static inline void sedq_strike_again(int site, void *words, int64_t first, int64_t count, int64_t n, int size)
{
    sedq_fault_plan *plan = &sedq_fault_plans[site];
    if (!plan->fired || plan->countdown != 1 || n < 1)
        return;
    const int64_t at = plan->element % n - first;
    if (at >= 0 && at < count)
        sedq_strike_word(plan, words, at, size);
}

#define SEDQ_FAULT_TILE(tile, rows, width) sedq_strike(SEDQ_FAULT_TILE_SITE, tile, rows, width, SEDQ_NR, 4)
#define SEDQ_FAULT_BAG(words, n) sedq_strike(SEDQ_FAULT_BAG_SITE, words, 1, n, n, 4)
#define SEDQ_FAULT_EPILOGUE(words, n) sedq_strike(SEDQ_FAULT_EPILOGUE_SITE, words, 1, n, n, 4)
#define SEDQ_FAULT_EPILOGUE_AGAIN(words, n) sedq_strike_again(SEDQ_FAULT_EPILOGUE_SITE, words, 0, n, n, 4)
#define SEDQ_FAULT_BAG_AGAIN(words, first, count, n) sedq_strike_again(SEDQ_FAULT_BAG_SITE, words, first, count, n, 4)
#define SEDQ_FAULT_CODES_AGAIN(words, first, count, n)                                                                 \
    sedq_strike_again(SEDQ_FAULT_CODES_SITE, words, first, count, n, 4)
#else
#define SEDQ_FAULT_TILE(tile, rows, width) ((void)0)
#define SEDQ_FAULT_BAG(words, n) ((void)0)
#define SEDQ_FAULT_EPILOGUE(words, n) ((void)0)
#define SEDQ_FAULT_EPILOGUE_AGAIN(words, n) ((void)0)
#define SEDQ_FAULT_BAG_AGAIN(words, first, count, n) ((void)0)
#define SEDQ_FAULT_CODES_AGAIN(words, first, count, n) ((void)0)
#endif

#endif
