"""Bags of many tables in one parallel region.

::

    tables t = 0 .. T - 1, each with bags of the same B requests
        |
        |  cut each table's bags into chunks; the chunks of all tables, most look-ups first, go to whichever thread is free
        |  chunk: as of one table (_embedding.run_chunk)
        v
    out (B, sum of dims), table t in columns of its own; what was found wrong, by table
"""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t

import numpy as np

from sedq._core._dispatch cimport SEDQ_BAD_COUNT, Context, findings_list, sedq_findings, sedq_report, threads_for
from sedq._core._embedding cimport CHUNK, TWICE, Job, buffer_start, check_offsets, run_chunk
from sedq._core._rows cimport Table


cdef extern from "views.h":
    const void *offsets_start "SEDQ_VIEW_START"(const int64_t[::1])
    const void *weights_start "SEDQ_VIEW_START"(const float[::1])
    const void *out_start "SEDQ_VIEW_START"(float[:, ::1])
    int64_t offsets_length "SEDQ_VIEW_LENGTH"(const int64_t[::1])
    int64_t out_width "SEDQ_VIEW_WIDTH"(float[:, ::1])


cdef struct Task:
    int64_t job, chunk, first, last, verified


cdef void run_task(const Job *jobs, Task *task) noexcept nogil:
    task.verified = run_chunk(jobs + task.job, task.chunk, task.first, task.last)


cdef void run_tasks(const Job *jobs, Task *tasks, const int64_t *order, int64_t count, int threads) noexcept nogil:
    cdef int64_t i
    if threads == 1:
        for i in range(count):
            run_task(jobs, tasks + order[i])
    else:
        for i in prange(count, num_threads=threads, schedule="dynamic"):
            run_task(jobs, tasks + order[i])


cdef take_indices(Job *job, indices, int64_t begin, int64_t end, int number):
    """Point a job at the indices of all tables; IndexError if one of its own is out of range."""
    cdef const int64_t[::1] wide
    cdef const int32_t[::1] narrow
    cdef int64_t bad
    job.indices, job.total = NULL, end
    if indices.dtype == np.int32:
        narrow, job.index_bytes = indices, 4
        job.indices = <const char *>&narrow[0] if narrow.shape[0] else NULL
    else:
        wide, job.index_bytes = indices, 8
        job.indices = <const char *>&wide[0] if wide.shape[0] else NULL
    if begin == end:
        return
    bad = job.c.range(job.indices + begin * job.index_bytes, job.index_bytes, end - begin, job.t.num_rows)
    if bad >= 0:
        raise IndexError(f"indices: got {indices[begin + bad]} at position {begin + bad}, expected 0 to "
                         f"{job.t.num_rows - 1} for table {number}")


cdef take_limit(Job *job, limit):
    """What the residuals of a job are compared with."""
    job.limit, job.limit_value, growth = limit
    job.growth[0], job.growth[1], job.growth[2], job.growth[3], job.growth[4] = growth


cdef int64_t cut(Task *tasks, int64_t job, int64_t bags, int64_t chunk) noexcept:
    """Write the tasks of one table and return how many there are."""
    cdef int64_t c, chunks = (bags + chunk - 1) // chunk
    for c in range(chunks):
        tasks[c].job, tasks[c].chunk, tasks[c].verified = job, c, 0
        tasks[c].first, tasks[c].last = c * chunk, min(bags, (c + 1) * chunk)
    return chunks


cdef int64_t[::1] longest_first(const Task *tasks, int64_t count, const Job *jobs):
    """The order in which tasks leave the least to wait for at the end."""
    cdef int64_t i
    work = np.empty(count, np.int64)
    cdef int64_t[::1] cost = work
    for i in range(count):
        cost[i] = -(jobs[tasks[i].job].offsets[tasks[i].last] - jobs[tasks[i].job].offsets[tasks[i].first])
        cost[i] *= 64 + jobs[tasks[i].job].t.stride
    return np.argsort(work, kind="stable")


