/* The dict of a prefix index: from block hashes to the integers whose bits are their owners, in the order in which they came.
 *
 * As a dict of integers it would take an object for each hash and a call for each look-up. Here a hash is 8 bytes in an array, and
 * runs of blocks, which come from the workers as such arrays, are noted and taken in one call: half the memory, and a fifth of the
 * time. block_map.py says what each method does, and does the same where this is not compiled.
 *
 * Clients can choose what blocks are called, by what they ask for, so where a name goes is decided by a factor that they don't know.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define ARRAY "array" /* this module's name for the type */
#define NONE UINT32_MAX
#define LEAST 64 /* entries that there is room for at least */

#define AHEAD 8 /* blocks of a run for which memory is asked before their turn: each of them is somewhere else */

typedef struct {
    uint64_t hash;
    PyObject *owners; /* NULL: gone; its place stays taken until all are moved */
} Entry;

typedef struct {
    PyObject_HEAD
    Entry *entries; /* in the order in which they came */
    uint32_t *places; /* open addressing: the number of an entry, or NONE */
    size_t room, used, live; /* entries: that there may be, that there are or were, that there are */
    uint64_t factor;
    unsigned bits; /* of a place; there are 2 to the power of it, a third more than entries at least */
} BlockMap;

/* One set of owners and what becomes of it: those of a run nearly always have the same. */
typedef struct {
    PyObject *before, *after;
    int had;
} Change;

static inline size_t home(const BlockMap *self, uint64_t hash) { return (size_t)((hash * self->factor) >> (64 - self->bits)); }

static inline size_t mask(const BlockMap *self) { return ((size_t)1 << self->bits) - 1; }

/* The place of the hash, whose entry may be gone, or the free one where it would be. There is room. */
static inline size_t place_of(const BlockMap *self, uint64_t hash) {
    size_t place = home(self, hash);
    while (self->places[place] != NONE && self->entries[self->places[place]].hash != hash) place = (place + 1) & mask(self);
    return place;
}

static inline Entry *entry_at(const BlockMap *self, size_t place) {
    return self->places[place] == NONE ? NULL : self->entries + self->places[place];
}

/* NULL where the hash has no owners. */
static inline Entry *look_up(const BlockMap *self, uint64_t hash) {
    Entry *entry = self->room ? entry_at(self, place_of(self, hash)) : NULL;
    return entry != NULL && entry->owners != NULL ? entry : NULL;
}

/* Those that are not gone, moved together to `entries` (these may be where they are), and places for them. */
static void settle(BlockMap *self, Entry *entries) {
    size_t live = 0;
    for (size_t at = 0; at < self->used; at++) {
        if (self->entries[at].owners != NULL) entries[live++] = self->entries[at];
    }
    self->used = live;
    memset(self->places, 0xff, (mask(self) + 1) * sizeof(uint32_t));
    for (size_t at = 0; at < live; at++) { /* no two have one hash */
        if (at + AHEAD < live) __builtin_prefetch(self->places + home(self, entries[at + AHEAD].hash), 1);
        size_t place = home(self, entries[at].hash);
        while (self->places[place] != NONE) place = (place + 1) & mask(self);
        self->places[place] = (uint32_t)at;
    }
}

static int resize(BlockMap *self, size_t room) {
    if (room > NONE / 2) {
        PyErr_NoMemory();
        return -1;
    }
    unsigned bits = 1;
    while (((size_t)1 << bits) < room + room / 3) bits++;
    Entry *entries = PyMem_Malloc(room * sizeof(Entry));
    uint32_t *places = PyMem_Malloc(((size_t)1 << bits) * sizeof(uint32_t));
    if (entries == NULL || places == NULL) {
        PyMem_Free(entries);
        PyMem_Free(places);
        PyErr_NoMemory();
        return -1;
    }
    PyMem_Free(self->places);
    self->places = places;
    self->bits = bits;
    settle(self, entries);
    PyMem_Free(self->entries);
    self->entries = entries;
    self->room = room;
    return 0;
}

/* Room for so many more. What is made is three quarters more than there is, so that it is not made often. */
static int make_room(BlockMap *self, size_t more) {
    if (self->room && self->used + more <= self->room) return 0;
    size_t wanted = self->live + more, room = wanted + wanted / 4 * 3 + LEAST;
    if (!self->room || self->room < wanted + wanted / 2 || self->room / 2 > room) return resize(self, room);
    settle(self, self->entries);
    return 0;
}

/* At the place of the hash, which is free or that of an entry that is gone. There is room. */
static inline void insert(BlockMap *self, size_t place, uint64_t hash, PyObject *owners) {
    self->entries[self->used] = (Entry){hash, Py_NewRef(owners)};
    self->places[place] = (uint32_t)self->used++;
    self->live++;
}

