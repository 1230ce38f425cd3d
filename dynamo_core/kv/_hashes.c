/* The names of KV blocks, as hashing.py defines them, in one call for a run of blocks instead of some in Python for each.
 *
 * The hash is XXH3 with 64 bits, of 4 bytes or more, written from its specification for processors that read what is not aligned. A block
 * of 16 tokens has 64 bytes, and the name of a block in its place is that of 16.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if PY_BIG_ENDIAN
#error "written for little-endian machines; without this part, everything works as well"
#endif

#define SEED 1337 /* of names of blocks in their places */
#define LEAST 4

#define PRIME32_1 0x9E3779B1U
#define PRIME32_2 0x85EBCA77U
#define PRIME32_3 0xC2B2AE3DU
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define PRIME64_5 0x27D4EB2F165667C5ULL
#define PRIME_MX1 0x165667919E3779F9ULL
#define PRIME_MX2 0x9FB21C651E98DF25ULL

#define STRIPE 64
#define SECRET_SIZE 192
#define STRIPES_A_ROUND ((SECRET_SIZE - STRIPE) / 8)

static const unsigned char SECRET[SECRET_SIZE] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t read64(const unsigned char *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t read32(const unsigned char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t folded(uint64_t one, uint64_t other) {
    unsigned __int128 product = (unsigned __int128)one * other;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t rotated(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static inline uint64_t avalanche(uint64_t hash) {
    hash ^= hash >> 37;
    hash *= PRIME_MX1;
    return hash ^ hash >> 32;
}

static inline uint64_t mix(const unsigned char *at, const unsigned char *secret, uint64_t seed) {
    return folded(read64(at) ^ (read64(secret) + seed), read64(at + 8) ^ (read64(secret + 8) - seed));
}

static uint64_t of_4_to_8(const unsigned char *data, size_t size, uint64_t seed) {
    seed ^= (uint64_t)__builtin_bswap32((uint32_t)seed) << 32;
    uint64_t hash = read32(data + size - 4) + ((uint64_t)read32(data) << 32);
    hash ^= (read64(SECRET + 8) ^ read64(SECRET + 16)) - seed;
    hash ^= rotated(hash, 49) ^ rotated(hash, 24);
    hash *= PRIME_MX2;
    hash ^= (hash >> 35) + size;
    hash *= PRIME_MX2;
    return hash ^ hash >> 28;
}

static inline uint64_t of_9_to_16(const unsigned char *data, size_t size, uint64_t seed) {
    uint64_t low = read64(data) ^ ((read64(SECRET + 24) ^ read64(SECRET + 32)) + seed);
    uint64_t high = read64(data + size - 8) ^ ((read64(SECRET + 40) ^ read64(SECRET + 48)) - seed);
    return avalanche(size + __builtin_bswap64(low) + high + folded(low, high));
}

static inline uint64_t of_17_to_128(const unsigned char *data, size_t size, uint64_t seed) {
    uint64_t hash = size * PRIME64_1;
    for (size_t pair = (size - 1) / 32 + 1; pair-- > 0;) { /* from both ends towards the middle, where they may overlap */
        hash += mix(data + 16 * pair, SECRET + 32 * pair, seed);
        hash += mix(data + size - 16 * (pair + 1), SECRET + 32 * pair + 16, seed);
    }
    return avalanche(hash);
}

static uint64_t of_129_to_240(const unsigned char *data, size_t size, uint64_t seed) {
    uint64_t hash = size * PRIME64_1;
    for (size_t part = 0; part < 8; part++) hash += mix(data + 16 * part, SECRET + 16 * part, seed);
    hash = avalanche(hash);
    for (size_t part = 8; part < size / 16; part++) hash += mix(data + 16 * part, SECRET + 16 * (part - 8) + 3, seed);
    return avalanche(hash + mix(data + size - 16, SECRET + 136 - 17, seed));
}

static inline void accumulate(uint64_t *sums, const unsigned char *stripe, const unsigned char *secret) {
    for (int lane = 0; lane < 8; lane++) {
        uint64_t value = read64(stripe + 8 * lane), keyed = value ^ read64(secret + 8 * lane);
        sums[lane ^ 1] += value;
        sums[lane] += (keyed & UINT32_MAX) * (keyed >> 32);
    }
}

static uint64_t of_more(const unsigned char *data, size_t size, uint64_t seed) {
    uint64_t sums[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    unsigned char secret[SECRET_SIZE];
    for (size_t at = 0; at < SECRET_SIZE; at += 16) {
        uint64_t low = read64(SECRET + at) + seed, high = read64(SECRET + at + 8) - seed;
        memcpy(secret + at, &low, 8);
        memcpy(secret + at + 8, &high, 8);
    }
    size_t stripes = (size - 1) / STRIPE;
    for (size_t stripe = 0; stripe < stripes; stripe++) {
        size_t turn = stripe % STRIPES_A_ROUND;
        accumulate(sums, data + STRIPE * stripe, secret + 8 * turn);
        if (turn + 1 < STRIPES_A_ROUND) continue;
        for (int lane = 0; lane < 8; lane++) {
            sums[lane] ^= sums[lane] >> 47 ^ read64(secret + SECRET_SIZE - STRIPE + 8 * lane);
            sums[lane] *= PRIME32_1;
        }
    }
    accumulate(sums, data + size - STRIPE, secret + SECRET_SIZE - STRIPE - 7);
    uint64_t hash = size * PRIME64_1;
    for (int pair = 0; pair < 4; pair++) {
        hash += folded(sums[2 * pair] ^ read64(secret + 11 + 16 * pair), sums[2 * pair + 1] ^ read64(secret + 19 + 16 * pair));
    }
    return avalanche(hash);
}

static inline uint64_t hashed(const unsigned char *data, size_t size, uint64_t seed) {
    if (size <= 8) return of_4_to_8(data, size, seed);
    if (size <= 16) return of_9_to_16(data, size, seed);
    if (size <= 128) return of_17_to_128(data, size, seed);
    if (size <= 240) return of_129_to_240(data, size, seed);
    return of_more(data, size, seed);
}

static inline uint64_t linked(uint64_t parent, uint64_t block) {
    uint64_t pair[2] = {parent, block};
    return of_9_to_16((const unsigned char *)pair, sizeof pair, SEED);
}

static PyObject *listed(PyObject *list, Py_ssize_t at, uint64_t hash) {
    PyObject *number = PyLong_FromUnsignedLongLong(hash);
    if (number == NULL || PyList_SetItem(list, at, number) < 0) Py_CLEAR(list);
    return list;
}

static PyObject *run_hashes(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer data;
    Py_ssize_t size;
    unsigned long long seed, before = 0;
    PyObject *parent;
    if (!PyArg_ParseTuple(args, "y*nKO:run_hashes", &data, &size, &seed, &parent)) return NULL;
    PyObject *list = NULL;
    int first = parent == Py_None;
    if (size < LEAST) {
        PyErr_Format(PyExc_ValueError, "a block has %d bytes or more", LEAST);
        goto end;
    }
    if (!first) {
        before = PyLong_AsUnsignedLongLong(parent);
        if (before == UINT64_MAX && PyErr_Occurred()) goto end;
    }
    Py_ssize_t count = data.len / size;
    const unsigned char *block = data.buf;
    list = PyList_New(count);
    for (Py_ssize_t at = 0; list != NULL && at < count; at++, block += size) {
        uint64_t hash = hashed(block, (size_t)size, seed);
        before = first ? hash : linked(before, hash);
        first = 0;
        list = listed(list, at, before);
    }
end:
    PyBuffer_Release(&data);
    return list;
}

static PyMethodDef methods[] = {
    {"run_hashes", run_hashes, METH_VARARGS, "run_hashes(data, size, seed, parent) -> the names of the blocks in their places"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_hashes",
    .m_doc = "Names of KV blocks.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__hashes(void) { return PyModuleDef_Init(&definition); }