cdef report_astray(const Job *jobs, int64_t count, const char *indices, const int64_t[::1] offsets, const float[::1] weights,
                   float[:, ::1] out):
    """Report the jobs that aren't of the arrays that were given: kernel and checks would follow the same wrong pointer."""
    cdef int64_t t, bags = (offsets_length(offsets) - 1) // count
    cdef const float *columns = <const float *>out_start(out)
    cdef const int64_t *begin = <const int64_t *>offsets_start(offsets)
    for t in range(count):
        if (jobs[t].bags != bags or jobs[t].offsets != begin + t * bags or jobs[t].indices != indices
                or jobs[t].out != columns or jobs[t].out_stride != out_width(out)
                or weights is not None and indices != NULL and <const void *>jobs[t].weights != weights_start(weights)):
            sedq_report(jobs[t].found, -1, SEDQ_BAD_COUNT, 0, 0)
        columns += jobs[t].t.dim


def pool_many(Context context, list tables, indices, const int64_t[::1] offsets, const float[::1] weights,
              float[:, ::1] out, int check, limits, means, int num_threads, double[:, ::1] stats=None):
    """Pool the bags of B requests in each of T tables into out (B, sum of dims).

    offsets (T B + 1,) are those of table 0 first, all into the same indices. No bag may be longer than PART. limits has
    (kind, value, growth) of each table. stats (T B, 3) takes residual, reference and magnitude of each bag, if check isn't
    0. Returns None when every check agreed, else findings by table, {t: [(bag, kind, residual, limit)]}.
    """
    cdef int64_t count = len(tables), bags = (offsets.shape[0] - 1) // count, t, i, chunk, made = 0, columns = 0
    cdef int64_t work = 0
    cdef int threads
    cdef Table table
    check_offsets(offsets, indices.shape[0])
    if bags == 0:
        return None
    memory = [np.zeros(count * sizeof(Job), np.uint8), np.zeros(count * sizeof(sedq_findings), np.uint8)]
    cdef unsigned char[::1] job_bytes = memory[0], found_bytes = memory[1], task_bytes
    cdef float[::1] scratch
    cdef Job *jobs = <Job *>&job_bytes[0]
    cdef sedq_findings *found = <sedq_findings *>&found_bytes[0]
    for t in range(count):
        table = tables[t]
        jobs[t].c, jobs[t].t, jobs[t].bag, jobs[t].bags = &context.c, &table.t, context.c.bag[table.t.format], bags
        jobs[t].offsets, jobs[t].out, jobs[t].out_stride = &offsets[t * bags], &out[0, columns], out.shape[1]
        jobs[t].weights = &weights[0] if weights is not None and weights.shape[0] else NULL
        jobs[t].check, jobs[t].mean, jobs[t].found = check, means[t], found + t
        take_limit(jobs + t, limits[t])
        jobs[t].stats = NULL if stats is None else &stats[t * bags, 0]
        take_indices(jobs + t, indices, offsets[t * bags], offsets[(t + 1) * bags], t)
        work += (offsets[(t + 1) * bags] - offsets[t * bags]) * (4 + table.t.dim // 16)
        columns += table.t.dim
    threads = threads_for(num_threads, work)
    chunk = max(<int64_t>1, min(<int64_t>CHUNK, bags * count // (8 * threads)))
    task_bytes = np.empty(count * ((bags + chunk - 1) // chunk) * sizeof(Task), np.uint8)
    cdef Task *tasks = <Task *>&task_bytes[0]
    for t in range(count):
        i = cut(tasks + made, t, bags, chunk)
        made += i
        if check & TWICE:
            scratch = np.empty(i * jobs[t].t.dim, np.float32)
            memory.append(scratch)  # keeps it
            jobs[t].scratch = &scratch[0]
    cdef int64_t[::1] order = longest_first(tasks, made, jobs)
    with nogil:
        run_tasks(jobs, tasks, &order[0], made, threads)
    if check:
        report_astray(jobs, count, buffer_start(indices), offsets, weights, out)
    return collected(jobs, tasks, made, found, count)


cdef collected(const Job *jobs, const Task *tasks, int64_t made, sedq_findings *found, int64_t count):
    """Findings by table; a table whose bags were not all verified has one more."""
    cdef int64_t i, t
    verified = [0] * count
    for i in range(made):
        verified[tasks[i].job] += tasks[i].verified
    for t in range(count):
        if jobs[t].check and verified[t] != jobs[t].bags:
            sedq_report(found + t, -1, SEDQ_BAD_COUNT, verified[t] - jobs[t].bags, 0)
    return {t: findings_list(found + t) for t in range(count) if found[t].count} or None