static inline void drop(BlockMap *self, Entry *entry) {
    Py_CLEAR(entry->owners);
    self->live--;
}

static inline void replace(Entry *entry, PyObject *owners) {
    PyObject *before = entry->owners;
    entry->owners = Py_NewRef(owners);
    Py_DECREF(before);
}

static int is_set(PyObject *bits, PyObject *other) {
    PyObject *both = PyNumber_And(bits, other);
    if (both == NULL) return -1;
    int set = PyObject_IsTrue(both);
    Py_DECREF(both);
    return set;
}

static void forget(Change *change) {
    Py_CLEAR(change->before);
    Py_CLEAR(change->after);
}

static int hash_of(PyObject *number, uint64_t *hash) {
    if (!PyLong_Check(number)) {
        PyErr_SetString(PyExc_TypeError, "hashes are integers");
        return -1;
    }
    *hash = PyLong_AsUnsignedLongLongMask(number);
    return 0;
}

static int are_bits(PyObject *one, PyObject *other) {
    if (PyLong_CheckExact(one) && (other == NULL || PyLong_CheckExact(other))) return 1;
    PyErr_SetString(PyExc_TypeError, "owners are the bits of an integer");
    return 0;
}

/* Hashes as they are in an array("Q"), or a copy of any other sequence's. */
typedef struct {
    const uint64_t *items;
    Py_ssize_t count;
    uint64_t *copy; /* NULL: they are in the view */
    Py_buffer view;
} Hashes;

static void release(Hashes *hashes) {
    if (hashes->copy == NULL) {
        PyBuffer_Release(&hashes->view);
    } else {
        PyMem_Free(hashes->copy);
    }
}

static int copy_hashes(PyObject *sequence, Hashes *hashes) {
    PyObject *list = PyList_Check(sequence) ? Py_NewRef(sequence) : PySequence_List(sequence);
    if (list == NULL) return -1;
    hashes->count = PyList_Size(list);
    hashes->items = hashes->copy = PyMem_Malloc((size_t)hashes->count * sizeof(uint64_t) + 1);
    int failed = hashes->copy == NULL;
    if (failed) PyErr_NoMemory();
    for (Py_ssize_t at = 0; !failed && at < hashes->count; at++) failed = hash_of(PyList_GetItem(list, at), hashes->copy + at) < 0;
    Py_DECREF(list);
    if (failed) PyMem_Free(hashes->copy);
    return failed ? -1 : 0;
}

/* All are read before anything changes, and nothing changes them until they are released. */
static int read_hashes(PyObject *sequence, Hashes *hashes) {
    hashes->copy = NULL;
    if (!PyObject_CheckBuffer(sequence)) return copy_hashes(sequence, hashes);
    Py_buffer *view = &hashes->view;
    if (PyObject_GetBuffer(sequence, view, PyBUF_RECORDS_RO) < 0) return -1;
    if (view->ndim != 1 || view->format == NULL || strcmp(view->format, "Q") != 0 || view->strides[0] != sizeof(uint64_t) ||
        (uintptr_t)view->buf % sizeof(uint64_t)) {
        PyBuffer_Release(view);
        return copy_hashes(sequence, hashes);
    }
    hashes->items = view->buf;
    hashes->count = view->len / (Py_ssize_t)sizeof(uint64_t);
    return 0;
}

static int make_room_for(BlockMap *self, const Hashes *hashes) {
    size_t more = (size_t)hashes->count;
    if (self->room && self->used + more > self->room) { /* most of them may be there */
        for (Py_ssize_t at = 0; at < hashes->count; at++) more -= look_up(self, hashes->items[at]) != NULL;
    }
    return make_room(self, more);
}

/* What the blocks after this one will need: first their places, then what is there. There is room. */
static inline void prepare(const BlockMap *self, const Hashes *hashes, Py_ssize_t at) {
    if (at + 2 * AHEAD < hashes->count) __builtin_prefetch(self->places + home(self, hashes->items[at + 2 * AHEAD]));
    if (at + AHEAD < hashes->count) {
        const Entry *entry = entry_at(self, home(self, hashes->items[at + AHEAD]));
        if (entry != NULL) __builtin_prefetch(entry);
    }
}

typedef struct {
    PyObject *bit, *rest;
    Change change;
    Py_ssize_t count;
} Work;

/* What becomes of these owners, and whether they had the bit. */
static int plan(Change *change, PyObject *owners, PyObject *bit, PyObject *(*combine)(PyObject *, PyObject *), PyObject *other) {
    forget(change);
    change->had = is_set(owners, bit);
    if (change->had < 0) return -1;
    change->after = combine(owners, other);
    if (change->after == NULL) return -1;
    change->before = Py_NewRef(owners);
    return 0;
}

