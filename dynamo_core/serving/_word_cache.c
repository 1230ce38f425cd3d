/* Token ids of text, word by word, from a table of words seen before.
 *
 * An encoder's work on a word ends in the same ids each time. So text is cut before spaces, and what is in the table is copied from
 * there, at some 15 ns a word; the rest is asked of the encoder, whose own tables are larger than the processor's caches: the first
 * call after other work costs 35 us. Whether a model's tokenizer lets itself be cut there, and after which bytes, is for the caller to
 * find out: see word_cuts.py.
 *
 * Memory is bounded: entries have one size, and what a new word takes the place of is the last of its set, one that was not asked for
 * of late. The interpreter's lock guards the table. It may be given up while the encoder is asked, when nothing here points into the table.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if PY_BIG_ENDIAN
#error "entries are laid out for little-endian machines; without this part, everything works as well"
#endif

#define WAYS 8
#define LONGEST 31 /* bytes of a word in the table, its space included */
#define BEGINS ((uint64_t)1 << 63) /* of the last byte of a word that a text begins with: it may be spelt otherwise there */
#define MOST_IDS 7
#define BETWEEN 24 /* ids between two gaps up to which they are one: to encode those again costs less than another call */
#define WINDOW 2048 /* bytes after which it is asked whether looking up pays here; code and tables are made of words never seen */
#define PASSED_OVER 8192 /* bytes that are left to the encoder unseen where it does not */
#define LONG_GAPS 8 /* of so many, one is learnt from */
#define AHEAD 8 /* words that are scanned before one is looked up */
#define HUGE_PAGE ((size_t)2 << 20)

typedef struct {
    uint64_t parts[4]; /* the word's bytes, then zeros, then in the last byte its length, which is 0 in an empty entry, and BEGINS */
} Key;

typedef struct {
    Key key;
    uint32_t count;
    uint32_t ids[MOST_IDS];
} Entry;

typedef struct {
    PyObject_HEAD
    PyObject *encode;
    PyObject *context;
    Py_ssize_t skipped;
    char after[256];
    uint64_t mask;
    Entry *entries;
    PyObject *lengths; /* bytes: of how many bytes of text a token is made, by id; 0 and 255 where that is not known */
    int ascii;
    unsigned long_gaps;
    uint64_t hits, misses;
} WordCache;

/* What the encoder is asked for. */
typedef struct {
    const char *text;
    Py_ssize_t length;
    size_t at; /* where its ids belong: so many ids from the table come before */
} Gap;

typedef struct {
    uint32_t *ids;
    size_t count;
    Gap *gaps;
    size_t gap_count, gap_room;
} Found;

#define ONES 0x0101010101010101ULL
#define HIGH_BITS 0x8080808080808080ULL

static const unsigned char WINDOW_OF_ONES[64] = {
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, /* and 32 zeros */
};

/* Words differ in length from one to the next, so nothing here branches on it. */
static inline Key keyed(const char *word, Py_ssize_t length, const char *end, int begins) {
    Key key = {{0, 0, 0, 0}};
    if (end - word < 32) {
        memcpy(&key, word, (size_t)length);
    } else {
        Key first;
        memcpy(&key, word, sizeof key);
        memcpy(&first, WINDOW_OF_ONES + 32 - length, sizeof first);
        for (int part = 0; part < 4; part++) key.parts[part] &= first.parts[part];
    }
    key.parts[3] |= (uint64_t)length << 56 | (begins ? BEGINS : 0);
    return key;
}

static inline uint64_t hashed(const Key *key) {
    uint64_t hash = key->parts[0] ^ (key->parts[1] * 0x9E3779B97F4A7C15ULL);
    hash ^= (key->parts[2] * 0xC2B2AE3D27D4EB4FULL) ^ (key->parts[3] * 0x165667B19E3779F9ULL);
    hash *= 0xD6E8FEB86659FD93ULL;
    hash ^= hash >> 32;
    return hash * 0xD6E8FEB86659FD93ULL;
}

static inline int same(const Key *one, const Key *other) {
    return ((one->parts[0] ^ other->parts[0]) | (one->parts[1] ^ other->parts[1]) | (one->parts[2] ^ other->parts[2]) | (one->parts[3] ^ other->parts[3])) == 0;
}

