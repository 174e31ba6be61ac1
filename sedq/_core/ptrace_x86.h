/* Stop a process, flip one bit of one of its registers, let it go on. Linux on x86-64; elsewhere all fails with ENOSYS.
 *
 * Functions return 0 or more, or -errno. All calls for one process must come from the thread that seized it.
 */
#ifndef SEDQ_PTRACE_X86_H
#define SEDQ_PTRACE_X86_H

#include <errno.h>
#include <stdint.h>

enum { SEDQ_GENERAL, SEDQ_VECTOR, SEDQ_MASK, SEDQ_RIP, SEDQ_FLAGS };
enum { SEDQ_WROTE, SEDQ_STOPPED, SEDQ_ENDED, SEDQ_SILENT };

/* State components that the system enables, as in XCR0. */
enum { SEDQ_X_SSE = 1, SEDQ_X_AVX = 2, SEDQ_X_OPMASK = 5, SEDQ_X_ZMM_HI256 = 6, SEDQ_X_HI16_ZMM = 7 };

#if defined(__linux__) && defined(__x86_64__)

#include <cpuid.h>
#include <elf.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SEDQ_XSAVE_BYTES = 16384, SEDQ_XCR0_AT = 464, SEDQ_XSTATE_BV_AT = 512, SEDQ_XMM_AT = 160 };

static const unsigned short sedq_general_at[16] = {
    offsetof(struct user_regs_struct, rax), offsetof(struct user_regs_struct, rbx), offsetof(struct user_regs_struct, rcx),
    offsetof(struct user_regs_struct, rdx), offsetof(struct user_regs_struct, rsi), offsetof(struct user_regs_struct, rdi),
    offsetof(struct user_regs_struct, rbp), offsetof(struct user_regs_struct, rsp), offsetof(struct user_regs_struct, r8),
    offsetof(struct user_regs_struct, r9),  offsetof(struct user_regs_struct, r10), offsetof(struct user_regs_struct, r11),
    offsetof(struct user_regs_struct, r12), offsetof(struct user_regs_struct, r13), offsetof(struct user_regs_struct, r14),
    offsetof(struct user_regs_struct, r15),
};

static uint64_t sedq_xcr0(void)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 3; /* x87 and SSE, which every x86-64 has */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Where a component begins in the standard (non-compacted) XSAVE area, which is what ptrace gives. */
static int64_t sedq_component_at(int component)
{
    unsigned size, offset, c, d;
    if (component == SEDQ_X_SSE)
        return SEDQ_XMM_AT;
    __cpuid_count(0xd, component, size, offset, c, d);
    return size ? offset : -1;
}

static int64_t sedq_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int sedq_seize(int pid)
{
    return ptrace(PTRACE_SEIZE, pid, NULL, (void *)PTRACE_O_EXITKILL) ? -errno : 0;
}

static int sedq_resume(int pid, int signal)
{
    return ptrace(PTRACE_CONT, pid, NULL, (void *)(intptr_t)signal) ? -errno : 0;
}

static int sedq_pc(int pid, uint64_t *pc)
{
    struct user_regs_struct regs;
    if (ptrace(PTRACE_GETREGS, pid, NULL, &regs))
        return -errno;
    *pc = regs.rip;
    return 0;
}

/* waitpid until it isn't interrupted */
static int sedq_waitpid(int pid, int *status, int options)
{
    int changed;
    do
        changed = waitpid(pid, status, options | __WALL);
    while (changed < 0 && errno == EINTR);
    return changed;
}

/* Let the process run for a time, signals to it included: SEDQ_SILENT, or SEDQ_ENDED. */
static int sedq_run_for(int pid, int64_t nanoseconds)
{
    const int64_t until = sedq_now() + nanoseconds;
    int64_t left;
    int status, changed;
    while ((left = until - sedq_now()) > 0) {
        const struct timespec t = {0, (long)(left < 200000 ? left : 200000)};
        nanosleep(&t, NULL);
        while ((changed = sedq_waitpid(pid, &status, WNOHANG)) == pid) {
            if (!WIFSTOPPED(status))
                return SEDQ_ENDED;
            sedq_resume(pid, status >> 16 ? 0 : WSTOPSIG(status));
        }
        if (changed < 0)
            return -errno;
    }
    return SEDQ_SILENT;
}

