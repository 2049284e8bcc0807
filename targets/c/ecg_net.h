/* SPDX-License-Identifier: Apache-2.0
 *
 * How a graph runs: constant tables of tensors and nodes, and the two loops that walk them. The generator
 * (targets/c_model.py) writes the tables; nothing in them is code, a node names its kernel by number.
 */
#ifndef ECG_NET_H
#define ECG_NET_H

#include "ecg_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ECG_INPUTS_MAX 12u      /* inputs of one node */
#define ECG_NOWHERE 0xffffffffu

/* A tensor. Its codes lie in flash, in the arena at `place`, or, `ring`, in the state at `place`.
 * In a window `columns` of each row are used, and `pitch` is the distance of rows. In a stream a row has room for
 * `pitch` columns: the last `kept` columns of earlier steps, which lie in the state at `state` in the meantime, and the
 * new ones behind them. A ring keeps its columns in place. */
typedef struct {
    const int8_t *flash;
    uint32_t place, state;
    uint16_t rows, pitch, columns, kept;
    uint16_t stride;            /* stream only: samples per column */
    uint8_t ring;
} ecg_tensor;

/* When a column exists on an endless signal, from the columns of the inputs that exist. */
enum { ECG_ALIKE, ECG_SLIDING, ECG_BAND_WAITS, ECG_BLOCK_WAITS, ECG_NEIGHBOURHOOD_WAITS };

typedef struct {
    const void *layer;
    const uint16_t *in;         /* numbers of tensors */
    uint16_t out;
    uint8_t inputs, kernel;
    uint8_t flow;               /* stream only, with the numbers below: kernel, stride, pad; or size */
    uint16_t size, stride, pad;
} ecg_node;

/* Nodes in the order of execution; `given` are the tensors filled before it starts. */
typedef struct {
    const ecg_node *nodes;
    const ecg_tensor *tensors;
    const uint16_t *given;
    uint16_t count, tensor_count, given_count, out;
} ecg_program;

/* The streaming form: `front` computes new columns at every step of `hop` samples, `back` decides from the columns
 * start .. start + columns of the ring in front of the boundary, counted from the decision's first column. */
typedef struct {
    ecg_program front, back;
    const uint16_t *last_read;  /* front: node after which a tensor's new columns go into the state, by tensor */
    uint16_t hop, stride;       /* samples; samples per column of the ring */
    uint16_t ring, cut;         /* the front's tensor in front of the boundary, the back's tensor that is cut from it */
    uint16_t start;
    uint32_t window;            /* samples in front of the first decision */
    uint32_t state;             /* bytes */
} ecg_stream;

/* The kernels in this image, by number; NULL for those that are not. Generated. */
extern ecg_kernel *const ecg_kernels[ECG_KERNELS];

/* Called after each node of a measuring build, see ecg_net. */
typedef void ecg_watch(void *context, uint16_t node, const ecg_view *out);

/* Where a program works: `arena` and `state` on 4 bytes, `scratch` on 8. For each tensor of a stream's front, `have`
 * counts the columns that exist and `fresh` those that this step adds. */
typedef struct {
    int8_t *arena, *state;
    void *scratch;
    int32_t *have;
    uint16_t *fresh;
    int32_t samples;            /* computed on so far, less what moving the counters back took away */
    int32_t waiting;            /* further ones that lie in the input's row */
    ecg_watch *watch;
    void *context;
} ecg_net;

/* Every kernel that the program names is in this image. */
int ecg_net_complete(const ecg_program *program);

/* One window: put the codes of given[i] at ecg_net_input, without gaps, then run. The result stays in the arena. */
int8_t *ecg_net_input(const ecg_net *net, const ecg_program *program, uint16_t i);
const int8_t *ecg_net_run(ecg_net *net, const ecg_program *program);

/* A new signal begins. */
void ecg_net_reset(ecg_net *net, const ecg_stream *stream);

/* Take up to n frames of codes (codes[frame * leads + lead]); returns how many. *due: the samples of a step are there
 * and ecg_net_step must follow. */
int32_t ecg_net_take(ecg_net *net, const ecg_stream *stream, const int8_t *codes, int32_t n, int *due);

/* Compute on the samples that were taken. Where they make a decision, returns its logits, which stay in the arena;
 * sides[i]: codes of the back's given[i]. Else NULL. */
const int8_t *ecg_net_step(ecg_net *net, const ecg_stream *stream, const int8_t *const *sides);

#ifdef __cplusplus
}
#endif
#endif