static inline Entry *set_of(const WordCache *self, const Key *key) { return self->entries + ((hashed(key) >> 32) & self->mask) * WAYS; }

/* The entry, moved one place to the front; NULL if there is none. */
static inline Entry *look_up(Entry *set, const Key *key) {
    for (int way = 0; way < WAYS; way++) {
        Entry *entry = set + way;
        if (same(&entry->key, key)) {
            if (way == 0) return entry;
            Entry moved = *entry;
            *entry = set[way - 1];
            set[way - 1] = moved;
            return set + way - 1;
        }
    }
    return NULL;
}

static int add_gap(Found *found, const char *text, Py_ssize_t length) {
    Gap *last = found->gap_count ? found->gaps + found->gap_count - 1 : NULL;
    if (last != NULL && found->count - last->at <= BETWEEN) {
        last->length = text + length - last->text;
        found->count = last->at;
        return 0;
    }
    if (found->gap_count == found->gap_room) {
        size_t room = found->gap_room ? 2 * found->gap_room : 16;
        Gap *gaps = PyMem_Realloc(found->gaps, room * sizeof(Gap));
        if (gaps == NULL) return -1;
        found->gaps = gaps;
        found->gap_room = room;
    }
    found->gaps[found->gap_count++] = (Gap){text, length, found->count};
    return 0;
}

/* Where the word ends that begins at start. Its first byte may be the space of the cut before. */
static inline const char *next_cut(const WordCache *self, const char *start, const char *end) {
    const char *at = start + 1;
    for (; end - at >= 8; at += 8) {
        uint64_t part;
        memcpy(&part, at, 8);
        uint64_t other = part ^ (' ' * ONES); /* its zeros are spaces; these have their high bit set in what follows */
        uint64_t spaces = ~(((other & ~HIGH_BITS) + ~HIGH_BITS) | other) & HIGH_BITS;
        for (; spaces; spaces &= spaces - 1) {
            const char *space = at + (__builtin_ctzll(spaces) >> 3);
            if (self->after[(unsigned char)space[-1]]) return space;
        }
    }
    for (; at < end; at++) {
        if (*at == ' ' && self->after[(unsigned char)at[-1]]) return at;
    }
    return end;
}

/* A word that will be looked up. By then its set should be there: it is as far away as memory itself when others use the caches. */
typedef struct {
    Key key;
    Entry *set; /* NULL for one that cannot be in the table */
    Py_ssize_t size;
} Word;

static inline Word scan(const WordCache *self, const char *start, const char *end, int begins) {
    Word word = {.size = next_cut(self, start, end) - start};
    if (word.size <= LONGEST) {
        word.key = keyed(start, word.size, end, begins);
        word.set = set_of(self, &word.key);
        __builtin_prefetch(word.set);
    }
    return word;
}

static int look_through(WordCache *self, const char *text, Py_ssize_t length, Found *found) {
    const char *end = text + length, *start = text, *window = text, *scanned = text;
    Py_ssize_t missed = 0;
    Word words[AHEAD];
    size_t first = 0, next = 0;
    if (length == 0) return add_gap(found, text, 0);
    while (start < end) {
        if (start - window >= WINDOW) {
            if (4 * missed > start - window) {
                const char *stop = end - start > PASSED_OVER ? next_cut(self, start + PASSED_OVER, end) : end;
                if (add_gap(found, start, stop - start) < 0) return -1;
                start = scanned = stop;
                first = next;
            }
            window = start;
            missed = 0;
            continue;
        }
        while (next - first < AHEAD && scanned < end) {
            words[next % AHEAD] = scan(self, scanned, end, scanned == text);
            scanned += words[next++ % AHEAD].size;
        }
        Word *word = words + first++ % AHEAD;
        Entry *entry = word->set == NULL ? NULL : look_up(word->set, &word->key);
        if (entry != NULL) {
            memcpy(found->ids + found->count, entry->ids, sizeof entry->ids); /* there is room for more than count */
            found->count += entry->count;
            self->hits++;
        } else {
            self->misses++;
            missed += word->size;
            if (add_gap(found, start, word->size) < 0) return -1;
        }
        start += word->size;
    }
    return 0;
}

/* Where there is none free, a new word has the last place but one of its set, and the last goes. Only those that come again move on,
 * and two that come in turn stay. */
