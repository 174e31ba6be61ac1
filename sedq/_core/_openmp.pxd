cdef extern from "openmp_shim.h" nogil:
    const int SEDQ_OPENMP
    int sedq_max_threads()