/* Stop the process after a delay: SEDQ_STOPPED and its program counter, or SEDQ_ENDED. */
static int sedq_interrupt(int pid, int64_t delay, uint64_t *pc)
{
    int status;
    const int run = sedq_run_for(pid, delay);
    if (run != SEDQ_SILENT)
        return run;
    if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL))
        return -errno;
    for (;;) {
        if (sedq_waitpid(pid, &status, 0) != pid)
            return -errno;
        if (!WIFSTOPPED(status))
            return SEDQ_ENDED;
        if (status >> 16 == PTRACE_EVENT_STOP)
            break;
        sedq_resume(pid, WSTOPSIG(status)); /* a signal from elsewhere came first */
    }
    const int failed = sedq_pc(pid, pc);
    return failed ? failed : SEDQ_STOPPED;
}

/* Byte of the XSAVE area with bit `bit` of a vector or mask register; -1 if there is no such register. */
static int64_t sedq_xsave_byte(int kind, int number, int bit, int *component)
{
    int64_t within;
    if (kind == SEDQ_MASK) {
        *component = SEDQ_X_OPMASK;
        within = 8 * number + bit / 8;
    } else if (number >= 16) {
        *component = SEDQ_X_HI16_ZMM;
        within = 64 * (number - 16) + bit / 8;
    } else if (bit >= 256) {
        *component = SEDQ_X_ZMM_HI256;
        within = 32 * number + (bit - 256) / 8;
    } else {
        *component = bit >= 128 ? SEDQ_X_AVX : SEDQ_X_SSE;
        within = 16 * number + bit % 128 / 8;
    }
    const int64_t base = sedq_component_at(*component);
    return base < 0 ? -1 : base + within;
}

static int sedq_flip_extended(int pid, int kind, int number, int bit)
{
    _Alignas(64) uint8_t area[SEDQ_XSAVE_BYTES];
    struct iovec io = {area, sizeof area};
    uint64_t enabled, present;
    int component;
    const int64_t byte = sedq_xsave_byte(kind, number, bit, &component);
    if (ptrace(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &io))
        return -errno;
    memcpy(&enabled, area + SEDQ_XCR0_AT, sizeof enabled);
    if (byte < 0 || byte >= (int64_t)io.iov_len || !(enabled >> component & 1))
        return -EINVAL;
    area[byte] ^= (uint8_t)(1u << bit % 8);
    memcpy(&present, area + SEDQ_XSTATE_BV_AT, sizeof present);
    present |= (uint64_t)1 << component; /* registers that were all zero are not marked as present */
    memcpy(area + SEDQ_XSTATE_BV_AT, &present, sizeof present);
    return ptrace(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, &io) ? -errno : 0;
}

/* Flip one bit of one register of a stopped process. */
static int sedq_flip(int pid, int kind, int number, int bit)
{
    struct user_regs_struct regs;
    unsigned short at = offsetof(struct user_regs_struct, rip);
    unsigned long long word;
    if (kind == SEDQ_VECTOR || kind == SEDQ_MASK)
        return sedq_flip_extended(pid, kind, number, bit);
    if (kind == SEDQ_GENERAL)
        at = sedq_general_at[number];
    else if (kind == SEDQ_FLAGS)
        at = offsetof(struct user_regs_struct, eflags);
    if (ptrace(PTRACE_GETREGS, pid, NULL, &regs))
        return -errno;
    memcpy(&word, (char *)&regs + at, sizeof word);
    word ^= 1ull << bit;
    memcpy((char *)&regs + at, &word, sizeof word);
    return ptrace(PTRACE_SETREGS, pid, NULL, &regs) ? -errno : 0;
}

static int sedq_is_fatal(int signal)
{
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE || signal == SIGABRT
        || signal == SIGTRAP || signal == SIGSYS;
}

/* Wait until the process writes a byte to fd (SEDQ_WROTE, the byte), meets a fatal signal (SEDQ_STOPPED, the signal), ends
 * (SEDQ_ENDED, the status), or has done nothing of this in time (SEDQ_SILENT). */
static int sedq_await(int pid, int fd, int64_t timeout, int *value)
{
    const int64_t until = sedq_now() + timeout;
    struct pollfd p = {fd, POLLIN, 0};
    for (;;) {
        const struct timespec slice = {0, 200000};
        unsigned char byte;
        const int ready = ppoll(&p, 1, &slice, NULL);
        if (ready > 0 && read(fd, &byte, 1) == 1) {
            *value = byte;
            return SEDQ_WROTE;
        }
        if (ready > 0)
            p.fd = -1; /* nobody is left who could write, but it may still be told how the process ended */
        if (ready < 0 && errno != EINTR)
            return -errno;
        const int changed = sedq_waitpid(pid, value, WNOHANG);
        if (changed < 0)
            return -errno;
        if (changed == pid) {
            if (!WIFSTOPPED(*value))
                return SEDQ_ENDED;
            const int signal = WSTOPSIG(*value), event = *value >> 16;
            if (!event && sedq_is_fatal(signal)) {
                *value = signal;
                return SEDQ_STOPPED;
            }
            sedq_resume(pid, event ? 0 : signal);
        }
        if (sedq_now() > until)
            return SEDQ_SILENT;
    }
}