static void learn(WordCache *self, const char *word, const char *stop, const char *end, int begins, const char *ids, size_t count) {
    if (stop - word > LONGEST || count > MOST_IDS) return;
    Key key = keyed(word, stop - word, end, begins);
    Entry *set = set_of(self, &key), *entry = set;
    if (look_up(set, &key) != NULL) return;
    while (entry < set + WAYS - 1 && entry->key.parts[3] != 0) entry++;
    if (entry == set + WAYS - 1) {
        *entry = entry[-1];
        entry--;
    }
    memset(entry, 0, sizeof *entry);
    entry->key = key;
    entry->count = (uint32_t)count;
    memcpy(entry->ids, ids, 4 * count);
}

static int is_ascii(const char *text, Py_ssize_t length) {
    uint64_t high = 0, part;
    for (; length >= 8; text += 8, length -= 8) {
        memcpy(&part, text, 8);
        high |= part;
    }
    for (; length > 0; text++, length--) high |= (uint64_t)(unsigned char)*text << 56;
    return (high & HIGH_BITS) == 0;
}

/* Whether the lengths of tokens are those of the text: no character of several bytes where these may be normalized, and nowhere the
 * mark ▁, which counts as the space that it stands for. */
static int is_plain(const WordCache *self, const char *text, Py_ssize_t length) {
    const char *end = text + length;
    if (is_ascii(text, length)) return 1;
    if (self->ascii) return 0;
    for (; (text = memchr(text, 0xE2, (size_t)(end - text))) != NULL; text++) {
        if (end - text >= 3 && memcmp(text, "\xE2\x96\x81", 3) == 0) return 0;
    }
    return 1;
}

static inline uint32_t id_at(const char *ids, size_t index) {
    uint32_t id;
    memcpy(&id, ids + 4 * index, 4);
    return id;
}

/* The words of a gap, whose ids are told apart by the bytes that each stands for. Where those are not the text's, nothing is learnt.
 *
 * Some tokenizers put a space before a text and after added tokens, unless there is one already. So one more than the text has may be
 * the first word's or a later one's; but words before that one end where the tokens do without it. The first that does not has the
 * space: it can be learnt if it begins the text, and what follows in any case. */
static void learn_words(WordCache *self, const Gap *gap, int first, const char *ids, size_t count) {
    Py_ssize_t known, total = 0;
    char *lengths;
    if (gap->length > WINDOW && self->long_gaps++ % LONG_GAPS != 0) return;
    if (PyBytes_AsStringAndSize(self->lengths, &lengths, &known) < 0 || !is_plain(self, gap->text, gap->length)) return;
    for (size_t index = 0; index < count; index++) {
        uint32_t id = id_at(ids, index);
        if (id >= (size_t)known || lengths[id] == 0 || (unsigned char)lengths[id] == 255) return;
        total += (unsigned char)lengths[id];
    }
    Py_ssize_t more = total - gap->length;
    if (more != 0 && !(first && more == 1)) return;
    const char *end = gap->text + gap->length, *start = gap->text, *stop = next_cut(self, start, end), *at = start - more;
    size_t begun = 0;
    int behind = more == 0, either = 0;
    for (size_t index = 0; index < count; index++) {
        at += (unsigned char)lengths[id_at(ids, index)];
        if (at > stop) return;
        either |= at + more == stop;
        if (at == stop) {
            int begins = first && start == gap->text, had = behind;
            behind |= !either;
            if (begins ? behind : had) learn(self, start, stop, end, begins, ids + 4 * begun, index + 1 - begun);
            either = 0;
            begun = index + 1;
            start = stop;
            if (start < end) stop = next_cut(self, start, end);
        }
    }
}

/* The gaps as strings. All but the text's beginning come after the context, so that they are not taken for a beginning. */
static PyObject *asked(WordCache *self, PyObject *whole, const char *text, Py_ssize_t length, const Found *found) {
    PyObject *texts = PyList_New((Py_ssize_t)found->gap_count);
    if (texts == NULL) return NULL;
    for (size_t at = 0; at < found->gap_count; at++) {
        const Gap *gap = found->gaps + at;
        PyObject *part = gap->length == length ? Py_NewRef(whole) : PyUnicode_DecodeUTF8(gap->text, gap->length, "strict");
        if (part != NULL && gap->text != text) {
            PyObject *after = PyUnicode_Concat(self->context, part);
            Py_DECREF(part);
            part = after;
        }
        if (part == NULL || PyList_SetItem(texts, (Py_ssize_t)at, part) < 0) {
            Py_DECREF(texts);
            return NULL;
        }
    }
    return texts;
}

