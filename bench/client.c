/* The timing client: tight loops of one system call each, so that the measured cost is the mount's, not the client's.
 *
 * client getattr DIR SECONDS             statx(AT_STATX_FORCE_SYNC) on an O_PATH descriptor of DIR
 * client negative DIR SECONDS            fstatat of names that don't exist, each a new name
 * client statlist DIR LIST               fstatat of every name of LIST (one per line, relative to DIR), once
 * client openclose DIR LIST SECONDS      open+close, cycling through LIST
 * client readlist DIR LIST               open, read to the end, close every file of LIST, once
 * client create DIR COUNT SECONDS        create, write 1 KiB, close: until COUNT files or SECONDS
 * client unlink DIR COUNT SECONDS        unlink the files create made: until COUNT or SECONDS
 *
 * Prints "OPS NANOSECONDS BYTES"; any unexpected result is an error on stderr and exit status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char **names;
static size_t name_count;

static long long now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void die(const char *what, const char *name)
{
    fprintf(stderr, "%s %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static void load(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[4096];
    size_t room = 0;
    if (!file)
        die("list", path);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (name_count == room)
            names = realloc(names, (room = room ? room * 2 : 1024) * sizeof *names);
        if (!names || !(names[name_count++] = strdup(line)))
            die("memory", path);
    }
    fclose(file);
    if (!name_count)
        die("empty list", path);
}

int main(int argc, char **argv)
{
    static char buffer[1 << 20];
    char name[64];
    struct stat st;
    struct statx stx;
    long long ops = 0, bytes = 0, start, stop_after = 0;
    if (argc < 4) {
        fprintf(stderr, "usage: client MODE DIR ...\n");
        return 2;
    }
    const char *mode = argv[1];
    int dir = open(argv[2], O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        die("open", argv[2]);
    if (!strcmp(mode, "statlist") || !strcmp(mode, "openclose") || !strcmp(mode, "readlist"))
        load(argv[3]);
    stop_after = (long long)(atof(argv[argc - 1]) * 1e9);

    start = now_ns();
    if (!strcmp(mode, "getattr")) {
        do {
            if (statx(dir, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx))
                die("statx", argv[2]);
            ops++;
        } while (now_ns() - start < stop_after);
    } else if (!strcmp(mode, "negative")) {
        do {
            snprintf(name, sizeof name, "absent-%d-%lld", (int)getpid(), ops);
            if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT)
                die("expected ENOENT", name);
            ops++;
        } while (now_ns() - start < stop_after);
    } else if (!strcmp(mode, "statlist")) {
        for (; (size_t)ops < name_count; ops++) {
            if (fstatat(dir, names[ops], &st, AT_SYMLINK_NOFOLLOW))
                die("stat", names[ops]);
            bytes += st.st_size;
        }
    } else if (!strcmp(mode, "openclose")) {
        do {
            int fd = openat(dir, names[ops % name_count], O_RDONLY);
            if (fd < 0 || close(fd))
                die("open+close", names[ops % name_count]);
            ops++;
        } while (now_ns() - start < stop_after);
    } else if (!strcmp(mode, "readlist")) {
        for (; (size_t)ops < name_count; ops++) {
            ssize_t got;
            int fd = openat(dir, names[ops], O_RDONLY);
            if (fd < 0)
                die("open", names[ops]);
            while ((got = read(fd, buffer, sizeof buffer)) > 0)
                bytes += got;
            if (got < 0 || close(fd))
                die("read", names[ops]);
        }
    } else if (!strcmp(mode, "create")) {
        long long count = atoll(argv[3]);
        do {
            snprintf(name, sizeof name, "new-%06lld", ops);
            int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL, 0644);
            if (fd < 0 || write(fd, buffer, 1024) != 1024 || close(fd))
                die("create", name);
            ops++;
            bytes += 1024;
        } while (ops < count && now_ns() - start < stop_after);
    } else if (!strcmp(mode, "unlink")) {
        long long count = atoll(argv[3]);
        do {
            snprintf(name, sizeof name, "new-%06lld", ops);
            if (unlinkat(dir, name, 0))
                die("unlink", name);
            ops++;
        } while (ops < count && now_ns() - start < stop_after);
    } else {
        fprintf(stderr, "unknown mode %s\n", mode);
        return 2;
    }
    printf("%lld %lld %lld\n", ops, now_ns() - start, bytes);
    return 0;
}
