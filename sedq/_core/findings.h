/* What checks found wrong during one call: a bounded list that threads append to. Entries beyond the bound are
 * counted only. */
#ifndef SEDQ_FINDINGS_H
#define SEDQ_FINDINGS_H

#include <stdint.h>

enum { SEDQ_MAX_FINDINGS = 64 };

/* Which check disagreed. */
enum {
    SEDQ_BAD_ACCUMULATOR = 1, /* sum of a row of C against the checksum */
    SEDQ_BAD_INPUT = 2,       /* sum of a row of A against the sum its writer took */
    SEDQ_BAD_OUTPUT = 3,      /* output read back against the sum before the store */
    SEDQ_BAD_PARAMETERS = 4,  /* parameters as loaded against their digest */
    SEDQ_BAD_EPILOGUE = 5,    /* two computations of the epilogue */
    SEDQ_BAD_COUNT = 6,       /* rows or bags verified against those asked for */
    SEDQ_BAD_DIGEST = 7,      /* rows of a table as read against their digests */
    SEDQ_BAD_SUM = 8,         /* pooled sum against the precomputed one */
    SEDQ_BAD_REPEAT = 9,      /* two accumulations of a bag, or two computations of a dense operator */
    SEDQ_BAD_OVERFLOW = 100   /* no detection by itself: the sums of a bag may overflow float32 without a fault */
};

typedef struct {
    int64_t row;
    double residual, limit;
    int kind;
} sedq_finding;

typedef struct {
    int64_t count;
    sedq_finding entry[SEDQ_MAX_FINDINGS];
} sedq_findings;

static inline void sedq_report(sedq_findings *f, int64_t row, int kind, double residual, double limit)
{
#ifdef __GNUC__
    const int64_t at = __atomic_fetch_add(&f->count, 1, __ATOMIC_RELAXED);
#else
    const int64_t at = f->count++;
#endif
    if (at < SEDQ_MAX_FINDINGS) {
        f->entry[at].row = row;
        f->entry[at].kind = kind;
        f->entry[at].residual = residual;
        f->entry[at].limit = limit;
    }
}

#endif