static int add_one(BlockMap *self, uint64_t hash, Work *work) {
    size_t place = place_of(self, hash);
    Entry *entry = entry_at(self, place);
    PyObject *owners = entry == NULL ? NULL : entry->owners;
    if (owners == NULL) {
        insert(self, place, hash, work->bit);
        work->count++;
        return 0;
    }
    if (owners == work->bit) return 0;
    Change *change = &work->change;
    if (owners != change->before && plan(change, owners, work->bit, PyNumber_Or, work->bit) < 0) return -1;
    if (!change->had) {
        replace(entry, change->after);
        work->count++;
    }
    return 0;
}

static PyObject *block_map_add(BlockMap *self, PyObject *args) {
    Work work = {0};
    PyObject *run;
    Hashes hashes;
    if (!PyArg_ParseTuple(args, "OO:add", &work.bit, &run) || !are_bits(work.bit, NULL)) return NULL;
    if (read_hashes(run, &hashes) < 0) return NULL;
    int failed = make_room_for(self, &hashes) < 0;
    for (Py_ssize_t at = 0; !failed && at < hashes.count; at++) {
        prepare(self, &hashes, at);
        failed = add_one(self, hashes.items[at], &work) < 0;
    }
    release(&hashes);
    forget(&work.change);
    return failed ? NULL : PyLong_FromSsize_t(work.count);
}

/* What is left of a block's owners is its owners & rest. */
static int take_one(BlockMap *self, uint64_t hash, Work *work) {
    Entry *entry = look_up(self, hash);
    if (entry == NULL) return 0;
    PyObject *owners = entry->owners;
    if (owners == work->bit) { /* nobody else has it */
        drop(self, entry);
        work->count++;
        return 0;
    }
    Change *change = &work->change;
    if (owners != change->before && plan(change, owners, work->bit, PyNumber_And, work->rest) < 0) return -1;
    work->count += change->had;
    int left = PyObject_IsTrue(change->after);
    if (left < 0) return -1;
    if (left) {
        replace(entry, change->after);
    } else {
        drop(self, entry);
    }
    return 0;
}

static PyObject *block_map_take(BlockMap *self, PyObject *args) {
    Work work = {0};
    PyObject *named;
    Hashes hashes;
    if (!PyArg_ParseTuple(args, "OOO:take", &work.bit, &named, &work.rest) || !are_bits(work.bit, work.rest)) return NULL;
    if (read_hashes(named, &hashes) < 0) return NULL;
    int failed = 0;
    for (Py_ssize_t at = 0; !failed && self->live && at < hashes.count; at++) {
        prepare(self, &hashes, at);
        failed = take_one(self, hashes.items[at], &work) < 0;
    }
    release(&hashes);
    forget(&work.change);
    return failed ? NULL : PyLong_FromSsize_t(work.count);
}

static PyObject *block_map_get(BlockMap *self, PyObject *number) {
    uint64_t hash;
    if (hash_of(number, &hash) < 0) return NULL;
    const Entry *entry = look_up(self, hash);
    return entry == NULL ? PyLong_FromLong(0) : Py_NewRef(entry->owners);
}

/* The hashes of those that have the bit and, with others given, also one of those (alone = 0) or none (alone = 1); at most so many. */
static int gather(const BlockMap *self, PyObject *list, PyObject *bit, PyObject *others, int alone, Py_ssize_t most) {
    PyObject *before = NULL; /* entries hold it, and nothing changes meanwhile */
    int wanted = 0;
    for (size_t at = 0; at < self->used && PyList_Size(list) < most; at++) {
        PyObject *owners = self->entries[at].owners;
        if (owners == NULL) continue;
        if (owners != before) {
            wanted = bit == NULL ? 1 : is_set(owners, bit);
            if (wanted > 0 && others != NULL) {
                int shared = is_set(owners, others);
                wanted = shared < 0 ? -1 : shared != alone;
            }
            if (wanted < 0) return -1;
            before = owners;
        }
        if (!wanted) continue;
        PyObject *hash = PyLong_FromUnsignedLongLong(self->entries[at].hash);
        if (hash == NULL || PyList_Append(list, hash) < 0) {
            Py_XDECREF(hash);
            return -1;
        }
        Py_DECREF(hash);
    }
    return 0;
}

static PyObject *block_map_hashes(BlockMap *self, PyObject *args) {
    PyObject *bit = NULL;
    if (!PyArg_ParseTuple(args, "|O:hashes", &bit) || (bit != NULL && !are_bits(bit, NULL))) return NULL;
    PyObject *list = PyList_New(0);
    if (list != NULL && gather(self, list, bit, NULL, 0, PY_SSIZE_T_MAX) < 0) Py_CLEAR(list);
    return list;
}

