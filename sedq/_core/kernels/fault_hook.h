/* Where a fault may strike inside a kernel.
 *
 * In the ordinary build both macros are empty: the fast kernels have no branch for faults. The kernels are compiled a
 * second time with SEDQ_FAULT_HOOK, into the module that sedq.faults loads; there the plan below says which bits of
 * which accumulator flip. */
#ifndef SEDQ_FAULT_HOOK_H
#define SEDQ_FAULT_HOOK_H

#include <stdint.h>

typedef struct {
    int64_t countdown; /* visits to let pass before the fault strikes; negative: disarmed */
    int64_t element;   /* which accumulator, taken modulo how many there are */
    uint32_t flip;     /* bits to flip */
    int64_t repeat;    /* how many visits in a row are struck */
    int64_t fired;     /* how many were */
} sedq_fault_plan;

#ifdef SEDQ_FAULT_HOOK
extern sedq_fault_plan sedq_tile_fault, sedq_bag_fault;

static inline void sedq_strike(sedq_fault_plan *plan, uint32_t *words, int64_t n)
{
    if (plan->countdown < 0 || n == 0)
        return;
    if (plan->countdown > 0) {
        plan->countdown--;
        return;
    }
    words[plan->element % n] ^= plan->flip;
    plan->fired++;
    if (--plan->repeat <= 0)
        plan->countdown = -1;
}

static inline void sedq_strike_tile(int32_t *tile, int rows, int width)
{
    int64_t element = sedq_tile_fault.element;
    if (sedq_tile_fault.countdown == 0) { /* rows of a tile lie SEDQ_NR apart */
        int64_t e = element % ((int64_t)rows * width);
        sedq_tile_fault.element = e / width * SEDQ_NR + e % width;
    }
    sedq_strike(&sedq_tile_fault, (uint32_t *)tile, (int64_t)rows * SEDQ_NR);
    sedq_tile_fault.element = element;
}
#define SEDQ_FAULT_TILE(tile, rows, width) sedq_strike_tile(tile, rows, width)
#define SEDQ_FAULT_BAG(words, n) sedq_strike(&sedq_bag_fault, (uint32_t *)(words), n)
#else
#define SEDQ_FAULT_TILE(tile, rows, width) ((void)0)
#define SEDQ_FAULT_BAG(words, n) ((void)0)
#endif

#endif