/* The ids of a gap without its context's; NULL with an error if the answer does not hold them. */
static const char *ids_of(const WordCache *self, PyObject *answers, const Found *found, size_t at, const char *text, size_t *count) {
    PyObject *packed = PyList_GetItem(answers, (Py_ssize_t)at);
    Py_ssize_t size, skipped = found->gaps[at].text == text ? 0 : self->skipped;
    char *ids;
    if (packed == NULL || PyBytes_AsStringAndSize(packed, &ids, &size) < 0) return NULL;
    if (size % 4 != 0 || size / 4 < skipped) {
        PyErr_SetString(PyExc_ValueError, "the encoder's answer is no array of 32-bit ids, or has not the context's");
        return NULL;
    }
    *count = (size_t)(size / 4 - skipped);
    return ids + 4 * skipped;
}

static PyObject *assembled(WordCache *self, const char *text, const Found *found, PyObject *answers) {
    size_t total = found->count, count, taken = 0;
    for (size_t at = 0; at < found->gap_count; at++) {
        const char *ids = ids_of(self, answers, found, at, text, &count);
        if (ids == NULL) return NULL;
        total += count;
        learn_words(self, found->gaps + at, found->gaps[at].text == text, ids, count);
    }
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(4 * total));
    if (result == NULL) return NULL;
    char *to = PyBytes_AsString(result);
    for (size_t at = 0; at < found->gap_count; at++) {
        size_t known = found->gaps[at].at - taken;
        memcpy(to, found->ids + taken, 4 * known);
        to += 4 * known;
        taken += known;
        const char *ids = ids_of(self, answers, found, at, text, &count);
        memcpy(to, ids, 4 * count);
        to += 4 * count;
    }
    memcpy(to, found->ids + taken, 4 * (found->count - taken));
    return result;
}

/* Bytes of a text that the encoder is to be asked for. */
static Py_ssize_t missing(const Found *found) {
    Py_ssize_t bytes = 0;
    for (size_t at = 0; at < found->gap_count; at++) bytes += found->gaps[at].length;
    return bytes;
}

/* None if the encoder would have to be asked for more bytes than most. */
static PyObject *encode_within(WordCache *self, PyObject *argument, Py_ssize_t most) {
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(argument, &length); /* the string's own, so it lives as long */
    if (text == NULL) return NULL;
    PyObject *result = NULL, *texts = NULL, *answers = NULL;
    Found found = {0};
    /* A word takes two bytes at least, the text's last and those in a gap one, and an entry's ids are copied whole. */
    found.ids = PyMem_Malloc(((size_t)length / 2 + 2) * sizeof(uint32_t[MOST_IDS]));
    if (found.ids == NULL || look_through(self, text, length, &found) < 0) {
        PyErr_NoMemory();
        goto end;
    }
    if (missing(&found) > most) {
        result = Py_NewRef(Py_None);
        goto end;
    }
    if (found.gap_count) {
        texts = asked(self, argument, text, length, &found);
        if (texts == NULL) goto end;
        PyObject *sequence = PyObject_CallFunctionObjArgs(self->encode, texts, NULL);
        if (sequence == NULL) goto end;
        answers = PySequence_List(sequence);
        Py_DECREF(sequence);
        if (answers == NULL) goto end;
        if ((size_t)PyList_Size(answers) != found.gap_count) {
            PyErr_SetString(PyExc_ValueError, "the encoder has to answer with bytes for each text");
            goto end;
        }
    }
    result = assembled(self, text, &found, answers);
end:
    Py_XDECREF(texts);
    Py_XDECREF(answers);
    PyMem_Free(found.ids);
    PyMem_Free(found.gaps);
    return result;
}

static PyObject *word_cache_encode(WordCache *self, PyObject *text) { return encode_within(self, text, PY_SSIZE_T_MAX); }

static PyObject *word_cache_recall(WordCache *self, PyObject *args) {
    PyObject *text;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "On:recall", &text, &most)) return NULL;
    return encode_within(self, text, most);
}

