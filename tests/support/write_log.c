/* Logs what a process does to one SQLite database, in order, so that a test can say what a disk would
 * hold had the power been cut at any moment of it. Preloaded (LD_PRELOAD) into a Python process:
 *
 *     WRITE_LOG=file to append to     WRITE_LOG_OF=absolute path of the database
 *
 * A record: what (1 byte), of which file (1 byte), offset or size (8 bytes), length (4 bytes), data.
 *     'O' created   'W' written   'T' cut to a size   'S' synced   'U' deleted
 *     'd' the database   'w' its -wal   'j' its -journal   '/' its folder
 * The shared memory beside them (-shm) is not logged: SQLite makes it anew after a power cut.
 *
 * One lock is held over each call and its record, so the log's order is the order of the calls.
 * SQLite writes through mmap only when it is compiled with SQLITE_MMAP_READWRITE, which no one does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char database[4096], folder[4096];
static int log_fd = -1;

__attribute__((constructor)) static void begin(void) {
    const char *of = getenv("WRITE_LOG_OF"), *to = getenv("WRITE_LOG");
    if (!of || !to || strlen(of) >= sizeof database) return;
    strcpy(database, of);
    strcpy(folder, of);
    *strrchr(folder, '/') = 0;
    log_fd = open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static char name_of(const char *path) {
    size_t length = strlen(database);
    if (log_fd < 0 || !path) return 0;
    if (!strcmp(path, folder)) return '/';
    if (strncmp(path, database, length)) return 0;
    if (!path[length]) return 'd';
    if (!strcmp(path + length, "-wal")) return 'w';
    if (!strcmp(path + length, "-journal")) return 'j';
    return 0;
}

static char name_of_fd(int fd) {
    char link[64], path[4200];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return name_of(path);
}

/* One `writev`, so that the marks another program appends to the log stay whole records, too. */
static void record(char what, char name, uint64_t offset, const void *data, uint32_t length) {
    unsigned char head[14] = {what, name};
    memcpy(head + 2, &offset, 8);
    memcpy(head + 10, &length, 4);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data, length}};
    if (writev(log_fd, parts, length ? 2 : 1) != (ssize_t)(sizeof head + length)) abort();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Do the call; if it was about one of our files and succeeded, record it. */
#define LOGGED(type, name, call, did, what, offset, data, length) \
    char file = name;                                              \
    if (!file) return call;                                        \
    pthread_mutex_lock(&lock);                                     \
    type result = call;                                            \
    if (did) record(what, file, offset, data, length);             \
    pthread_mutex_unlock(&lock);                                   \
    return result;

static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    int is_new = (flags & O_CREAT) && access(path, F_OK);
    LOGGED(int, is_new ? name_of(path) : 0, real(path, flags, mode), result >= 0, 'O', 0, NULL, 0)
}

#define MODE(flags)                         \
    mode_t mode = 0;                        \
    if ((flags) & O_CREAT) {                \
        va_list rest;                       \
        va_start(rest, flags);              \
        mode = (mode_t)va_arg(rest, int);   \
        va_end(rest);                       \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return opened(REAL(open), path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return opened(REAL(open64), path, flags, mode);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) {
    LOGGED(ssize_t, name_of_fd(fd), REAL(pwrite)(fd, data, length, at), result > 0, 'W', at, data, result)
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    LOGGED(ssize_t, name_of_fd(fd), REAL(pwrite64)(fd, data, length, at), result > 0, 'W', at, data, result)
}

ssize_t write(int fd, const void *data, size_t length) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    LOGGED(ssize_t, at < 0 ? 0 : name_of_fd(fd), REAL(write)(fd, data, length), result > 0, 'W', at, data, result)
}

int ftruncate(int fd, off_t size) {
    LOGGED(int, name_of_fd(fd), REAL(ftruncate)(fd, size), !result, 'T', size, NULL, 0)
}

int ftruncate64(int fd, off64_t size) {
    LOGGED(int, name_of_fd(fd), REAL(ftruncate64)(fd, size), !result, 'T', size, NULL, 0)
}

int fsync(int fd) { LOGGED(int, name_of_fd(fd), REAL(fsync)(fd), !result, 'S', 0, NULL, 0) }

int fdatasync(int fd) { LOGGED(int, name_of_fd(fd), REAL(fdatasync)(fd), !result, 'S', 0, NULL, 0) }

int unlink(const char *path) { LOGGED(int, name_of(path), REAL(unlink)(path), !result, 'U', 0, NULL, 0) }
