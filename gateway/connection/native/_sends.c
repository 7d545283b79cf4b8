/* Sends one piece of bytes on many sockets, without the GIL. Limited API: one build for all versions of Python.
 *
 * Rules:
 * - A socket is used only if its transport does not close and has no byte in its buffer: then the transport itself would
 *   write to the socket at once, so no byte can overtake another. Both are asked in the call, with the GIL, immediately
 *   before the sends; the event loop's thread is in here meanwhile, so no socket can be closed or opened by it.
 * - io_uring may do the sends, in one system call; it holds no request when the call returns.
 * - Nothing waits (MSG_DONTWAIT). Whatever a socket does not take, for whatever reason, is for the caller to give to the
 *   transport, which queues it or finds the error itself.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <errno.h>
#include <limits.h>
#include <linux/io_uring.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    int fd;
    PyObject *transport;
    PyObject *is_closing;            /* functions of the transport's class */
    PyObject *get_write_buffer_size;
} Direct;

typedef struct {
    int fd; /* -1 = not to be used */
    Py_ssize_t sent;
} Send;

typedef struct {
    PyTypeObject *direct_type, *ring_type;
} State;

static PyObject *direct_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int fd;
    PyObject *transport;
    static char *names[] = {"fd", "transport", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO", names, &fd, &transport)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Direct *self = (Direct *)alloc(type, 0);
    if (self == NULL) return NULL;
    self->fd = fd;
    self->transport = Py_NewRef(transport);
    PyObject *kind = (PyObject *)Py_TYPE(transport);
    self->is_closing = PyObject_GetAttrString(kind, "is_closing");
    if (self->is_closing != NULL) self->get_write_buffer_size = PyObject_GetAttrString(kind, "get_write_buffer_size");
    if (self->get_write_buffer_size == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int direct_traverse(PyObject *object, visitproc visit, void *arg) {
    Direct *self = (Direct *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->transport);
    Py_VISIT(self->is_closing);
    Py_VISIT(self->get_write_buffer_size);
    return 0;
}

static int direct_clear(PyObject *object) {
    Direct *self = (Direct *)object;
    Py_CLEAR(self->transport);
    Py_CLEAR(self->is_closing);
    Py_CLEAR(self->get_write_buffer_size);
    return 0;
}

static void direct_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    direct_clear(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyType_Slot direct_slots[] = {
    {Py_tp_doc, "Direct(fd, transport)\n--\n\nThe socket of one transport, for `send_many`."},
    {Py_tp_new, direct_new},
    {Py_tp_traverse, direct_traverse},
    {Py_tp_clear, direct_clear},
    {Py_tp_dealloc, direct_dealloc},
    {0, NULL},
};

static PyType_Spec direct_spec = {
    .name = "snorky.gateway.connection.native._sends.Direct",
    .basicsize = sizeof(Direct),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = direct_slots,
};

/* Whether a transport's method returns 0 or False. -1: an exception is set. */
static int returns_zero(PyObject *method, PyObject *transport) {
    PyObject *answer = PyObject_CallFunctionObjArgs(method, transport, NULL);
    if (answer == NULL) return -1;
    int truth = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return truth < 0 ? -1 : !truth;
}

/* The socket of a transport that is open and has an empty buffer; -1: it is not to be used, -2: an exception is set. */
static int usable_fd(PyObject *object) {
    Direct *direct = (Direct *)object;
    if (direct->transport == NULL) return -1; /* the garbage collector has cleared it */
    Py_INCREF(object); /* a transport in Python may run any code */
    int is_usable = returns_zero(direct->is_closing, direct->transport);
    if (is_usable == 1) is_usable = returns_zero(direct->get_write_buffer_size, direct->transport);
    int fd = direct->fd;
    Py_DECREF(object);
    if (is_usable >= 0) return is_usable ? fd : -1;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -2;
    PyErr_Clear(); /* the transport's own write will raise it for the caller */
    return -1;
}

/* Send what the socket takes; the number of bytes, 0 on any error. Not by the library's send(): in a process with threads
 * each call of that costs 0.1 us more, because a thread could be cancelled in it. */
static Py_ssize_t send_now(int fd, const char *data, size_t length) {
    long sent = syscall(SYS_sendto, fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
    return sent < 0 ? 0 : (Py_ssize_t)sent;
}

/* -- io_uring: the kernel reads the sends of a queue in one system call, and has done all of them when it returns -- */

#define RING_ENTRIES 1024
#ifndef IORING_SETUP_SUBMIT_ALL
#define IORING_SETUP_SUBMIT_ALL (1U << 7) /* Linux 5.18: one bad request does not keep the others back */
#endif

typedef struct {
    PyObject_HEAD
    int fd, is_busy;
    pid_t owner;
    char *queues;
    size_t queues_bytes;
    struct io_uring_sqe *requests;
    size_t requests_bytes;
    unsigned *tail, *order, mask, entries;               /* of the requests */
    unsigned *done_head, *done_tail, done_mask;          /* of what is done */
    struct io_uring_cqe *done;
} Ring;

static void ring_dealloc(PyObject *object) {
    Ring *self = (Ring *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->requests != NULL) munmap(self->requests, self->requests_bytes);
    if (self->queues != NULL) munmap(self->queues, self->queues_bytes);
    if (self->fd >= 0) close(self->fd);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static void *ring_map(int fd, size_t size, off_t offset) {
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    if (found == MAP_FAILED) return NULL;
    madvise(found, size, MADV_DONTFORK);
    return found;
}

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Ring *self = (Ring *)alloc(type, 0);
    if (self == NULL) return NULL;
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    params.flags = IORING_SETUP_SUBMIT_ALL;
    self->fd = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, &params); /* close-on-exec */
    if (self->fd < 0) goto failed;
    if (!(params.features & IORING_FEAT_SINGLE_MMAP)) {
        errno = ENOSYS;
        goto failed;
    }
    size_t requests_end = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t done_end = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    self->queues_bytes = requests_end > done_end ? requests_end : done_end;
    self->requests_bytes = params.sq_entries * sizeof(struct io_uring_sqe);
    self->queues = ring_map(self->fd, self->queues_bytes, IORING_OFF_SQ_RING);
    self->requests = self->queues == NULL ? NULL : ring_map(self->fd, self->requests_bytes, IORING_OFF_SQES);
    if (self->requests == NULL) goto failed;
    self->owner = getpid();
    self->entries = params.sq_entries;
    self->tail = (unsigned *)(self->queues + params.sq_off.tail);
    self->order = (unsigned *)(self->queues + params.sq_off.array);
    self->mask = *(unsigned *)(self->queues + params.sq_off.ring_mask);
    self->done_head = (unsigned *)(self->queues + params.cq_off.head);
    self->done_tail = (unsigned *)(self->queues + params.cq_off.tail);
    self->done_mask = *(unsigned *)(self->queues + params.cq_off.ring_mask);
    self->done = (struct io_uring_cqe *)(self->queues + params.cq_off.cqes);
    return (PyObject *)self;
failed:
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(self);
    return NULL;
}

static unsigned take_done(Ring *ring, Send *sends) {
    unsigned head = *ring->done_head, tail = __atomic_load_n(ring->done_tail, __ATOMIC_ACQUIRE), count = tail - head;
    for (; head != tail; head++) {
        struct io_uring_cqe *one = &ring->done[head & ring->done_mask];
        sends[one->user_data].sent = one->res < 0 ? 0 : one->res;
    }
    __atomic_store_n(ring->done_head, head, __ATOMIC_RELEASE);
    return count;
}

/* Have the kernel do the last `count` requests. When this returns, none is in the queue or under way. */
static void run_requests(Ring *ring, Send *sends, unsigned count) {
    unsigned taken = 0, done = 0;
    while (done < count) {
        long result = syscall(SYS_io_uring_enter, ring->fd, count - taken, count - done, IORING_ENTER_GETEVENTS, NULL, 0);
        int is_refused = result == 0 || (result < 0 && errno != EINTR);
        if (result > 0) taken += (unsigned)result;
        done += take_done(ring, sends);
        if (is_refused && done == taken && taken < count) { /* the kernel reads the tail only in the call: take it back */
            __atomic_store_n(ring->tail, *ring->tail - (count - taken), __ATOMIC_RELEASE);
            return;
        }
    }
}

static void send_by_ring(Ring *ring, Send *sends, Py_ssize_t count, const char *data, size_t length) {
    Py_ssize_t next = 0;
    unsigned filled;
    do {
        unsigned tail = *ring->tail;
        for (filled = 0; next < count && filled < ring->entries; next++) {
            if (sends[next].fd < 0) continue;
            struct io_uring_sqe *request = &ring->requests[tail & ring->mask];
            memset(request, 0, sizeof *request);
            request->opcode = IORING_OP_SEND;
            request->fd = sends[next].fd;
            request->addr = (uintptr_t)data;
            request->len = length > INT_MAX ? INT_MAX : (unsigned)length;
            request->msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL; /* the first also means: do not wait in the background */
            request->user_data = (unsigned long long)next;
            ring->order[tail & ring->mask] = tail & ring->mask;
            tail++;
            filled++;
        }
        __atomic_store_n(ring->tail, tail, __ATOMIC_RELEASE);
        run_requests(ring, sends, filled);
    } while (next < count);
}

/* What is left to do; the sends are done. */
static PyObject *incomplete(const Send *sends, Py_ssize_t count, Py_ssize_t length) {
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < count; i++) {
        if (sends[i].fd >= 0 && sends[i].sent == length) continue;
        PyObject *pair = Py_BuildValue("nn", i, sends[i].sent);
        if (pair == NULL || PyList_Append(found, pair) < 0) Py_CLEAR(found);
        Py_XDECREF(pair);
    }
    return found;
}

/* ring: NULL = a system call for each send. */
static PyObject *send_all(State *state, Ring *ring, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !PyList_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "send_many takes a list and bytes");
        return NULL;
    }
    PyObject *targets = args[0];
    char *data;
    Py_ssize_t length, count = PyList_Size(targets);
    if (PyBytes_AsStringAndSize(args[1], &data, &length) < 0) return NULL;
    Send *sends = PyMem_Calloc(count ? (size_t)count : 1, sizeof(Send));
    if (sends == NULL) return PyErr_NoMemory();
    PyObject *result = NULL;
    int is_any_usable = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *target = PyList_GetItem(targets, i); /* borrowed; an error if a transport has shortened the list */
        if (target == NULL) goto end;
        if (Py_TYPE(target) == state->direct_type) {
            sends[i].fd = usable_fd(target);
        } else if (Py_IsNone(target)) {
            sends[i].fd = -1;
        } else {
            PyErr_SetString(PyExc_TypeError, "send_many takes a list of Direct or None");
            goto end;
        }
        if (sends[i].fd == -2) goto end;
        is_any_usable |= sends[i].fd >= 0;
    }
    if (!is_any_usable) {
        result = Py_NewRef(Py_None);
        goto end;
    }
    if (ring != NULL && (ring->is_busy || ring->owner != getpid())) {
        PyErr_SetString(PyExc_RuntimeError, "another thread or process uses this ring");
        goto end;
    }
    if (ring != NULL) ring->is_busy = 1;
    Py_BEGIN_ALLOW_THREADS
    if (ring != NULL) {
        send_by_ring(ring, sends, count, data, (size_t)length);
    } else {
        for (Py_ssize_t i = 0; i < count; i++) {
            if (sends[i].fd >= 0) sends[i].sent = send_now(sends[i].fd, data, (size_t)length);
        }
    }
    Py_END_ALLOW_THREADS
    if (ring != NULL) ring->is_busy = 0;
    result = incomplete(sends, count, length);