/* Of zeros. Words are all over the table, and in pages of 4 KiB each would cost a walk through the page tables as well. */
static Entry *new_entries(size_t space) { /* a power of two */
    size_t alignment = space < HUGE_PAGE ? sizeof(Entry) : HUGE_PAGE;
    Entry *entries = aligned_alloc(alignment, space);
    if (entries == NULL) return NULL;
#ifdef MADV_HUGEPAGE
    if (alignment == HUGE_PAGE) madvise(entries, space, MADV_HUGEPAGE);
#endif
    return memset(entries, 0, space);
}

static PyObject *word_cache_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"encode", "context", "skipped", "after", "lengths", "ascii", "entries", NULL};
    PyObject *encode, *context, *after, *lengths;
    Py_ssize_t skipped, entries, count;
    int ascii;
    char *bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OUnSSpn", names, &encode, &context, &skipped, &after, &lengths, &ascii, &entries)) return NULL;
    if (skipped < 0 || entries < WAYS || entries > ((Py_ssize_t)1 << 28)) {
        PyErr_Format(PyExc_ValueError, "skipped has to be 0 or more, entries between %d and 2**28", WAYS);
        return NULL;
    }
    if (PyBytes_AsStringAndSize(after, &bytes, &count) < 0) return NULL;
    if (memchr(bytes, ' ', (size_t)count) != NULL) { /* what encode allocates is enough for words of two bytes */
        PyErr_SetString(PyExc_ValueError, "after must not hold the space: text is cut before the first of several");
        return NULL;
    }
    WordCache *self = (WordCache *)PyType_GenericAlloc(type, 0);
    if (self == NULL) return NULL;
    self->encode = Py_NewRef(encode);
    self->context = Py_NewRef(context);
    self->lengths = Py_NewRef(lengths);
    self->skipped = skipped;
    self->ascii = ascii;
    for (Py_ssize_t at = 0; at < count; at++) self->after[(unsigned char)bytes[at]] = 1;
    uint64_t sets = 1;
    while (2 * sets * WAYS <= (uint64_t)entries) sets *= 2;
    self->mask = sets - 1;
    self->entries = new_entries(sets * WAYS * sizeof(Entry));
    if (self->entries == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static int word_cache_traverse(WordCache *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->encode);
    return 0;
}

/* The others refer to nothing and are used without a look whether they are there. */
static int word_cache_clear(WordCache *self) {
    Py_CLEAR(self->encode);
    return 0;
}

static void word_cache_dealloc(WordCache *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    word_cache_clear(self);
    Py_XDECREF(self->context);
    Py_XDECREF(self->lengths);
    free(self->entries);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *word_cache_hits(WordCache *self, void *unused) { (void)unused; return PyLong_FromUnsignedLongLong(self->hits); }
static PyObject *word_cache_misses(WordCache *self, void *unused) { (void)unused; return PyLong_FromUnsignedLongLong(self->misses); }

static PyMethodDef word_cache_methods[] = {
    {"encode", (PyCFunction)word_cache_encode, METH_O, "encode(text) -> the ids of the text, 4 bytes each in the machine's order"},
    {"recall", (PyCFunction)word_cache_recall, METH_VARARGS, "recall(text, most) -> the same, or None where more bytes are unseen"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef word_cache_getset[] = {
    {"hits", (getter)word_cache_hits, NULL, "Words found in the table.", NULL},
    {"misses", (getter)word_cache_misses, NULL, "Parts of texts that the encoder was asked for.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot word_cache_slots[] = {
    {Py_tp_new, word_cache_new},
    {Py_tp_traverse, word_cache_traverse},
    {Py_tp_clear, word_cache_clear},
    {Py_tp_dealloc, word_cache_dealloc},
    {Py_tp_methods, word_cache_methods},
    {Py_tp_getset, word_cache_getset},
    {Py_tp_doc, "WordCache(encode, context, skipped, after, lengths, ascii, entries): see the stub."},
    {0, NULL},
};

static PyType_Spec word_cache_spec = {
    .name = "dynamo_core.serving._word_cache.WordCache",
    .basicsize = sizeof(WordCache),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = word_cache_slots,
};

static int module_exec(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &word_cache_spec, NULL);
    if (type == NULL) return -1;
    int added = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return added;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_word_cache",
    .m_doc = "Token ids of words seen before.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__word_cache(void) { return PyModuleDef_Init(&module_definition); }
