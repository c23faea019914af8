/* Makes every fsync and fdatasync of a program take longer, to see what a slower disk would do: LD_PRELOAD for programs
 * that are not ours. scripts/fsync-delay compiles and uses it. ATLAS_FSYNC_DELAY_US says by how many microseconds.
 *
 * Not reached are descriptors opened with O_DSYNC, msync, io_uring, and programs that are linked statically.
 * sync_file_range only begins to write, and nobody waits for it: it is left alone. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void pause_as_told(void)
{
    static long micros = -1;
    if (micros < 0) {
        const char *text = getenv("ATLAS_FSYNC_DELAY_US");
        micros = text ? atol(text) : 0;
    }
    if (micros > 0) {
        struct timespec left = {micros / 1000000, micros % 1000000 * 1000};
        while (nanosleep(&left, &left) != 0) { }
    }
}

int fsync(int descriptor)
{
    pause_as_told();
    return (int)syscall(SYS_fsync, descriptor);
}

int fdatasync(int descriptor)
{
    pause_as_told();
    return (int)syscall(SYS_fdatasync, descriptor);
}