end:
    PyMem_Free(sends);
    return result;
}

static PyObject *send_many(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    return send_all(PyModule_GetState(module), NULL, args, nargs);
}

static PyObject *ring_send_many(PyObject *self, PyTypeObject *type, PyObject *const *args, size_t nargs, PyObject *names) {
    if (names != NULL) {
        PyErr_SetString(PyExc_TypeError, "send_many takes no keywords");
        return NULL;
    }
    return send_all(PyType_GetModuleState(type), (Ring *)self, args, (Py_ssize_t)nargs);
}

static PyMethodDef ring_methods[] = {
    {"send_many", (PyCFunction)(void (*)(void))ring_send_many, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "As the module's send_many, with one system call for all sends."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "Ring()\n--\n\nAn io_uring of this process; OSError: the kernel or the container does not allow it."},
    {Py_tp_new, ring_new},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_methods, ring_methods},
    {0, NULL},
};

static PyType_Spec ring_spec = {
    .name = "snorky.gateway.connection.native._sends.Ring",
    .basicsize = sizeof(Ring),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ring_slots,
};

static PyMethodDef methods[] = {
    {"send_many", (PyCFunction)(void (*)(void))send_many, METH_FASTCALL,
     "send_many(targets, data)\n--\n\nSend data on each target's socket; return (index, bytes sent) of those that did not take all."},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module) {
    State *state = PyModule_GetState(module);
    state->direct_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &direct_spec, NULL);
    if (state->direct_type == NULL || PyModule_AddType(module, state->direct_type) < 0) return -1;
    state->ring_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ring_spec, NULL);
    return state->ring_type == NULL ? -1 : PyModule_AddType(module, state->ring_type);
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    State *state = PyModule_GetState(module);
    Py_VISIT(state->direct_type);
    Py_VISIT(state->ring_type);
    return 0;
}

static int clear(PyObject *module) {
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->direct_type);
    Py_CLEAR(state->ring_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, start}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "snorky.gateway.connection.native._sends",
    .m_doc = "Sends one piece of bytes on many sockets.",
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = module_slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__sends(void) {
    return PyModuleDef_Init(&definition);
}
