// Preloaded into an unmodified llama.cpp server: writes one line for each cache tensor, "name bytes", to the file named by
// CACHE_TENSORS. llama.cpp names every tensor of a cache with ggml_format_name() right after it made it, and no other
// tensor has such a name. Where llama.cpp is a shared library (Debian's program, Python's wheels), the function below takes
// the place of its own, as preloaded symbols do. In a statically linked program the symbol table says where that function
// is, and its first bytes are replaced by a jump to the one below. Sizes are ggml_nbytes(), llama.cpp's own.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t (*tensor_bytes)(const void *);
static const void *(*set_name)(void *, const char *);
static int output = -1;

static void open_output(void) {
    const char *path = getenv("CACHE_TENSORS");
    output = path == NULL ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (output < 0) {
        _exit(99);
    }
}

// Find functions in the calling library, which may not be visible globally.
static void find_functions(const void *caller) {
    Dl_info info;
    void *library = dladdr(caller, &info) ? dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (library == NULL) {
        _exit(96);
    }
    tensor_bytes = (size_t (*)(const void *)) dlsym(library, "ggml_nbytes");
    set_name = (const void *(*)(void *, const char *)) dlsym(library, "ggml_set_name");
    if (tensor_bytes == NULL || set_name == NULL) {
        _exit(95);
    }
    open_output();
}

void *ggml_format_name(void *tensor, const char *format, ...) {
    char name[256];
    va_list arguments;
    if (output < 0) {
        find_functions(__builtin_return_address(0));
    }
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    set_name(tensor, name);
    if (strncmp(format, "cache_", 6) == 0 || strncmp(format, "dsv4_", 5) == 0) {
        char line[320];
        int length = snprintf(line, sizeof line, "%s %zu\n", name, tensor_bytes(tensor));
        if (write(output, line, length) != length) {
            _exit(97);
        }
    }
    return tensor;
}

static int first_object(struct dl_phdr_info *info, size_t size, void *base) {
    (void) size;
    *(uintptr_t *) base = info->dlpi_addr;
    return 1; // the program itself comes first
}

static void jump(uintptr_t from, void *to) {
    uintptr_t target = (uintptr_t) to;
#if defined(__x86_64__)
    unsigned char code[] = {0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0xff, 0xe3}; // mov r11, target; jmp r11
    memcpy(code + 2, &target, 8);
#elif defined(__aarch64__)
    unsigned char code[] = {0x50, 0, 0, 0x58, 0, 0x02, 0x1f, 0xd6, 0, 0, 0, 0, 0, 0, 0, 0}; // ldr x16, .+8; br x16
    memcpy(code + 8, &target, 8);
#else
#error "no jump for this processor"
#endif
    uintptr_t page = from & ~(uintptr_t) (sysconf(_SC_PAGESIZE) - 1);
    if (mprotect((void *) page, from - page + sizeof code, PROT_READ | PROT_WRITE | PROT_EXEC)) {
        _exit(98);
    }
    memcpy((void *) from, code, sizeof code);
    __builtin___clear_cache((char *) from, (char *) from + sizeof code);
}

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("CACHE_TENSORS");
    int self = open("/proc/self/exe", O_RDONLY);
    struct stat status;
    if (path == NULL || self < 0 || fstat(self, &status)) {
        return;
    }
    const char *file = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, self, 0);
    close(self);
    const ElfW(Ehdr) *header = (const void *) file;
    const ElfW(Shdr) *sections = (const void *) (file + header->e_shoff);
    uintptr_t base = 0, format = 0;
    dl_iterate_phdr(first_object, &base);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) {
            continue;
        }
        const ElfW(Sym) *symbols = (const void *) (file + sections[i].sh_offset);
        const char *names = file + sections[sections[i].sh_link].sh_offset;
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++) {
            const char *name = names + symbols[k].st_name;
            uintptr_t address = base + symbols[k].st_value;
            if (strcmp(name, "ggml_format_name") == 0) {
                format = address;
            } else if (strcmp(name, "ggml_nbytes") == 0) {
                tensor_bytes = (size_t (*)(const void *)) address;
            } else if (strcmp(name, "ggml_set_name") == 0) {
                set_name = (const void *(*)(void *, const char *)) address;
            }
        }
    }
    munmap((void *) file, status.st_size);
    if (!format || !tensor_bytes || !set_name) {
        return; // not llama.cpp: a shell on the way to it, say
    }
    open_output();
    jump(format, (void *) ggml_format_name);
}