static void sedq_kill(int pid)
{
    int status;
    kill(pid, SIGKILL);
    while (sedq_waitpid(pid, &status, 0) == pid && WIFSTOPPED(status))
        sedq_resume(pid, 0);
}

/* The probe: registers are loaded from memory, held through an empty loop, and stored again.
 *
 * void sedq_probe_*(void *state, uint64_t loops): state is 16 general registers of 8 bytes, 32 vector registers of 64 and
 * 8 mask registers of 8. rcx counts, rdi points, rsp is the stack: they are not held. */
__asm__(".pushsection .text\n"
        ".macro sedq_probe_begin\n"
        "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsi, %rcx\n"
        "mov (%rdi), %rax\n mov 8(%rdi), %rbx\n mov 24(%rdi), %rdx\n mov 32(%rdi), %rsi\n mov 48(%rdi), %rbp\n"
        ".irp i, 8, 9, 10, 11, 12, 13, 14, 15\n mov 8*\\i(%rdi), %r\\i\n .endr\n"
        "1: dec %rcx\n jnz 1b\n"
        "mov %rax, (%rdi)\n mov %rbx, 8(%rdi)\n mov %rdx, 24(%rdi)\n mov %rsi, 32(%rdi)\n mov %rbp, 48(%rdi)\n"
        ".irp i, 8, 9, 10, 11, 12, 13, 14, 15\n mov %r\\i, 8*\\i(%rdi)\n .endr\n"
        ".endm\n"
        ".macro sedq_probe_end\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n vzeroupper\n ret\n"
        ".endm\n"
        ".type sedq_probe_256, @function\n"
        "sedq_probe_256:\n"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n vmovdqu 128+64*\\i(%rdi), %ymm\\i\n .endr\n"
        "sedq_probe_begin\n"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n vmovdqu %ymm\\i, 128+64*\\i(%rdi)\n .endr\n"
        "sedq_probe_end\n"
        ".size sedq_probe_256, .-sedq_probe_256\n"
        ".type sedq_probe_512, @function\n"
        "sedq_probe_512:\n"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n vmovdqu64 128+64*\\i(%rdi), %zmm\\i\n .endr\n"
        ".irp i, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n"
        "vmovdqu64 128+64*\\i(%rdi), %zmm\\i\n .endr\n"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7\n kmovq 2176+8*\\i(%rdi), %k\\i\n .endr\n"
        "sedq_probe_begin\n"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n vmovdqu64 %zmm\\i, 128+64*\\i(%rdi)\n .endr\n"
        ".irp i, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n"
        "vmovdqu64 %zmm\\i, 128+64*\\i(%rdi)\n .endr\n"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7\n kmovq %k\\i, 2176+8*\\i(%rdi)\n .endr\n"
        "sedq_probe_end\n"
        ".size sedq_probe_512, .-sedq_probe_512\n"
        ".popsection\n");
void sedq_probe_256(void *state, uint64_t loops);
void sedq_probe_512(void *state, uint64_t loops);

static int sedq_probe(void *state, uint64_t loops)
{
    const uint64_t enabled = sedq_xcr0();
    if (enabled >> SEDQ_X_HI16_ZMM & 1)
        sedq_probe_512(state, loops);
    else if (enabled >> SEDQ_X_AVX & 1)
        sedq_probe_256(state, loops);
    else
        return -ENOSYS;
    return 0;
}

enum { SEDQ_PTRACE = 1 };

#else

enum { SEDQ_PTRACE = 0 };
static uint64_t sedq_xcr0(void) { return 0; }
static int sedq_seize(int pid) { (void)pid; return -ENOSYS; }
static int sedq_resume(int pid, int signal) { (void)pid; (void)signal; return -ENOSYS; }
static int sedq_pc(int pid, uint64_t *pc) { (void)pid; (void)pc; return -ENOSYS; }
static int sedq_interrupt(int pid, int64_t delay, uint64_t *pc) { (void)pid; (void)delay; (void)pc; return -ENOSYS; }
static int sedq_flip(int pid, int kind, int number, int bit)
{
    (void)pid; (void)kind; (void)number; (void)bit;
    return -ENOSYS;
}
static int sedq_await(int pid, int fd, int64_t timeout, int *value)
{
    (void)pid; (void)fd; (void)timeout; (void)value;
    return -ENOSYS;
}
static void sedq_kill(int pid) { (void)pid; }
static int sedq_probe(void *state, uint64_t loops) { (void)state; (void)loops; return -ENOSYS; }

#endif

#endif