static PyObject *block_map_dispensable(BlockMap *self, PyObject *args) {
    PyObject *bit, *others;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "OOn:dispensable", &bit, &others, &count) || !are_bits(bit, others)) return NULL;
    if (count < 0) {
        PyErr_SetString(PyExc_ValueError, "count has to be 0 or more");
        return NULL;
    }
    PyObject *list = PyList_New(0);
    if (list != NULL && (gather(self, list, bit, others, 1, count) < 0 || gather(self, list, bit, others, 0, count) < 0)) Py_CLEAR(list);
    return list;
}

static void empty(BlockMap *self) {
    for (size_t at = 0; at < self->used; at++) Py_XDECREF(self->entries[at].owners);
    PyMem_Free(self->entries);
    PyMem_Free(self->places);
    self->entries = NULL;
    self->places = NULL;
    self->room = self->used = self->live = 0;
}

static PyObject *block_map_clear(BlockMap *self, PyObject *unused) {
    (void)unused;
    empty(self);
    return Py_NewRef(Py_None);
}

static PyObject *block_map_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"factor", NULL};
    unsigned long long factor;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K", names, &factor)) return NULL;
    BlockMap *self = (BlockMap *)PyType_GenericAlloc(type, 0);
    if (self != NULL) self->factor = factor | 1;
    return (PyObject *)self;
}

static Py_ssize_t block_map_length(BlockMap *self) { return (Py_ssize_t)self->live; }

static void block_map_dealloc(BlockMap *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    empty(self);
    freefunc deallocate = (freefunc)PyType_GetSlot(type, Py_tp_free);
    deallocate(self);
    Py_DECREF(type);
}

static PyMethodDef block_map_methods[] = {
    {"add", (PyCFunction)block_map_add, METH_VARARGS, "add(bit, hashes) -> how many had it not"},
    {"take", (PyCFunction)block_map_take, METH_VARARGS, "take(bit, hashes, rest) -> how many had it"},
    {"get", (PyCFunction)block_map_get, METH_O, "get(hash) -> owners"},
    {"hashes", (PyCFunction)block_map_hashes, METH_VARARGS, "hashes(bits) -> the hashes of which one of these is an owner"},
    {"dispensable", (PyCFunction)block_map_dispensable, METH_VARARGS, "dispensable(bit, others, count) -> hashes"},
    {"clear", (PyCFunction)block_map_clear, METH_NOARGS, "clear()"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot block_map_slots[] = {
    {Py_tp_new, block_map_new},
    {Py_tp_dealloc, block_map_dealloc},
    {Py_tp_methods, block_map_methods},
    {Py_sq_length, block_map_length},
    {Py_tp_doc, "BlockMap(factor): see block_map.py"},
    {0, NULL},
};

static PyType_Spec block_map_spec = {
    .name = "dynamo_core.kv._block_map.BlockMap",
    .basicsize = sizeof(BlockMap),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = block_map_slots,
};

static PyObject *array_of(PyObject *module, const uint64_t *hashes, Py_ssize_t count) {
    PyObject *type = PyObject_GetAttrString(module, ARRAY);
    if (type == NULL) return NULL;
    PyObject *array = PyObject_CallFunction(type, "sy#", "Q", (const char *)hashes, count * (Py_ssize_t)sizeof(uint64_t));
    Py_DECREF(type);
    return array;
}

static PyObject *multiples(PyObject *module, PyObject *args) {
    PyObject *sequence;
    unsigned long long of;
    Hashes hashes;
    if (!PyArg_ParseTuple(args, "OK:multiples", &sequence, &of)) return NULL;
    if (of == 0) {
        PyErr_SetString(PyExc_ZeroDivisionError, "multiples of 0");
        return NULL;
    }
    if (read_hashes(sequence, &hashes) < 0) return NULL;
    uint64_t *found = PyMem_Malloc((size_t)hashes.count * sizeof(uint64_t) + 1);
    Py_ssize_t count = 0;
    for (Py_ssize_t at = 0; found != NULL && at < hashes.count; at++) {
        found[count] = hashes.items[at];
        count += (of & (of - 1) ? hashes.items[at] % of : hashes.items[at] & (of - 1)) == 0;
    }
    PyObject *array = found == NULL ? PyErr_NoMemory() : array_of(module, found, count);
    PyMem_Free(found);
    release(&hashes);
    return array;
}

static PyMethodDef module_methods[] = {
    {"multiples", multiples, METH_VARARGS, "multiples(hashes, of) -> those that can be divided"},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module) {
    PyObject *library = PyImport_ImportModule("array");
    PyObject *array = library == NULL ? NULL : PyObject_GetAttrString(library, "array");
    int failed = array == NULL || PyModule_AddObjectRef(module, ARRAY, array) < 0;
    Py_XDECREF(array);
    Py_XDECREF(library);
    if (failed) return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, &block_map_spec, NULL);
    if (type == NULL) return -1;
    int added = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return added;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_block_map",
    .m_doc = "The dict of a prefix index.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__block_map(void) { return PyModuleDef_Init(&module_definition); }
